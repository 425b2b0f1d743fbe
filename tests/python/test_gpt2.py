"""Published numbers of GPT-2 small, where its weights are at hand: LENSCPP_GPT2 is a folder with config.json,
model.safetensors and tokenizer.json as Hugging Face has them. Nothing is downloaded, so this is skipped elsewhere.

Sources: the report (transformer-lens issue 1178, its CPU column); transformer-lens's
tests/acceptance/test_hooked_transformer.py (loss); its exploratory analysis demo (eight prompts).
"""

import os

import pytest

import lenscpp as lens

FOLDER = os.environ.get("LENSCPP_GPT2")
pytestmark = pytest.mark.skipif(not FOLDER, reason="LENSCPP_GPT2 does not point to GPT-2 small's weights")

FORMATS = [
    ("When John and Mary went to the shops,{} gave the bag to", " Mary", " John"),
    ("When Tom and James went to the park,{} gave the ball to", " Tom", " James"),
    ("When Dan and Sid went to the shops,{} gave an apple to", " Dan", " Sid"),
    ("After Martin and Amy went to the park,{} gave a drink to", " Martin", " Amy"),
]


@pytest.fixture(scope="module")
def gpt2():
    return lens.HookedTransformer.from_pretrained(FOLDER)


def test_the_cpu_column_of_the_report(gpt2):
    (row,) = lens.compare(gpt2, "When Mary and John went to the store, John gave a drink to", " Mary", " John", devices=("cpu",))
    assert row.status == "VERIFIED"
    assert row.p_answer == pytest.approx(0.6770, abs=1e-4)
    assert row.p_wrong == pytest.approx(0.0235, abs=1e-4)
    assert row.logit_difference == pytest.approx(3.362, abs=1e-3)
    assert row.top_text == " Mary"
    assert row.accuracy["asked"] > 0 and row.accuracy["right"] / row.accuracy["asked"] >= 0.95


def test_the_loss_that_transformer_lens_tests(gpt2):
    assert gpt2("Hello world!", return_type="loss").item() == pytest.approx(5.331855773925781, abs=4e-5)


def test_the_logit_difference_of_the_exploratory_demo(gpt2):
    """Mean over eight prompts; the same pairs with the subjects exchanged give its opposite."""
    clean = corrupted = 0.0
    for text, *names in FORMATS:
        for answer, wrong in (names, names[::-1]):
            metric = lens.LogitDiff(answer, wrong).resolve(gpt2)
            clean += metric(gpt2(text.format(wrong))).item() / 8
            corrupted += metric(gpt2(text.format(answer))).item() / 8
    assert clean == pytest.approx(3.5519, abs=1e-3)
    assert corrupted == pytest.approx(-3.5519, abs=1e-3)

"""One prompt on several devices, side by side."""

import warnings

import pytest
import torch
from conftest import PROMPT

import lenscpp as lens


def compared(tiny, **options):
    return lens.compare(tiny, PROMPT, " Mary", " John", **{"devices": ("cpu",), "prompts": 10, **options})


def test_a_row_reads_the_logits_of_the_run(tiny):
    (row,) = compared(tiny)
    logits = tiny(PROMPT)[0, -1].double()
    mary, john = tiny.to_single_token(" Mary"), tiny.to_single_token(" John")
    assert row.p_answer == pytest.approx(logits.softmax(-1)[mary].item(), rel=1e-12)
    assert row.p_wrong == pytest.approx(logits.softmax(-1)[john].item(), rel=1e-12)
    assert row.logit_difference == pytest.approx((logits[mary] - logits[john]).item(), rel=1e-12)
    assert (row.top, row.top_text, row.status, row.verdict.status) == (mary, " Mary", "VERIFIED", "VERIFIED")
    assert row.accuracy["asked"] == 10 and row.accuracy["refused"] == 0


def test_every_device_and_dtype_gets_a_row_and_a_missing_one_says_so(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mps: test_devices.py
        rows = compared(tiny, devices=("cpu", "mps"), dtypes=("float32", torch.bfloat16))
    assert [(r.device, r.dtype) for r in rows] == [("cpu", "float32"), ("mps", "float32"), ("cpu", "bfloat16"), ("mps", "bfloat16")]
    if not torch.backends.mps.is_available():
        assert [r.status for r in rows] == ["VERIFIED", "FAILED"] * 2
        assert "mps" in rows[1].error and rows[1].p_answer is None
    assert str(rows).splitlines()[0].split() == ["P('", "Mary')", "P('", "John')", "logit", "difference", "top-1", "IOI", "accuracy", "verdict"]
    assert rows._repr_html_().count("<tr>") == 5


def test_a_fault_gets_a_row_beside_the_device_as_it_is(tiny):
    with lens.faults.inject("stale", hook="attn.hook_z"):
        clean, faulty = compared(tiny)
    assert (clean.status, faulty.status) == ("VERIFIED", "INVALID")
    assert faulty.fault == "stale at attn.hook_z"
    assert faulty.verdict.first_failure.name == "blocks.0.attn.hook_z"
    assert faulty.accuracy["refused"] == 10
    assert faulty.p_answer < 0.01 < clean.p_answer


def test_accuracy_counts_what_it_leaves_out(tiny):
    prompts = [(PROMPT, " Mary", " John"), (PROMPT, " John", " Mary"), (PROMPT, " Mary and John", " John")]
    (row,) = compared(tiny, prompts=prompts)
    assert row.accuracy == {"right": 1, "asked": 2, "refused": 0, "left_out": 1}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"devices": ()}, ValueError, "at least one device"),
        ({"devices": "cpu"}, TypeError, "sequences of names"),
        ({"dtypes": ("int8",)}, ValueError, "allowed: float32"),
        ({"prompts": -1}, ValueError, "0 or more"),
    ],
)
def test_bad_input_is_refused(tiny, options, error, message):
    with pytest.raises(error, match=message):
        compared(tiny, **options)
    with pytest.raises(TypeError, match="needed: a HookedTransformer"):
        lens.compare("tiny-ioi", PROMPT, " Mary", " John")
    with pytest.raises(ValueError, match="not one"):
        lens.compare(tiny, PROMPT, " Mary and", " John", devices=("cpu",))

"""TransformerLens's patching functions, all of them, against what transformer-lens itself returns."""

import pytest
import torch
from conftest import GOLDEN

import lenscpp as lens
from lenscpp import patching

numpy = pytest.importorskip("numpy")
STORED = numpy.load(GOLDEN.parent / "patching.npz")
CASES = sorted({key.split("/")[0] for key in STORED if "/" in key})
NAMES = sorted({key.split("/")[1] for key in STORED if "get_act_patch" in key})
SETTERS = {
    "rows_resid_pre": ("resid_pre", patching.layer_pos_patch_setter),
    "rows_z": ("z", patching.layer_pos_head_vector_patch_setter),
    "rows_pattern": ("pattern", patching.layer_head_dest_src_pos_pattern_patch_setter),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    """What a patching function takes, and the golden results."""
    golden = {key.split("/", 1)[1]: STORED[key] for key in STORED if key.startswith(request.param + "/")}
    model = lens.HookedTransformer.from_pretrained_no_processing(GOLDEN / request.param, dtype="float64")
    clean, corrupted = (torch.from_numpy(golden[which]) for which in ("clean", "corrupted"))
    metric = lens.LogitDiff(int(golden["answer"]), int(golden["wrong"]))
    return (model, corrupted, model.run_with_cache(clean)[1], metric), golden


def compare(found, expected):
    """Both are rounded to float32 once, from float64 values that agree: a unit in the last place of the largest."""
    expected = torch.from_numpy(expected)
    assert found.shape == expected.shape and found.dtype == expected.dtype == torch.float32
    error = (found - expected).abs().max().item()
    assert error <= 2**-23 * expected.abs().max().item(), error
    assert expected.flatten().unique().numel() > 1  # something depends on what is patched


def test_there_is_every_name():
    ours = [name for name in dir(patching) if name.startswith("get_act_patch_")]
    assert NAMES == sorted(ours) and len(NAMES) == 18 and len(CASES) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_function_returns_what_transformer_lens_returns(pair, name):
    arguments, golden = pair
    compare(getattr(patching, name)(*arguments), golden[name])


@pytest.mark.parametrize("name", SETTERS)
def test_rows_of_indices_give_what_transformer_lens_gives(pair, name):
    arguments, golden = pair

    class Rows:
        def iterrows(self):
            return enumerate(golden[f"{name}/rows"].tolist())

    activation, setter = SETTERS[name]
    found = patching.generic_activation_patch(*arguments, setter, activation, index_df=Rows())
    expected = torch.from_numpy(golden[name])
    torch.testing.assert_close(found, expected, rtol=0, atol=2**-23 * expected.abs().max().item())


def test_a_function_of_logits_gives_the_same(pair):
    (model, corrupted, clean, metric), golden = pair
    answer, wrong = int(golden["answer"]), int(golden["wrong"])
    found = patching.get_act_patch_resid_pre(model, corrupted, clean, lambda logits: (logits[:, -1, answer] - logits[:, -1, wrong]).mean())
    compare(found, golden["get_act_patch_resid_pre"])

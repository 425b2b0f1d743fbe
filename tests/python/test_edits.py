"""Plans of edits: what each writes, that the run stays verified, and what is refused."""

import pytest
import torch

from conftest import PROMPT

import lenscpp as lens

TOKENS = [[1, 5, 200, 7], [7, 3, 256, 0]]
OTHER = [[9, 8, 7, 6], [5, 4, 3, 2]]


def edited(model, *edits, name):
    _, cache = model.run_with_cache(TOKENS, [name], plan=lens.Plan(edits))
    assert cache.verdict.status == "VERIFIED" and len(cache.record["plan"]) == len(edits)
    return cache[name]


@pytest.fixture(scope="module")
def clean(three):
    return three.run_with_cache(TOKENS)[1]


@pytest.fixture(scope="module")
def other(three):
    return three.run_with_cache(OTHER)[1]


def test_patch_from_a_cache(three, clean, other):
    expected = clean["resid_pre", 1]
    expected[:, 2] = other["resid_pre", 1][:, 2]
    for pos in (2, [2], range(2, 3), -2, torch.tensor(2)):
        for name in ("blocks.1.hook_resid_pre", ("resid_pre", 1), ("resid_pre", -2)):
            found = edited(three, lens.Patch(name, source=other, pos=pos), name="blocks.1.hook_resid_pre")
            assert torch.equal(found, expected)
    whole = edited(three, lens.Patch(("resid_pre", 1), source=other), name="blocks.1.hook_resid_pre")
    assert torch.equal(whole, other["resid_pre", 1])
    logits = three(TOKENS, plan=lens.Plan([lens.Patch(("resid_pre", 0), source=other)]))
    assert torch.equal(logits, three(OTHER))


def test_patch_of_one_head_and_prompt(three, clean, other):
    found = edited(three, lens.Patch(("z", 0), source=other["z", 0], head=1, batch=1), name="blocks.0.attn.hook_z")
    expected = clean["z", 0]
    expected[1, :, 1] = other["z", 0][1, :, 1]
    assert torch.equal(found, expected)


def test_patch_of_a_pattern(three, clean):
    source = torch.full_like(clean["pattern", 1], 0.25)
    found = edited(three, lens.Patch(("pattern", 1), source=source, head=0, pos=3, key=2), name="blocks.1.attn.hook_pattern")
    expected = clean["pattern", 1]
    expected[:, 0, 3, 2] = 0.25
    assert torch.equal(found, expected)


def test_ablate_add_scale(three, clean):
    z = clean["z", 1]
    expected = z.clone()
    expected[:, :, 2] = 0
    assert torch.equal(edited(three, lens.Ablate(("z", 1), head=2), name="blocks.1.attn.hook_z"), expected)
    expected = z.clone()
    expected[:, :, 2] = z[:, :, 2].double().mean((0, 1), keepdim=True).float()
    assert torch.allclose(edited(three, lens.Ablate(("z", 1), head=2, to="mean"), name="blocks.1.attn.hook_z"), expected, atol=1e-6)
    source = torch.randn(5, 7, 3, 12)
    expected[:, :, 2] = source[:, :, 2].double().mean((0, 1)).float()
    assert torch.allclose(edited(three, lens.Ablate(("z", 1), head=2, to="mean", source=source), name="blocks.1.attn.hook_z"), expected, atol=1e-6)
    vector = torch.randn(36)
    expected = clean["resid_post", 0]
    expected[:, [0, 3]] += 1.5 * vector
    assert torch.allclose(edited(three, lens.Add(("resid_post", 0), vector, scale=1.5, pos=[0, 3]), name="blocks.0.hook_resid_post"), expected, atol=1e-5)
    found = edited(three, lens.Scale(("mlp_out", 2), 0.5), lens.Scale(("mlp_out", 2), 4), name="blocks.2.hook_mlp_out")
    assert torch.allclose(found, 2 * clean["mlp_out", 2])


def test_a_fault_in_an_edited_run_is_refused(three, other):
    plan = lens.Plan([lens.Patch(("resid_pre", 1), source=other, pos=2)])
    with pytest.raises(lens.VerificationFailed, match="edit 1"), lens.faults.inject("one_element", hook="blocks.1.hook_resid_pre", stage=1):
        three(TOKENS, plan=plan)


def test_an_empty_plan_changes_nothing(three):
    assert torch.equal(three(TOKENS, plan=lens.Plan()), three(TOKENS)) and len(lens.Plan()) == 0


def test_plans_can_be_looked_at(other):
    plan = lens.Plan([lens.Patch(("resid_pre", 1), source=other, pos=2), lens.Scale("hook_embed", 0.5, batch=0)])
    assert len(plan) == 2 and [e.kind for e in plan.edits] == ["patch", "scale"] and plan.edits[1].name == "hook_embed"
    assert "resid_pre, layer 1, pos [2], from a VerifiedCache" in repr(plan) and "factor 0.5" in repr(plan)


MAKE_ERRORS = [
    (lambda: lens.Patch("hook_embed"), TypeError, "source"),
    (lambda: lens.Patch("hook_embed", source=None, pos="2"), TypeError, "pos is an int"),
    (lambda: lens.Patch("hook_embed", source=torch.zeros(1), pos=(1, 2)), TypeError, "a list of ints"),
    (lambda: lens.Patch("hook_embed", source=torch.zeros(1), pos=[1.0]), TypeError, "float"),
    (lambda: lens.Patch("hook_embed", source=torch.zeros(1), head=1.0), TypeError, "head is an int"),
    (lambda: lens.Patch("hook_embed", source=torch.zeros(1), batch=True), TypeError, "bool"),
    (lambda: lens.Patch("hook_embed", source=[1.0]), lens.NotVerified, "list"),
    (lambda: lens.Patch("hook_embed", source={"hook_embed": torch.zeros(1)}), lens.NotVerified, "dict"),
    (lambda: lens.Patch("hook_embed", source=torch.zeros(1, dtype=torch.complex64)), ValueError, "Complex"),
    (lambda: lens.Patch(5, source=torch.zeros(1)), TypeError, "name"),
    (lambda: lens.Patch(("resid_pre", "1"), source=torch.zeros(1)), TypeError, "str, str"),
    (lambda: lens.Ablate("hook_embed", to="one"), ValueError, '"zero", "mean"'),
    (lambda: lens.Scale("hook_embed", "2"), TypeError, "factor"),
    (lambda: lens.Scale("hook_embed", True), TypeError, "bool"),
    (lambda: lens.Plan(["hook_embed"]), TypeError, "Patch, Ablate, Add or Scale"),
    (lambda: lens.Plan(5), TypeError, "Plan"),
]


@pytest.mark.parametrize("make, error, says", MAKE_ERRORS)
def test_making_errors(make, error, says):
    with pytest.raises(error, match=says):
        make()


RUN_ERRORS = [
    (lambda o: lens.Scale("hook_embde", 2), ValueError, "nearest"),
    (lambda o: lens.Scale(("resid_pre", 3), 2), IndexError, "3 layers"),
    (lambda o: lens.Scale("hook_embed", 2, pos=4), IndexError, "pos 4"),
    (lambda o: lens.Scale("hook_embed", 2, pos=[]), ValueError, "empty"),
    (lambda o: lens.Scale("hook_embed", 2, batch=-3), IndexError, "batch -3"),
    (lambda o: lens.Scale("hook_embed", 2, head=0), ValueError, "head"),
    (lambda o: lens.Scale("hook_embed", float("nan")), ValueError, "factor"),
    (lambda o: lens.Ablate(("z", 0), head=3), IndexError, "head 3"),
    (lambda o: lens.Ablate(("z", 0), key=0), ValueError, "key"),
    (lambda o: lens.Ablate(("attn_scores", 0), to="mean"), ValueError, "pattern"),
    (lambda o: lens.Patch("hook_embed", source=torch.zeros(2, 3, 36)), ValueError, r"\[2, 3, 36\]"),
    (lambda o: lens.Patch(("result", 0), source=o), ValueError, "not in this cache"),
    (lambda o: lens.Add("hook_embed", torch.zeros(35)), ValueError, "35"),
]


@pytest.mark.parametrize("make, error, says", RUN_ERRORS)
def test_running_errors(three, other, make, error, says):
    with pytest.raises(error, match=says):
        three(TOKENS, plan=lens.Plan([make(other)]))


def test_what_is_not_run_cannot_be_edited(three):
    with pytest.raises(ValueError, match="does not compute"):
        three(TOKENS, stop_at_layer=1, plan=lens.Plan([lens.Scale("unembed.hook_out", 2)]))


def test_edits_by_themselves_are_a_plan(tiny):
    edit = lens.Ablate("blocks.1.attn.hook_z", head=2)
    wanted = tiny(PROMPT, plan=lens.Plan([edit]))
    for plan in (edit, [edit], (edit,)):
        assert torch.equal(tiny(PROMPT, plan=plan), wanted)
    with pytest.raises(TypeError):
        tiny(PROMPT, plan=["blocks.1.attn.hook_z"])

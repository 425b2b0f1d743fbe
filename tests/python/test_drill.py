"""lens.drill: faults at sites, counted."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import GOLDEN

import lenscpp as lens

FAMILIES = GOLDEN.parent / "families"

SMALL = {"dtypes": ("float32",), "batches": (1,), "lengths": (5,)}


@pytest.fixture(scope="module")
def report(three):
    return lens.drill(three, ["nan", ("scale", {"factor": 1.01}), "mask_group"], **SMALL)


def test_every_harmful_fault_is_refused_and_the_first_wrong_tensor_named(report):
    assert [row["fault"] for row in report.rows] == ["nan", "scale:factor=1.01", "mask_group"]
    assert report.rows[2]["runs"] == 3
    assert report.total["harmful"] > 100 and report.missed == []
    assert report.total["harmful_refused"] == report.total["harmful"]
    assert report.total["named"] == report.total["refused"]


def test_a_report_says_what_it_counted(report):
    assert str(report).splitlines()[0].split()[:4] == ["fault", "runs", "fired", "harmful"]
    assert str(report).splitlines()[-1] == report.summary
    assert report.to_dict()["model"] == "three_layers"
    assert len(report.to_dict()["runs"]) == report.total["runs"]
    assert "<pre>" in report._repr_html_()
    frame = pytest.importorskip("pandas") and report.to_dataframe()
    assert len(frame) == report.total["runs"] and frame["refused"].sum() == report.total["refused"]


def test_the_picture_shows_where_a_fault_cannot_be(report):
    pytest.importorskip("plotly")
    (trace,) = report.plot().data
    row = dict(zip(report.to_dict()["map"]["sites"], trace.z[2]))
    assert row["attn.hook_attn_scores"] == 1 and row["attn.hook_z"] is None


def test_faults_inside_the_device_are_drilled_on_the_simulated_one(three):
    report = lens.drill(three, ["P5", ("S1", {"transposed": 1}), "C1"], **SMALL)
    rows = {row["fault"]: row for row in report.rows}
    assert set(rows) == {"P5", "S1:transposed=1"} and all(row["in_device"] for row in rows.values())
    assert [setting["device"] for setting in report.to_dict()["settings"]] == ["simulated"]
    assert report.to_dict()["never_fired"][0]["fault"] == "C1"
    assert "its condition was never met: a copy that does not wait" in str(report)
    assert report.total["harmful"] > 20 and report.missed == []


def test_a_part_and_a_sample(three):
    report = lens.drill(three, ["row"], sites=["z"], layers=[-1], **SMALL)
    assert [run["place"] for run in report.to_dict()["runs"]] == ["blocks.2.attn.hook_z"]
    assert lens.drill(three, ["row", "nan"], sample=3, **SMALL).total["runs"] == 6


PROGRAM = '''
import signal, sys, torch
import lenscpp as lens
signal.signal(signal.SIGINT, signal.default_int_handler)
model = lens.HookedTransformer.from_pretrained("tiny-ioi")
before = torch.accelerator.current_accelerator()
lens.drill(model, ["nan"], sites=["mlp_out"], dtypes=["float32"], batches=[1], lengths=[3])
assert torch.accelerator.current_accelerator() == before, "the process got another accelerator"
print("drilled", flush=True)
try:
    lens.drill(model, ["nan"], lengths=[60])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    assert lens.drill(model, ["nan"], sites=["mlp_out"], dtypes=["float32"], batches=[1], lengths=[3]).missed == []
    sys.exit(7)
'''


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to send")
def test_a_drill_is_interrupted_and_loads_no_other_device_unasked():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout.readline() == "drilled\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # it is in the long one now
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "interrupted\n"
    assert process.returncode == 7


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"faults": ["nana"]}, ValueError, "nearest"),
        ({"faults": "nan"}, TypeError, "a sequence"),
        ({"faults": [3]}, TypeError, "a name"),
        ({"sites": ["zz"]}, ValueError, "nearest"),
        ({"layers": [3]}, IndexError, "3 layers"),
        ({"lengths": [0]}, ValueError, "allowed: 1 to"),
        ({"verify": "off"}, ValueError, "nothing could be refused"),
        ({"sample": 0}, ValueError, "sample 0"),
    ],
)
def test_bad_input_is_refused(three, options, error, message):
    with pytest.raises(error, match=message):
        lens.drill(three, **{"faults": ["nan"], **SMALL, **options})


def test_only_a_model_is_drilled():
    with pytest.raises(TypeError, match="needed: a HookedTransformer"):
        lens.drill("tiny-ioi")


# A family of each kind, and the tensors that only its kind has.
OWN_TENSORS = {
    "llama_grouped": ("rotary.cos", "rotary.sin", "attn.hook_rot_q", "attn.hook_rot_k", "mlp.hook_pre_linear", "mlp.act"),
    "neox_parallel": ("rotary.cos", "attn.hook_rot_q"),
    "gptj_rotary": ("rotary.sin", "attn.hook_rot_k"),
    "gemma2_grouped": ("attn.raw_scores", "attn.sum", "ln1_post.hook_scale", "ln1_post.hook_normalized", "mlp.sum", "ln2_post.hook_normalized", "unembed.logits"),
    "gemma3_windows": ("rotary.windowed_cos", "rotary.windowed_sin"),
    "qwen3_grouped": ("attn.q_norm.hook_scale", "attn.q_norm.hook_normalized", "attn.q_norm.out", "attn.k_norm.out"),
    "bloom_alibi": ("attn.raw_scores", "attn.position_bias", "embed.ln.hook_scale", "embed.ln.hook_normalized"),
    "olmo2_grouped": ("attn.q_norm.hook_scale", "attn.k_norm.hook_normalized", "ln2_post.hook_scale"),
    "mixtral_window": ("mlp.router_logits", "mlp.hook_expert_weights", "mlp.expert_shares", "mlp.hook_expert_gate", "mlp.hook_expert_post"),
    "bert_model": ("hook_token_type_embed", "embed.sum", "ln1.hook_scale", "ln1.out", "ln2.hook_normalized", "hook_normalized_resid_post", "pooler.pre", "pooler.hook_pooler_out"),
    "bert_classifier": ("pooler.in", "classifier.hook_out"),
    "distilbert_masked_lm": ("mlm_head.hook_pre", "mlm_head.hook_post"),
}


@pytest.mark.parametrize("case", OWN_TENSORS)
def test_faults_at_the_tensors_of_every_kind_of_family_are_refused(case):
    """Not one element off by little: that may be within the bound of its tensor, and grow."""
    encoder = FAMILIES.parent / "encoders" / case
    model = lens.HookedTransformer.from_pretrained(encoder if encoder.is_dir() else FAMILIES / case)
    settings = {"lengths": (9,), "batches": (2,), "dtypes": ("float32", "bfloat16")}
    report = lens.drill(model, ["nan", "sign", "row", ("scale", {"factor": 1.5}), "poison"], sites=OWN_TENSORS[case], **settings)
    hit = {run["site"] for run in report.to_dict()["runs"] if run["harm"] == "harmful" and run["changed"] > 0}
    assert hit == set(OWN_TENSORS[case])
    assert report.missed == [] and report.total["harmful_refused"] == report.total["harmful"] > 5 * len(hit)
    assert report.total["named"] == report.total["refused"]
    inside = lens.drill(model, ["P5", "S1", "Z3", "M1"], sample=4, **settings)
    assert inside.total["harmful"] > 4 and inside.missed == []

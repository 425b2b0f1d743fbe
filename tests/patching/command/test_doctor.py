"""`lenscpp doctor`: each kind of device gets its line and the right recommendation."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = os.environ.get("LENSCPP_PROGRAM") or str(Path(sys.executable).parent / "lenscpp")
PHASES = """availability dependencies operators dtypes accuracy copies tokenizer plan load transfer forward backward ioi
speed swap""".split()
CASES = Path(__file__).resolve().parents[2] / "golden" / "gpt2"


def doctor(*arguments, only="", limits=None, **changes):
    """(exit status, report) of --json; `limits` are those of the simulated device."""
    arguments = (*arguments, "--only", only) if only else arguments
    environment = {k: v for k, v in os.environ.items() if k not in ("LENSCPP_MODELS", "LENSCPP_SIMULATED")}
    if limits is not None:
        environment["LENSCPP_SIMULATED"] = json.dumps(limits)
        arguments = ("--device", "simulated", *arguments)
    run = subprocess.run(
        [PROGRAM, "doctor", *arguments, "--json"], capture_output=True, text=True, timeout=600, env={**environment, **changes}
    )
    report = json.loads(run.stdout)
    assert report["exit_status"] == run.returncode and run.stderr.count("\n") == (1 if "error" in report else 0), run.stderr
    return run.returncode, report


def phase(report, name):
    (found,) = [p for p in report["phases"] if p["name"] == name]
    return found


def statuses(report):
    return {p["name"]: p["status"] for p in report["phases"]}


@pytest.fixture(scope="module")
def cpu():
    return doctor()


def test_everything_passes_on_the_cpu(cpu):
    status, report = cpu
    assert status == 0 and [p["name"] for p in report["phases"]] == PHASES
    for name in ("availability", "operators", "dtypes", "accuracy", "copies", "tokenizer", "load", "transfer", "forward", "backward", "ioi"):
        assert phase(report, name)["status"] == "pass", phase(report, name)
    assert report["recommendation"]["advice"] == "use it"
    assert report["recommendation"]["because"] == ["every run was verified"]


def test_phases_measure(cpu):
    _, report = cpu
    measured = {p["name"]: p["measured"] for p in report["phases"]}
    names = [operator["name"] for operator in measured["operators"]["operators"]]
    assert {"aten::addmm", "aten::native_layer_norm", "aten::bmm", "aten::_softmax", "aten::gelu", "aten::index_select"} <= set(names)
    assert measured["operators"]["native_share"] == 1 and measured["operators"]["missing"] == []
    assert 0 < measured["accuracy"]["ulp"]["exp"]["ulp"] < 4
    assert measured["copies"]["checked"] > 25 and measured["copies"]["wrong"] == []
    assert measured["load"]["weights_bytes"] > 1e5
    assert measured["plan"]["fits"] and measured["plan"]["dtype_table"]["float64"] is None
    assert measured["forward"]["longest"] >= 32 and measured["forward"]["compared"] > 1e5
    assert 0 < measured["backward"]["relative_error"] < 1e-4
    assert measured["ioi"]["logit_difference"] == measured["ioi"]["cpu_logit_difference"] > 1
    assert measured["speed"]["device_ms"] > 0


def test_a_model_without_a_tokenizer_is_examined_too():
    status, report = doctor(str(CASES / "three_layers"), only="tokenizer,forward")
    assert status == 0 and statuses(report)["tokenizer"] == "skipped" and statuses(report)["forward"] == "pass"


@pytest.mark.parametrize("device", ["cuda", "mps", "nonsense"])
def test_a_missing_device_is_one_failure_and_the_rest_skipped(device):
    status, report = doctor("--device", device, LENSCPP_ALLOW_MPS="1")
    if statuses(report)["availability"] == "pass":
        pytest.skip(f"{device} is here")
    assert status == 4
    assert statuses(report) == {name: "skipped" for name in PHASES} | {"availability": "fail"}
    why = phase(report, "availability")["summary"]
    assert device in why and "\n" not in why
    assert report["recommendation"] == {"advice": "use the CPU", "settings": [], "because": [f"availability: {why}"]}


def test_the_text_is_a_report():
    run = subprocess.run([PROGRAM, "doctor", "--device", "nonsense"], capture_output=True, text=True, timeout=600)
    assert (run.returncode, run.stderr) == (4, "")
    assert [line.split()[0] for line in run.stdout.splitlines()[3:18]] == PHASES
    assert "\nuse the CPU\n  because availability: " in run.stdout


@pytest.mark.parametrize("arguments", [["no-such-model"], ["--dtype", "float8"], ["--seconds", "0"], ["--phase", "nothing"], ["--only", "nothing"]])
def test_bad_usage(arguments):
    run = subprocess.run([PROGRAM, "doctor", *arguments], capture_output=True, text=True, timeout=600)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and run.stderr.startswith("lenscpp: ")


def test_some_phases_and_what_they_need():
    status, report = doctor(only="transfer")
    assert [p["name"] for p in report["phases"]] == ["availability", "load", "transfer"]
    assert status == 4 and report["recommendation"]["because"] == ["no forward pass was verified"]


def test_a_refused_cpu_is_not_answered_with_the_cpu():
    status, report = doctor(only="tokenizer")
    assert status == 4 and report["recommendation"]["advice"] == "do not use this machine's CPU as it is"


def test_the_warning_about_apples_device_is_said_once_and_by_the_parent():
    environment = {k: v for k, v in os.environ.items() if k != "LENSCPP_ALLOW_MPS"}
    run = subprocess.run([PROGRAM, "doctor", "--device", "mps"], capture_output=True, text=True, timeout=600, env=environment)
    assert run.stderr.count("TransformerLens 1178") == 1 and run.stderr.count("\n") == 1
    assert "TransformerLens" not in run.stdout


def test_what_the_memory_does_not_hold_is_a_shorter_prompt(tmp_path):
    """Attention over a million tokens is terabytes, over a thousand it is not: the length is the setting, not the CPU."""
    config = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 2**20, "vocab_size": 11}
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = subprocess.run([PROGRAM, "doctor", str(tmp_path), "--phase", "plan"], capture_output=True, text=True, timeout=120)
    found = json.loads(run.stdout)
    assert found["status"] == "warn", found
    longest = found["measured"]["longest"]
    assert 500 < longest < 2**20
    assert found["measured"]["settings"] == [f"at most {longest} tokens a prompt"]


def test_no_limit_is_too_long():
    assert doctor("--seconds", "1e18", only="tokenizer")[1]["phases"][0]["status"] == "pass"


def test_a_hang_is_stopped():
    """No phase is that quick."""
    status, report = doctor("--seconds", "0.001", only="forward")
    assert status == 4 and phase(report, "availability")["summary"].startswith("hung: stopped after 0.001 s")


# ---- the simulated device ----


def test_an_honest_device_is_to_be_used():
    status, report = doctor(limits={})
    assert status == 0, report
    assert report["recommendation"]["advice"] == "use it"
    assert phase(report, "transfer")["measured"]["bytes"] == phase(report, "load")["measured"]["weights_bytes"]
    assert "fail" not in statuses(report).values() and statuses(report)["forward"] == "pass"


def test_no_float64_is_a_warning():
    status, report = doctor(only="dtypes,forward", limits={"float64": False})
    assert status == 0 and statuses(report)["dtypes"] == "warn"
    assert "float64 refused" in phase(report, "dtypes")["summary"]


def test_no_float64_is_a_failure_for_whoever_wants_it():
    status, report = doctor("--dtype", "float64", only="dtypes,forward", limits={"float64": False})
    assert status == 4 and statuses(report)["dtypes"] == "fail"


def test_an_operator_that_falls_back_is_named():
    status, report = doctor(only="operators,forward", limits={"missing": ["gelu"]})
    assert status == 0
    assert phase(report, "operators")["measured"]["fallback"] == ["aten::gelu"]
    assert phase(report, "forward")["measured"]["fallbacks"] == ["aten::gelu"]
    assert any("aten::gelu" in reason for reason in report["recommendation"]["because"])


def test_products_are_asked_of_the_device_as_it_makes_them(tmp_path):
    """Of a wide model the CPU keeps the weights in an order of its own, by operators that no device has."""
    spec = importlib.util.spec_from_file_location("benchmarks_common", CASES.parents[1] / "benchmarks" / "common.py")
    common = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = common
    spec.loader.exec_module(common)
    shape = {"n_layer": 1, "n_head": 4, "n_embd": 768, "n_positions": 16, "vocab_size": 100}
    _, report = doctor(str(common.make_checkpoint(tmp_path / "wide", shape)), only="operators", limits={})
    names = [operator["name"] for operator in phase(report, "operators")["measured"]["operators"]]
    assert "aten::addmm" in names and not [name for name in names if not name.startswith("aten::")]
    assert phase(report, "operators")["status"] == "pass"


@pytest.mark.parametrize("count, advice", [(4, "use it with these settings"), (9, "use the CPU")])
def test_many_fallbacks_change_the_advice(cpu, count, advice):
    leaves = ["gelu", "bmm", "addmm", "native_layer_norm", "_softmax", "index_select", "reciprocal", "add", "baddbmm"]
    _, report = doctor(only="operators,forward", limits={"missing": leaves[:count]})
    share = phase(report, "operators")["measured"]["native_share"]
    assert (0.7 <= share < 0.9) if advice == "use it with these settings" else share < 0.7
    assert report["recommendation"]["advice"] == advice


def test_what_the_host_makes_is_not_asked_of_the_device():
    """The causal mask is made on the host, whatever the device: a device without triu is none the worse."""
    status, report = doctor(only="operators,forward", limits={"missing": ["triu", "full", "clone"]})
    names = {operator["name"] for operator in phase(report, "operators")["measured"]["operators"]}
    assert "aten::addmm" in names and not names & {"aten::triu", "aten::full", "aten::clone"}
    assert status == 0 and statuses(report)["operators"] == statuses(report)["forward"] == "pass"
    assert phase(report, "forward")["measured"]["fallbacks"] == []


def test_an_operator_that_is_missing_is_named():
    status, report = doctor(only="operators,forward", limits={"missing": ["gelu"], "fallback": False})
    assert status == 4
    assert phase(report, "operators")["measured"]["missing"] == ["aten::gelu"]
    assert phase(report, "forward")["status"] == "fail" and "gelu" in phase(report, "forward")["summary"]


def test_a_device_that_aborts_is_a_line():
    status, report = doctor(only="copies,forward,swap", limits={"aborts_at": "gelu"})
    assert status == 4
    assert phase(report, "forward")["measured"]["died"] == "aborted"
    assert phase(report, "forward")["summary"].startswith("aborted (SIGABRT)")
    assert statuses(report)["copies"] == "pass" and statuses(report)["swap"] in ("pass", "warn")


def test_a_device_that_hangs_is_a_line():
    """In a function that the model does not use, so that one phase alone waits."""
    status, report = doctor("--seconds", "30", only="accuracy,forward", limits={"hangs_at": "erf"})
    assert status == 4
    assert phase(report, "accuracy")["summary"] == "hung: stopped after 30 s: function erf"
    assert phase(report, "accuracy")["measured"] == {"died": "hung"} and statuses(report)["forward"] == "pass"
    assert report["recommendation"]["because"] == ["accuracy: hung: stopped after 30 s: function erf"]


def test_small_buffers_are_found():
    status, report = doctor(only="plan,forward", limits={"max_buffer_bytes": 40000})
    assert status == 4 and statuses(report)["plan"] == statuses(report)["load"] == "fail"
    assert "40000" in phase(report, "load")["summary"] and "died" not in phase(report, "load")["measured"]


def test_a_device_that_lies_is_refused():
    status, report = doctor(only="copies,forward", limits={"faults": [{"name": "Z7"}]})
    assert status == 4 and statuses(report)["forward"] == "fail"
    assert "INVALID" in phase(report, "forward")["summary"]


def test_rounded_operands_have_a_remedy():
    """TF32 in all but name: the setting that declares it is named."""
    status, report = doctor(only="forward,ioi", limits={"faults": [{"name": "P5"}]})
    assert statuses(report)["forward"] == "warn"
    assert any("tf32" in setting for setting in phase(report, "forward")["measured"]["settings"])
    assert status == 0 and report["recommendation"]["advice"] == "use it with these settings"

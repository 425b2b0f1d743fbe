"""Adapters of peft's: merged at load, recorded, refused by name. The numbers are peft's own (tests/golden/adapters)."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lenscpp as lens

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "adapters"
CASES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir())


def folder_of(case):
    return GOLDEN / case, GOLDEN / case / "adapter"


def relative_error(found, expected):
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_pefts_merge(case):
    base, adapter = folder_of(case)
    golden = load_file(base / "merged.safetensors")
    model = lens.HookedTransformer.from_pretrained_no_processing(base, adapter=adapter)
    logits, cache = model.run_with_cache(golden["tokens"])
    assert cache.verdict.status == "VERIFIED"
    assert not relative_error(logits, golden["logits"]) > 1e-5
    assert relative_error(lens.HookedTransformer.from_pretrained_no_processing(base)(golden["tokens"]), golden["logits"]) > 1e-2
    processed = lens.HookedTransformer.from_pretrained(base, adapter=str(adapter))(golden["tokens"])
    assert not relative_error(processed.log_softmax(-1), golden["logits"].log_softmax(-1)) > 1e-5
    for dtype in ("bfloat16", "float16"):
        _, half = lens.HookedTransformer.from_pretrained(base, adapter=adapter, dtype=dtype).run_with_cache(golden["tokens"])
        assert half.verdict.status == "VERIFIED"


def test_record_names_folder_and_digest():
    base, adapter = folder_of("gpt2_lora")
    plain, tuned = lens.HookedTransformer.from_pretrained(base), lens.HookedTransformer.from_pretrained(base, adapter=adapter)
    assert plain.adapter is None and str(adapter) in tuned.adapter and re.search(r"XXH3-128 [0-9a-f]{32}", tuned.adapter)
    assert plain.digest != tuned.digest
    _, cache = tuned.run_with_cache([1, 2])
    assert cache.record["adapter"] == tuned.adapter and cache.record["model_digest"] == tuned.digest
    assert plain.run_with_cache([1, 2])[1].record["adapter"] == ""


def test_an_adapter_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="of another model"):
        lens.HookedTransformer.from_pretrained("tiny-ioi", adapter=folder_of("gpt2_lora")[1])
    base, adapter = folder_of("llama_rslora")
    shutil.copytree(adapter, tmp_path / "lora")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for change, says in (({"peft_type": "IA3"}, "peft_type"), ({"init_lora_weights": "pissa"}, "pissa"), ({"r": 5}, "rank 5")):
        (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=says):
            lens.HookedTransformer.from_pretrained(base, adapter=tmp_path / "lora")


def refusal(call):
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def run_line_of(message):
    line = re.search(r'python -c "(.*)"', message).group(1)
    subprocess.run([sys.executable, "-c", line], check=True, capture_output=True)


def test_the_lines_that_convert_pickled_weights_convert_them(tmp_path):
    base, adapter = folder_of("llama_dora")
    tokens = load_file(base / "merged.safetensors")["tokens"]
    expected = lens.HookedTransformer.from_pretrained(base, adapter=adapter)(tokens)
    for name in ("pytorch_model.bin", "model.pt"):
        there, lora = tmp_path / name / "base", tmp_path / name / "lora"
        for made, source, stem, pickled in ((there, base, "model", name), (lora, adapter, "adapter_model", "adapter_model.bin")):
            made.mkdir(parents=True)
            config = "config.json" if stem == "model" else "adapter_config.json"
            shutil.copy(source / config, made / config)
            torch.save(load_file(source / f"{stem}.safetensors"), made / pickled)
        if name == "pytorch_model.bin":
            pytest.importorskip("transformers")
        message = refusal(lambda: lens.HookedTransformer.from_pretrained(there))
        assert name in message
        run_line_of(message)
        message = refusal(lambda: lens.HookedTransformer.from_pretrained(there, adapter=lora))
        assert "adapter_model.bin" in message
        run_line_of(message)
        assert torch.equal(lens.HookedTransformer.from_pretrained(there, adapter=lora)(tokens), expected)


def test_preflight_counts_the_adapter_before_anything_is_loaded(tmp_path):
    base, adapter = folder_of("gpt2_dora")
    plain, tuned = lens.preflight(base), lens.preflight(base, adapter=adapter)
    assert tuned.fits and "merging the adapter" in json.dumps(dict(tuned)) and "merging the adapter" not in json.dumps(dict(plain))
    with pytest.raises(ValueError, match="already"):
        lens.preflight(lens.HookedTransformer.from_pretrained(base), adapter=adapter)
    with pytest.raises(FileNotFoundError):
        lens.preflight(base, adapter=tmp_path / "nothing")


@pytest.mark.parametrize("command", [["run"], ["lens"], ["preflight"]])
def test_the_program_merges_what_adapter_names(command, tmp_path):
    base, adapter = folder_of("gpt2_lora")
    shutil.copytree(base, tmp_path / "base")
    shutil.copy(Path(lens.__file__).parent / "models" / "tiny-ioi" / "tokenizer.json", tmp_path / "base")
    program = os.environ.get("LENSCPP_PROGRAM") or os.path.join(os.path.dirname(sys.executable), "lenscpp")

    def call(*words):
        asked = [*command, str(tmp_path / "base"), *([] if command == ["preflight"] else ["--prompt", ""]), "--json", *words]
        return subprocess.run([program, *asked], capture_output=True, text=True, timeout=300)

    plain, tuned = call(), call("--adapter", str(adapter))
    assert plain.returncode == tuned.returncode == 0, tuned.stderr
    assert (str(adapter) in tuned.stdout) == (command != ["preflight"]) and plain.stdout != tuned.stdout
    for wrong, status in (("nowhere", 2), (str(folder_of("llama_dora")[1]), 2)):
        if (command, wrong) != (["preflight"], str(folder_of("llama_dora")[1])):  # which does not look into the model's file
            assert call("--adapter", wrong).returncode == status

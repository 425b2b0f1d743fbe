"""Checks the tiny-ioi folder against Hugging Face's own GPT-2 and tokenizer.

    pip install "torch==2.13.0" numpy safetensors tokenizers transformers
    python tests/models/check_tiny_ioi.py [FOLDER]

Holds if transformers loads it with no missing, unexpected or mismatched key, gives the logits of the
trainer's model within 1e-4, and tokenizes every prompt as tokenizer.json does. It measures no accuracy;
train_tiny_ioi.py does.
"""

import json
import sys
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2LMHeadModel

from train_tiny_ioi import REPO, Gpt2

BOUND = 1e-4  # absolute, on logits


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REPO / "python/lenscpp/models/tiny-ioi"
    theirs, info = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    theirs.eval()
    config = json.loads((folder / "config.json").read_text())
    ours = Gpt2(config["vocab_size"], config["n_ctx"], config["n_layer"], config["n_head"], config["n_embd"])
    tensors = load_file(folder / "model.safetensors")
    ours.load_state_dict({k.removeprefix("transformer."): v for k, v in tensors.items()})

    wrapped = AutoTokenizer.from_pretrained(folder)
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    unequal = [p["id"] for p in prompts for key in ("clean", "corrupted")
               if wrapped(p[key]).input_ids != raw.encode(p[key]).ids]

    torch.manual_seed(0)
    rows = [torch.tensor([[config["bos_token_id"], *raw.encode(p["clean"]).ids]]) for p in prompts[::10]]
    rows.append(torch.randint(config["vocab_size"], (8, config["n_ctx"])))
    with torch.no_grad():
        worst = torch.stack([(theirs(ids).logits - ours(ids)).abs().max() for ids in rows]).max().item()

    keys = {k: sorted(info[k]) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    print(f"{keys}\nworst logit difference {worst:.2e} (absolute), bound {BOUND:g}\n"
          f"prompts tokenized unequally: {len(unequal)} of {2 * len(prompts)}")
    return 0 if worst <= BOUND and not unequal and not any(keys.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

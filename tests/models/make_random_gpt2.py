"""The GPT-2-shaped random model that `make drill` goes through: 4 layers, d_model 256, 48 positions.

    python3 tests/models/make_random_gpt2.py FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import common  # noqa: E402

SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 256, "n_positions": 48, "vocab_size": 1000}

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    common.make_checkpoint(Path(sys.argv[1]), SHAPE)

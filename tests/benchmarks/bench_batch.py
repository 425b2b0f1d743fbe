"""2,000 IOI experiments, layer x pos and layer x head, on tiny-ioi: patches a second with and without verification,
and how memory grows while they run.

    python tests/benchmarks/bench_batch.py OUT.json [--n 2000]

The same batch is run by checksums and unverified in turn, in processes of their own; each is sampled every half second.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = os.environ.get("LENSCPP_PROGRAM") or str(Path(sys.executable).parent / "lenscpp")
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_mib(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20


def run(experiments, folder, verify):
    command = [PROGRAM, "batch", experiments, "--model", "tiny-ioi", "--out", folder, "--verify", verify, "--json"]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    memory, start = [], time.time()
    while process.poll() is None:
        try:
            memory.append((time.time() - start, resident_mib(process.pid)))
        except (FileNotFoundError, IndexError, ProcessLookupError):
            break
        time.sleep(0.5)
    report = json.loads(process.stdout.read())
    quarter = max(1, len(memory) // 4)
    level = lambda part: sum(mib for _, mib in part) / len(part)  # noqa: E731
    return {
        "verify": verify,
        "patches": report["patches"],
        "seconds": report["seconds"],
        "patches_a_second": report["patches"] / report["seconds"],
        "share_checking": report["seconds_checking"] / report["seconds"],
        "mib_second_quarter": level(memory[quarter : 2 * quarter]),
        "mib_last_quarter": level(memory[-quarter:]),
        "mib_peak": max(mib for _, mib in memory),
        "summary": report["summary"],
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--n", type=int, default=2000)
    given = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as work:
        experiments = Path(work) / "ioi.jsonl"
        subprocess.run([PROGRAM, "task", "ioi", "tiny-ioi", "--n", str(given.n), "--out", str(experiments)], check=True, capture_output=True)
        lines = [json.loads(line) for line in experiments.read_text().splitlines()]
        experiments.write_text("".join(json.dumps({**line, "positions": "all"}) + "\n" for line in lines))
        for verify in ("checksum", "off", "exact"):
            results.append(run(experiments, Path(work) / verify, verify))
            r = results[-1]
            print(
                f"{verify:9s} {r['patches']} patches in {r['seconds']:.1f} s: {r['patches_a_second']:.0f} a second, {100 * r['share_checking']:.0f} % checking; "
                f"memory {r['mib_second_quarter']:.0f} MiB in the second quarter, {r['mib_last_quarter']:.0f} in the last, peak {r['mib_peak']:.0f}",
                flush=True,
            )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

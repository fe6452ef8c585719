"""The demo's work after set-up: seconds per stage, and dense against pruned, over three seeds."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write

SEEDS = (0, 1, 2)


def main() -> None:
    started = time.perf_counter()
    shaprune = str(Path(sys.executable).parent / "shaprune")
    runs = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            clock = time.perf_counter()
            out = subprocess.run(
                [shaprune, "demo", "--json", "--seed", str(seed), "--out", f"{folder}/demo"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            seconds = time.perf_counter() - clock
        answer = json.loads(out)
        dense, pruned = answer["dense"], answer["pruned"]
        runs[f"seed {seed}"] = {
            "wall seconds, start of Python included": round(seconds, 1),
            "dense": dense,
            "pruned": pruned,
            "raw_accuracy": answer["raw_accuracy"],
            "points lost": round(100 * (dense["accuracy"] - pruned["accuracy"]), 2),
            "macs kept": round(pruned["macs"] / dense["macs"], 4),
            "latency ratio": round(pruned["latency_ms"] / dense["latency_ms"], 3),
            "stages": {name: round(s, 2) for name, s in answer["seconds"].items()},
        }
    write("demo", runs, started)


if __name__ == "__main__":
    main()

"""The oracle benchmark (Adamczewski, Li, Van Gool 2024, Table 2) on MNIST: which ranking finds the best channels?

Five networks each of the reduced LeNet-5 (10 and 20 channels) and of its variant with batch-norm and a linear head, as
in the paper's released code. Both convolutions are tabulated whole, 2^10 coalitions on 1,000 and 2^20 on 250 held-out
images; every estimator, mode and rival is scored against the oracle subsets, with the exact row for 20 channels that
the paper leaves empty.
"""

from __future__ import annotations

import sys
import time
from functools import partial

from common import SEED, mnist, write

from shaprune.experiments.oracle_study import oracle_study

ARCHITECTURES = ("lenet5-reduced", "lenet5-reduced-bn")
say = partial(print, file=sys.stderr, flush=True)


def main(name: str, networks: int = 5, examples: int | None = None, repeats: int = 3) -> None:
    started = time.perf_counter()
    study = oracle_study(mnist(), name, networks=networks, examples=examples, repeats=repeats, seed=SEED, say=say)
    write(f"oracle-{name}", study, started)


if __name__ == "__main__":
    for architecture in sys.argv[1:] or ARCHITECTURES:
        main(architecture)

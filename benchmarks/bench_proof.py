"""What it costs that every fast path is proved on the user's network: CPU seconds of all proofs over those of a run.

The run is that of `bench_speed.py`: ResNet-56, all groups, 1,000 images, fidelity, by derivatives as control variates
until the median player of a group has a standard error of a tenth of its value, at most 260 evaluations for each
player of a group; in bfloat16, and in float32. Counted are how the network treats the rows of a batch (once), the
plain masked network on the rows that are compared, the fast ways on them, and the derivatives on them (per group). One
thread, so that CPU seconds are those of the work.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from bench_speed import ERROR, IMAGES, PER_PLAYER
from common import resnet56, write

import shaprune as sp
from shaprune.network.forward.calibration import Calibration
from shaprune.network.forward.row_runner import RowRunner
from shaprune.network.game.mask_derivatives import MaskDerivatives
from shaprune.values.stopping import evaluations_per_player, median_error_below

PROOFS: dict[tuple[type, str], str] = {
    (Calibration, "_batch_order"): "rows of a batch",
    (Calibration, "question"): "plain masked network",
    (RowRunner, "_prove_precision"): "fast ways",
    (RowRunner, "_prove_ways"): "fast ways",
    (MaskDerivatives, "_prove"): "derivatives",
}


def main() -> None:
    started = time.perf_counter()
    torch.set_num_threads(1)
    spent: Counter[str] = Counter()
    for (owner, name), what in PROOFS.items():
        setattr(owner, name, timed(getattr(owner, name), what, spent))
    model, data = resnet56()
    players = sp.find_players(model, data.test.inputs[:2])
    batches = data.held_out.take(IMAGES).batches()
    rule = median_error_below(ERROR) | evaluations_per_player(PER_PLAYER)
    results: dict[str, Any] = {"players": players.n}
    for precision in ("bfloat16", "float32"):
        spent.clear()
        options, clock = sp.options.Scoring(precision=precision), time.process_time()
        sp.score(model, players, batches, "fidelity", "control-variate", stop=rule, progress=False, options=options)
        whole = time.process_time() - clock
        results[precision] = {
            "CPU seconds of the run": round(whole, 1),
            "CPU seconds of proofs": {what: round(seconds, 2) for what, seconds in spent.items()},
            "share": round(spent.total() / whole, 4),
        }
        print(precision, results[precision], file=sys.stderr, flush=True)
    write("proof", results, started)


def timed(proof: Callable[..., Any], what: str, spent: Counter[str]) -> Callable[..., Any]:
    """A proof whose CPU seconds are added up."""

    @wraps(proof)
    def run(*given: Any) -> Any:
        clock = time.process_time()
        try:
            return proof(*given)
        finally:
            spent[what] += time.process_time() - clock

    return run


if __name__ == "__main__":
    main()

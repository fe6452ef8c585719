"""All of it in one call: find players, score, plan, prune, recover, measure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from shaprune.errors import InputError
from shaprune.measure import Measurement, compare
from shaprune.network.batches import Forward, Inputs
from shaprune.network.discovery import Filter, find_players
from shaprune.network.game import MAX_MEMORY
from shaprune.network.subject import Subject
from shaprune.network.worths import Evaluate, RowWorth, Worth
from shaprune.planning import Budget, Plan, plan
from shaprune.pruning import prune
from shaprune.recovery.steps import Step
from shaprune.recovery.steps import recover as run_steps
from shaprune.scoring import Scores, score


@dataclass(frozen=True, eq=False)
class Compressed:
    """What `compress` returns.

    Attributes:
        model: the pruned, recovered network.
        plan: who stayed.
        values: the scores behind the plan.
        measurements: ``"dense"``, ``"raw"`` (pruned, not recovered) and ``"pruned"`` networks, measured side by side.
        seconds: wall time per stage.
    """

    model: nn.Module
    plan: Plan
    values: Scores
    measurements: dict[str, Measurement]
    seconds: dict[str, float]


def compress(
    model: nn.Module,
    data: Iterable[Any],
    budget: Budget,
    *,
    example_inputs: Inputs,
    worth: str | RowWorth | Worth | Evaluate = "fidelity",
    recover: Sequence[str | Step] = ("refit",),
    include: Filter | Sequence[Filter] | None = None,
    exclude: Filter | Sequence[Filter] | None = None,
    allocation: str = "global",
    min_players: int = 1,
    min_width: int = 1,
    round_to: int = 1,
    max_removed: float | Mapping[str, float] = 1.0,
    sizes: tuple[float, float] = (0.5, 1.0),
    max_evaluations: int | None = None,
    test: Iterable[Any] | None = None,
    forward: Forward | None = None,
    max_memory: int = MAX_MEMORY,
    seed: int = 0,
    progress: bool | None = None,
) -> Compressed:
    """Make a trained network smaller; ``model`` is not changed.

    The defaults need no labels: players are scored by how far the output moves (fidelity) while at least half of a
    group is kept, and the consumers are refitted in closed form.

    Args:
        model: the dense network.
        data: batches to score and recover on, see `NetworkGame`; never the test set.
        budget: what may stay.
        example_inputs: inputs of one forward pass, batch first.
        worth, sizes, max_evaluations, forward, max_memory, progress: see `score`.
        recover: recovery steps, see `recover`; ``()`` for none.
        include, exclude: see `find_players`.
        allocation, min_players, min_width, round_to, max_removed: see `plan`.
        test: labelled batches on which accuracy is measured; None = not measured.
        seed: seed of everything random.

    Raises:
        InputError, GameError, SurgeryError: as the stages it calls.
    """
    if not isinstance(budget, Budget):
        raise InputError(f"budget is a {type(budget).__name__}; give sp.Budget(macs=0.5), for example")
    seconds: dict[str, float] = {}
    clock = time.perf_counter

    start = clock()
    batches = list(data)
    players = find_players(model, example_inputs, include=include, exclude=exclude)
    seconds["find_players"], start = clock() - start, clock()

    subject = None if isinstance(worth, Evaluate) else Subject(model, batches, forward)
    scores = score(
        model,
        players,
        subject,
        worth,
        max_evaluations=max_evaluations,
        seed=seed,
        sizes=sizes,
        forward=forward,
        max_memory=max_memory,
        progress=progress,
    )
    seconds["score"], start = clock() - start, clock()

    decided = plan(
        players,
        scores,
        budget,
        allocation,
        min_players=min_players,
        min_width=min_width,
        round_to=round_to,
        max_removed=max_removed,
    )
    seconds["plan"], start = clock() - start, clock()

    raw = prune(model, decided, example_inputs)
    seconds["prune"], start = clock() - start, clock()

    small = run_steps(raw, model, decided, batches, recover, forward=forward, seed=seed) if recover else raw
    seconds["recover"], start = clock() - start, clock()

    tests = None if test is None else list(test)
    measurements = compare({"dense": model, "raw": raw, "pruned": small}, example_inputs, tests)
    seconds["measure"] = clock() - start
    return Compressed(small, decided, scores, measurements, seconds)

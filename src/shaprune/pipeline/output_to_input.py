"""Scoring from the output to the input: each group is scored in the network whose later groups have been cut already.

The protocol of Ancona et al. 2020. The later players are physically removed, so the games get smaller on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from shaprune.errors import InputError
from shaprune.network.batches import Forward
from shaprune.network.discovery.find_players import find_players
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.worths import AnyWorth, resolve_worth
from shaprune.pipeline.prune import prune
from shaprune.planning.plan import Plan
from shaprune.players.players import Players, check_channels
from shaprune.values.result import Values

ScoreGroup = Callable[[nn.Module, Players, Calibration, AnyWorth, str], Values]


def score_output_to_input(
    model: nn.Module,
    players: Players,
    calibration: Calibration,
    worth: AnyWorth,
    remove: float,
    forward: Forward | None,
    score_group: ScoreGroup,
) -> dict[str, Values]:
    """Values of every group, the last group first; behind it the lowest ``remove`` share of each later group is gone.

    Args:
        model, players, calibration: the dense network.
        worth: a worth that compares with the dense network compares with the uncut one throughout.
        remove: share of each group that leaves before the group in front of it is scored.
        forward: see `NetworkGame`.
        score_group: scores one group of a (smaller) network.

    Raises:
        InputError: a share outside (0, 1), or players that are no channels.
    """
    if not 0 < remove < 1:
        raise InputError(f"remove is {remove!r}; it is the share of each group that leaves, strictly between 0 and 1")
    check_channels(players.groups, "layers='output-to-input'")
    evaluator, targets = resolve_worth(worth), calibration.targets
    if evaluator.reference == "dense":
        evaluator, targets = replace(evaluator, reference="targets", needs="anything"), calibration.outputs
    inputs = calibration.rows(torch.arange(min(2, calibration.n_examples)))
    kept = np.ones(players.n, dtype=bool)
    results = {}
    for group in reversed(players.groups):
        small = model if kept.all() else prune(model, Plan.from_coalition(players, kept), inputs)
        part = players if small is model else find_players(small, inputs, include=[m.module for m in group.producers])
        values = score_group(
            small, part, Calibration(small, [(calibration.inputs, targets)], forward), evaluator, group.name
        )
        results[group.name] = values
        leaving = min(round(remove * len(group)), len(group) - 1)
        kept[group.indices[values.ranking()[:leaving]]] = False
    return {group.name: results[group.name] for group in players.groups}

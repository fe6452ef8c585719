"""The certificate of a plan, from scores that were stopped by `shaprune.stopping.certified_cut`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shaprune.planning.allocation import value_density
from shaprune.players.players import Players
from shaprune.players.subset import Kept
from shaprune.values.certificate import Certificate, count_undecided, eps_of
from shaprune.values.result import Values

RANKED_OVER_GROUPS = ("global", "value")  # allocations with one ranking over all groups


def certify_plan(
    players: Players, scores: Mapping[str, Values], kept: Kept, allocation: str, resources: list[str]
) -> Certificate | None:
    """Compare the players that leave with those that stay, all groups of a plan together.

    Where a plan has one ranking over all groups, all players are compared, by what it ranks (``"global"``: value per
    unit of the limited resources, where the average player costs one unit); else those of each group.

    Args:
        players: the players of the dense network.
        scores: values by group.
        kept: (n,) True = stays.
        allocation, resources: how the plan ranked.

    Returns:
        None where the scores were not asked for a certificate.
    """
    values = [scores[group.name] for group in players.groups]
    asked = [found for v in values if (found := v.options.get("certified_cut")) is not None]
    if not values or len(asked) < len(values) or kept.all() or not kept.any():
        return None
    confidence = min(one["confidence"] for one in asked)
    value = np.concatenate([v.value for v in values])
    ends = np.concatenate([v.confidence_sequence(confidence, players.n) for v in values])
    if allocation == "global":
        value, *sides = (value_density(players, side, resources) for side in (value, *ends.T))
        ends = np.stack(sides, axis=1)
    eps = eps_of(value, asked[0]["eps"])
    scopes: list[NDArray[np.int64]] = (
        [np.arange(players.n)]
        if allocation in RANKED_OVER_GROUPS
        else [np.asarray(group.indices) for group in players.groups]
    )
    undecided = sum(count_undecided(ends[scope], ~kept[scope], eps) for scope in scopes)
    return Certificate(confidence, eps, undecided)

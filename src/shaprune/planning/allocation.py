"""Allocation of removals to groups: an order over all players, and the coalition after k steps. NumPy only.

A *path* is a list of steps down, from all players to the smallest coalition that the limits allow; called with k, it
gives the coalition after the first k of them. The budget picks the k. What `shaprune.planning.curve_allocation` decides
from curves is no path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.planning.removal_sequences import RemovalStep
from shaprune.planning.resources import costs_per_player
from shaprune.players.players import Players
from shaprune.players.subset import Kept

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RemovalPath:
    """The way down: who leaves at each step; ``path(k)`` is who is left after ``k`` of them, or after all."""

    players: Players
    steps: tuple[RemovalStep, ...]

    def __call__(self, k: int) -> Kept:
        return all_except(self.players, self.steps[:k])


def value_density(players: Players, value: Floats, resources: Sequence[str]) -> Floats:
    """(n,) value per unit of the limited resources, each as a share of what all players cost of it.

    A player of negative value harms, so the more it costs the sooner it leaves: its value is multiplied instead.

    Raises:
        InputError: a resource that no player costs.
    """
    cost = np.zeros(players.n)
    for name in resources:
        each = costs_per_player(players, name)
        if not each.any():
            raise InputError(f"no player costs any {name} here, so that none can be saved; give Budget(players=...)")
        cost += each / each.sum()
    cost = cost / np.mean(cost)
    with np.errstate(divide="ignore", invalid="ignore"):  # a player that costs nothing and is worth something: last
        return np.asarray(np.where(value > 0, value / cost, value * cost), dtype=np.float64)


def smallest_coalition(players: Players, sequences: Sequence[Sequence[RemovalStep]]) -> Kept:
    """What is left after all steps."""
    return all_except(players, [step for sequence in sequences for step in sequence])


def by_value(players: Players, value: Floats, sequences: Sequence[Sequence[RemovalStep]]) -> RemovalPath:
    """Of all groups' steps the one with the least mean value first."""
    return _steps_by_key(
        players, sequences, [[float(value[step].mean()) for step in sequence] for sequence in sequences]
    )


def by_layer(players: Players, worth: Floats, sequences: Sequence[Sequence[RemovalStep]]) -> RemovalPath:
    """Each group keeps a share of its players in proportion to what the group as a whole is worth.

    Layers are the players, and a layer with a larger Shapley value gets a larger budget: the idea of SV-NUP (Sun et al.
    2025, arXiv 2505.01731), which sets sparsities of transformer layers. Here the share kept is ``t * worth / mean``,
    at most 1, with one t for all groups. A group that is worth nothing, or harms, leaves first.

    Args:
        players: the players of the dense network.
        worth: (groups,) the value of each group.
        sequences: per group.
    """
    owners = np.concatenate([np.full(len(g), i) for i, g in enumerate(players.groups)])
    positive = np.maximum(worth, 0)
    share = np.maximum(positive / positive.mean(), 1e-12) if positive.any() else np.ones(len(worth))
    dense = np.array([len(g) for g in players.groups], dtype=np.float64)
    keys = []
    for sequence in sequences:
        left, key = dense.copy(), []
        for step in sequence:
            np.subtract.at(left, owners[step], 1)
            groups = np.unique(owners[step])
            key.append(-float((left[groups] / dense[groups] / share[groups]).mean()))  # minus the t at which it leaves
        keys.append(key)
    return _steps_by_key(players, sequences, keys)


def uniform(players: Players, sequences: Sequence[Sequence[RemovalStep]]) -> RemovalPath:
    """The same share of every group: the k-th of all shares at which some group loses more."""
    gone = [
        np.cumsum([np.isin(step, group.indices).sum() for step in sequence])  # a step may take of other groups, too
        for group, sequence in zip(players.groups, sequences, strict=True)
    ]
    sizes = [len(group) for group in players.groups]
    shares = sorted({0.0, *(n / size for counts, size in zip(gone, sizes, strict=True) for n in counts.tolist())})

    steps: list[RemovalStep] = []
    before = [0] * len(sizes)
    for share in shares[1:]:
        now = [int((counts <= share * size + 1e-9).sum()) for counts, size in zip(gone, sizes, strict=True)]
        parts = [
            step for sequence, low, high in zip(sequences, before, now, strict=True) for step in sequence[low:high]
        ]
        steps.append(np.concatenate([np.empty(0, dtype=np.int64), *parts]))
        before = now
    return RemovalPath(players, tuple(steps))


def _steps_by_key(
    players: Players, sequences: Sequence[Sequence[RemovalStep]], keys: Sequence[Sequence[float]]
) -> RemovalPath:
    """The steps with the smallest keys first; a step comes no sooner than those before it in its group."""
    steps: list[tuple[float, RemovalStep]] = []
    for sequence, key in zip(sequences, keys, strict=True):
        steps += zip(np.maximum.accumulate(key).tolist() if key else [], sequence, strict=True)
    steps.sort(key=lambda ranked: ranked[0])
    return RemovalPath(players, tuple(step for _, step in steps))


def all_except(players: Players, steps: Sequence[RemovalStep]) -> Kept:
    """Everybody but those who leave in ``steps``."""
    kept = np.ones(players.n, dtype=bool)
    kept[np.concatenate([np.empty(0, dtype=np.int64), *steps])] = False
    return kept

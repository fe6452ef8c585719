"""Allocation by sensitivity curves: how many steps of its removal sequence each group takes. NumPy only.

A *sequence* is a removal sequence (see `shaprune.planning.removal_sequences`), an *option* a number of its steps. What
coalitions of several groups lose is taken as the sum of what each loses alone (to be checked by measurement, see
`shaprune.planning.refine`). Costs are exact; they are a sum over sequences where no layer is changed by two of them
(channels inside residual blocks, the hidden neurons of transformers, or a budget of players): then the choice is
optimal. Elsewhere (a chain of layers, where what a layer costs is a product of two widths) the knapsack is solved for
costs linearised at the last choice, until it repeats itself, and the result improved by exchanges between two sequences
at true costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shaprune.planning.knapsack import Floats, solve_knapsack
from shaprune.planning.removal_sequences import RemovalStep
from shaprune.planning.resources import costs, tabulate
from shaprune.planning.sensitivity_curves import Sensitivity
from shaprune.players.players import LayerCost, Players
from shaprune.players.subset import Kept

_MAX_LINEARISATIONS = 20  # linearisations
_MAX_EXCHANGES = 200  # improvements by exchanges
_MAX_STEPS_RETURNED = 4  # steps that the sequence which gives back goes up in an exchange
Ints = NDArray[np.int64]


class GroupOptions:
    """Costs and losses of all options of all sequences.

    Attributes:
        steps: per sequence, its steps.
        gone: per sequence, (options, groups) players of each group that have left.
        additive: whether costs are sums over sequences.
    """

    def __init__(self, players: Players, sequences: Sequence[Sequence[RemovalStep]], resources: Sequence[str]) -> None:
        self.players, self.resources = players, tuple(resources)
        self.steps = [list(sequence) for sequence in sequences if len(sequence)]
        self.gone = [self._gone(steps) for steps in self.steps]
        self.lost = [self._lost(steps) for steps in self.steps]
        touched = [name for lost in self.lost for name in lost]
        self.additive = len(touched) == len(set(touched)) or set(resources) <= {"players"}

    def _gone(self, steps: Sequence[RemovalStep]) -> Ints:
        each = [[int(np.isin(step, group.indices).sum()) for group in self.players.groups] for step in steps]
        return np.cumsum([[0] * len(self.players.groups), *each], axis=0)

    def _lost(self, steps: Sequence[RemovalStep]) -> dict[str, tuple[Ints, Ints]]:
        """Per layer (options,) channels that have left its inputs, and its outputs."""
        kept = np.ones(self.players.n, dtype=bool)
        widths = [self.players.widths(kept)]
        for step in steps:
            kept[step] = False
            widths.append(self.players.widths(kept))
        dense, last = widths[0], widths[-1]
        found = {}
        for name in (n for n in dense if dense[n] != last[n]):
            n_in, n_out = np.array([w[name] for w in widths], dtype=np.int64).T
            found[name] = (n_in[0] - n_in, n_out[0] - n_out)
        return found

    def losses(self, curves: Sensitivity) -> list[Floats]:
        """Per sequence, (options,) what its groups lose, each alone."""
        every = [curves[group.name] for group in self.players.groups]
        return [
            np.sum([curve.loss(gone[:, g]) for g, curve in enumerate(every) if gone[-1, g]], axis=0)
            for gone in self.gone
        ]

    def kept(self, choice: Sequence[int]) -> Kept:
        """The coalition of one option per sequence."""
        kept = np.ones(self.players.n, dtype=bool)
        for steps, option in zip(self.steps, choice, strict=True):
            for step in steps[:option]:
                kept[step] = False
        return kept

    def around(self, choice: Sequence[int]) -> list[Floats]:
        """Per sequence, (options, resources): what another option than in ``choice`` adds to the cost."""
        now = {name: [layer.n_in, layer.n_out] for name, layer in self.players.layers.items()}
        for lost, option in zip(self.lost, choice, strict=True):
            for name, (n_in, n_out) in lost.items():
                now[name][0] -= int(n_in[option])
                now[name][1] -= int(n_out[option])
        return [self._added(sequence, option, now) for sequence, option in enumerate(choice)]

    def _added(self, sequence: int, option: int, now: Mapping[str, Sequence[int]]) -> Floats:
        """(options, resources) of one sequence, see `around`."""
        gone = self.gone[sequence].sum(1)

        def of_layers(layer_cost: LayerCost, dense: float) -> Floats:
            added = np.zeros(len(gone))
            for name, (less_in, less_out) in self.lost[sequence].items():
                n_in, n_out = now[name][0] + less_in[option] - less_in, now[name][1] + less_out[option] - less_out
                cost = np.broadcast_to(layer_cost(self.players.layers[name], n_in, n_out), added.shape)
                added += cost - cost[option]
            return added

        found = tabulate(self.players, self.resources, of_layers, (gone[option] - gone).astype(np.float64))
        return np.stack([found[name] for name in self.resources], axis=1)


def allocate_by_curves(
    players: Players, sequences: Sequence[Sequence[RemovalStep]], curves: Sensitivity, limits: Mapping[str, float]
) -> Kept:
    """The coalition that meets the limits and loses the least by the curves; the smallest one must meet them.

    Args:
        players: the players of the dense network.
        sequences: who leaves one after the other, see `shaprune.planning.removal_sequences.removal_sequences`.
        curves: of all groups, along the same rankings.
        limits: what may stay, absolute, by resource.
    """
    options = GroupOptions(players, sequences, list(limits))
    losses = options.losses(curves)
    most = np.array(list(limits.values()), dtype=np.float64)
    now = [0] * len(options.steps)
    total = _total(options, now)
    if options.additive:
        chosen = solve_knapsack(losses, options.around(now), most - total)
        assert chosen is not None  # the smallest coalition meets the limits
        return options.kept(chosen.options)

    best = [len(steps) for steps in options.steps]
    seen: set[tuple[int, ...]] = set()
    slack = np.zeros(len(most))
    for _ in range(_MAX_LINEARISATIONS):
        found = solve_knapsack(losses, options.around(now), most - slack - total)
        now = best if found is None else list(found.options)
        total = _total(options, now)
        over = np.maximum(total - most, 0)
        if not over.any() and _loss(losses, now) < _loss(losses, best):
            best = now
        if tuple(now) in seen or found is None:
            break
        seen.add(tuple(now))
        slack = slack + over
    return options.kept(_improved_by_exchanges(options, losses, best, most))


def _loss(losses: Sequence[Floats], choice: Sequence[int]) -> float:
    return float(sum(loss[option] for loss, option in zip(losses, choice, strict=True)))


def _total(options: GroupOptions, choice: Sequence[int]) -> Floats:
    """(m,) the cost of the network with a choice."""
    found = costs(options.players, options.kept(choice))
    return np.array([found[name] for name in options.resources], dtype=np.float64)


def _improved_by_exchanges(
    options: GroupOptions, losses: Sequence[Floats], choice: Sequence[int], most: Floats
) -> Sequence[int]:
    """``choice``, improved as long as one sequence alone, or two sequences that exchange players, can lose less."""
    now = list(choice)
    for _ in range(_MAX_EXCHANGES):
        total, best = _total(options, now), (-1e-12 * (1 + abs(_loss(losses, now))), now)
        for sequence, option in enumerate(now):
            added = options.around(now)[sequence]
            for up in range(max(0, option - _MAX_STEPS_RETURNED), option):
                moved = [*now[:sequence], up, *now[sequence + 1 :]]
                gain, room = losses[sequence][up] - losses[sequence][option], most - total - added[up]
                for other, (loss, cost) in enumerate(zip(losses, options.around(moved), strict=True)):
                    if other == sequence:
                        continue
                    change = np.where((cost <= room).all(1), gain + loss - loss[now[other]], np.inf)
                    to = int(change.argmin())
                    if change[to] < best[0]:
                        best = (float(change[to]), [*moved[:other], to, *moved[other + 1 :]])
        if best[1] is now:
            break
        now = best[1]
    return now

"""Plans from sensitivity curves: how far each group goes down its ladder so that the least is lost. NumPy only.

A *lane* is a ladder (see `shaprune.limits`), an *option* a number of its steps. What coalitions of several groups lose
is taken as the sum of what each loses alone (to be checked by measurement, see `shaprune.swaps`). Costs are exact; they
are a sum over lanes where no layer is changed by two of them (channels inside residual blocks, the hidden neurons of
transformers, or a budget of players): then the choice is optimal. Elsewhere (a chain of layers, where what a layer
costs is a product of two widths) the knapsack is solved for costs linearised at the last choice, until it repeats
itself, and the result improved by exchanges between two lanes at true costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.budget import Kept, costs
from shaprune.knapsack import Floats, choose
from shaprune.limits import Step
from shaprune.network.layers import Layer
from shaprune.network.players import Players
from shaprune.sensitivities import Sensitivity

_ROUNDS = 20  # linearisations
_EXCHANGES = 200  # improvements by exchanges
_REACH = 4  # steps that the lane which gives back goes up in an exchange
Ints = NDArray[np.int64]
_COST: dict[str, Any] = {  # arrays of widths -> costs; players are no layers
    "macs": lambda layer, n_in, n_out: layer.macs(n_in, n_out),
    "params": lambda layer, n_in, n_out: layer.params(n_in, n_out),
    "bytes": lambda layer, n_in, n_out: layer.bytes(n_in, n_out),
    "activations": lambda layer, n_in, n_out: layer.activations(n_out),
}


class Lanes:
    """Costs and losses of all options of all lanes.

    Attributes:
        steps: per lane, its steps.
        gone: per lane, (options, groups) players of each group that have left.
        additive: whether costs are sums over lanes.
    """

    def __init__(self, players: Players, ladders: Sequence[Sequence[Step]], resources: Sequence[str]) -> None:
        self.players, self.resources = players, tuple(resources)
        self.steps = [list(ladder) for ladder in ladders if len(ladder)]
        self.gone = [self._gone(steps) for steps in self.steps]
        self.lost = [self._lost(steps) for steps in self.steps]
        touched = [name for lost in self.lost for name in lost]
        self.additive = len(touched) == len(set(touched)) or set(resources) <= {"players"}

    def _gone(self, steps: Sequence[Step]) -> Ints:
        each = [[int(np.isin(step, group.indices).sum()) for group in self.players.groups] for step in steps]
        return np.cumsum([[0] * len(self.players.groups), *each], axis=0)

    def _lost(self, steps: Sequence[Step]) -> dict[str, tuple[Ints, Ints]]:
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
        """Per lane, (options,) what its groups lose, each alone."""
        every = [curves[group.name] for group in self.players.groups]
        return [
            np.sum([curve.loss(gone[:, g]) for g, curve in enumerate(every) if gone[-1, g]], axis=0)
            for gone in self.gone
        ]

    def kept(self, choice: Sequence[int]) -> Kept:
        """The coalition of one option per lane."""
        kept = np.ones(self.players.n, dtype=bool)
        for steps, option in zip(self.steps, choice, strict=True):
            for step in steps[:option]:
                kept[step] = False
        return kept

    def around(self, choice: Sequence[int]) -> list[Floats]:
        """Per lane, (options, resources): what is added to the cost when it takes another option than in ``choice``."""
        now = {name: [layer.n_in, layer.n_out] for name, layer in self.players.layers.items()}
        for lost, option in zip(self.lost, choice, strict=True):
            for name, (n_in, n_out) in lost.items():
                now[name][0] -= int(n_in[option])
                now[name][1] -= int(n_out[option])
        return [
            np.stack([self._added(r, lane, option, now) for r in self.resources], axis=1)
            for lane, option in enumerate(choice)
        ]

    def _added(self, resource: str, lane: int, option: int, now: Mapping[str, Sequence[int]]) -> Floats:
        if resource == "players":
            gone = self.gone[lane].sum(1)
            return np.asarray(gone[option] - gone, dtype=np.float64)
        added = np.zeros(len(self.gone[lane]))
        for name, (less_in, less_out) in self.lost[lane].items():
            layer: Layer = self.players.layers[name]
            n_in, n_out = now[name][0] + less_in[option] - less_in, now[name][1] + less_out[option] - less_out
            cost = np.broadcast_to(_COST[resource](layer, n_in, n_out), added.shape)
            added += cost - cost[option]
        return added


def along_curves(
    players: Players, ladders: Sequence[Sequence[Step]], curves: Sensitivity, limits: Mapping[str, float]
) -> Kept:
    """The coalition that meets the limits and loses the least by the curves; the smallest one must meet them.

    Args:
        players: the players of the dense network.
        ladders: who leaves one after the other, see `shaprune.limits.ladders`.
        curves: of all groups, along the same rankings.
        limits: what may stay, absolute, by resource.
    """
    lanes = Lanes(players, ladders, list(limits))
    losses = lanes.losses(curves)
    most = np.array(list(limits.values()), dtype=np.float64)
    now = [0] * len(lanes.steps)
    total = _total(lanes, now)
    if lanes.additive:
        chosen = choose(losses, lanes.around(now), most - total)
        assert chosen is not None  # the smallest coalition meets the limits
        return lanes.kept(chosen.options)

    best = [len(steps) for steps in lanes.steps]
    seen: set[tuple[int, ...]] = set()
    slack = np.zeros(len(most))
    for _ in range(_ROUNDS):
        found = choose(losses, lanes.around(now), most - slack - total)
        now = best if found is None else list(found.options)
        total = _total(lanes, now)
        over = np.maximum(total - most, 0)
        if not over.any() and _loss(losses, now) < _loss(losses, best):
            best = now
        if tuple(now) in seen or found is None:
            break
        seen.add(tuple(now))
        slack = slack + over
    return lanes.kept(_exchanged(lanes, losses, best, most))


def _loss(losses: Sequence[Floats], choice: Sequence[int]) -> float:
    return float(sum(loss[option] for loss, option in zip(losses, choice, strict=True)))


def _total(lanes: Lanes, choice: Sequence[int]) -> Floats:
    """(m,) the cost of the network with a choice."""
    found = costs(lanes.players, lanes.kept(choice))
    return np.array([found[name] for name in lanes.resources], dtype=np.float64)


def _exchanged(lanes: Lanes, losses: Sequence[Floats], choice: Sequence[int], most: Floats) -> Sequence[int]:
    """``choice``, improved as long as one lane alone, or two lanes that exchange players, can lose less."""
    now = list(choice)
    for _ in range(_EXCHANGES):
        total, best = _total(lanes, now), (-1e-12 * (1 + abs(_loss(losses, now))), now)
        for lane, option in enumerate(now):
            added = lanes.around(now)[lane]
            for up in range(max(0, option - _REACH), option):
                moved = [*now[:lane], up, *now[lane + 1 :]]
                gain, room = losses[lane][up] - losses[lane][option], most - total - added[up]
                for other, (loss, cost) in enumerate(zip(losses, lanes.around(moved), strict=True)):
                    if other == lane:
                        continue
                    change = np.where((cost <= room).all(1), gain + loss - loss[now[other]], np.inf)
                    to = int(change.argmin())
                    if change[to] < best[0]:
                        best = (float(change[to]), [*moved[:other], to, *moved[other + 1 :]])
        if best[1] is now:
            break
        now = best[1]
    return now

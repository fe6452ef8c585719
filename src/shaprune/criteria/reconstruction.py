"""Reconstruction loss: the error of the refitted consumers of a group without some of its players.

The worth of a coalition is minus the least-squares error of the consumers' outputs when their weights may be fitted
anew to the inputs that are left. With the Gram matrix of the inputs it is known in closed form for every coalition, and
so is the player whose removal costs least: greedy backward elimination of this game is the optimal brain surgeon
(Hassibi & Stork 1993) on whole players, as in ZipLM (Kurtic et al. 2023), here with inputs centred by an intercept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.errors import InputError
from shaprune.network.batches import Inputs
from shaprune.network.borrow import borrowed
from shaprune.network.forward.calibration import FORWARD_BATCH, Calibration
from shaprune.network.hooks import hooked
from shaprune.network.layers.layer_inputs import input_of
from shaprune.network.layers.normal_equations import (
    NormalEquations,
    add_ridge,
    as_batches,
    can_solve,
    design_rows,
    exact,
    has_bias,
    unpadded_positions,
    weights_with_bias,
    write_weights,
)
from shaprune.players.players import Group, Players

RIDGE = 1e-3
_MAX_INPUTS = 8192  # inputs of a consumer whose Gram matrix is still held: half a gigabyte
_MAX_GRAM_ENTRIES = 1 << 27  # numbers in all Gram matrices that are held at once: a gigabyte


@dataclass
class _Consumer:
    """One consumer, or one group of a grouped convolution, while players leave.

    Attributes:
        inverse: (in, in) of the ridged Gram matrix of the inputs that are left.
        weight: (in, out) fitted to these.
        owned: per player, which inputs are its own.
        energy: mean square of the outputs; errors are relative to it.
    """

    inverse: Tensor
    weight: Tensor
    owned: list[Tensor]
    energy: float

    def costs(self, players: Sequence[int]) -> NDArray[np.float64]:
        """What it costs to remove each of some players next."""
        costs = np.zeros(len(players))
        widths = np.array([len(self.owned[p]) for p in players])
        for width in np.unique(widths[widths > 0]):
            some = np.flatnonzero(widths == width)
            inputs = torch.stack([self.owned[players[i]] for i in some.tolist()])  # (some, width)
            blocks, rows = self.inverse[inputs[:, :, None], inputs[:, None, :]], self.weight[inputs]
            costs[some] = (rows.conj() * torch.linalg.solve(blocks, rows)).real.sum((1, 2)).cpu().numpy()
        return costs / self.energy

    def remove(self, player: int) -> None:
        """Fit anew without a player."""
        gone = self.owned[player]
        if not len(gone):
            return
        block, columns = self.inverse[gone][:, gone], self.inverse[:, gone]
        self.weight.addmm_(columns, torch.linalg.solve(block, self.weight[gone]), alpha=-1)
        self.inverse.addmm_(columns, torch.linalg.solve(block, self.inverse[gone]), alpha=-1)


@dataclass
class RefittedConsumers:
    """The consumers of one group, fitted anew in closed form as its players leave.

    Attributes:
        group: the players.
        consumers: per consumer, one part for each group of a grouped convolution, one for other layers.
    """

    group: Group
    consumers: dict[str, list[_Consumer]]

    def costs(self, players: Sequence[int]) -> NDArray[np.float64]:
        """Share of the consumers' outputs (of several, the sum) that is lost when each of some players leaves next."""
        return np.asarray(sum(part.costs(players) for parts in self.consumers.values() for part in parts))

    def remove(self, player: int) -> None:
        """Fit anew without a player, counted within the group."""
        for parts in self.consumers.values():
            for part in parts:
                part.remove(player)

    def install(self, model: nn.Module) -> None:
        """Write the fitted weights, zeros for inputs that are gone, into the consumers of ``model``."""
        with torch.no_grad():
            for name, parts in self.consumers.items():
                write_weights(model.get_submodule(name), torch.stack([part.weight for part in parts]))


def refit_consumers(calibration: Calibration, players: Players) -> Iterator[RefittedConsumers]:
    """Each group with its consumers, fitted to what they read and give in the dense network.

    Raises:
        InputError: a consumer that is no linear layer and no convolution in one or two dimensions, one that is too
            wide for its Gram matrix, or one that does not run on the data.
    """
    for group in players.groups:
        for consumer in group.consumers:
            _check(calibration.model.get_submodule(consumer.module), consumer.module, group)
    for group, equations in _grams(calibration, players):
        names = [m.module for m in group.consumers]
        yield RefittedConsumers(
            group, {name: list(_consumers(calibration.model, players, group, name, equations)) for name in names}
        )


def reconstruction_losses(calibration: Calibration, players: Players) -> NDArray[np.float64]:
    """(n,) share of the consumers' outputs that is lost when a player leaves, after those of its group before it.

    The players of a group leave one by one, each time the one whose loss is least once the consumers are refitted; of
    several consumers the shares are added. A value is never below that of a player that left before.

    Raises:
        InputError: as `refit_consumers`.
    """
    values = np.empty(players.n)
    for fitted in refit_consumers(calibration, players):
        alive, last = list(range(len(fitted.group))), 0.0
        while alive:
            costs = fitted.costs(alive)
            least = int(np.argmin(costs))
            player = alive.pop(least)
            last = max(float(costs[least]), float(np.nextafter(last, np.inf)))
            values[fitted.group.indices[player]] = last
            if alive:
                fitted.remove(player)
    return values


def _check(layer: nn.Module, name: str, group: Group) -> None:
    if not can_solve(layer):
        raise InputError(
            f"a refit in closed form needs linear layers and 1D or 2D convolutions behind a group, and {name} "
            f"behind {group.name!r} is a {type(layer).__name__}; exclude the group, or do without the refit "
            "(another criterion, refit=False)"
        )
    width = weights_with_bias(layer).shape[1]
    if width > _MAX_INPUTS:
        raise InputError(
            f"a refit in closed form holds a matrix of {width} x {width} numbers for {name}, which is too much; "
            f"exclude {group.name!r}, or do without the refit (another criterion, refit=False)"
        )


def _grams(calibration: Calibration, players: Players) -> Iterator[tuple[Group, Mapping[str, NormalEquations]]]:
    """Each group with the equations of its consumers: what they read and give in the dense network.

    The data are run once for as many groups as have matrices that fit together.
    """
    waiting: list[Group] = []
    size = 0
    for group in players.groups:
        widths = [weights_with_bias(calibration.model.get_submodule(m.module)).shape[:2] for m in group.consumers]
        more = sum(groups * width**2 for groups, width in widths)
        if waiting and size + more > _MAX_GRAM_ENTRIES:
            yield from _with_equations(calibration, waiting)
            waiting, size = [], 0
        waiting.append(group)
        size += more
    yield from _with_equations(calibration, waiting)


def _with_equations(
    calibration: Calibration, groups: Sequence[Group]
) -> Iterator[tuple[Group, Mapping[str, NormalEquations]]]:
    found = _collected(calibration, list(dict.fromkeys(m.module for g in groups for m in g.consumers)))
    yield from ((group, found) for group in groups)


def _collected(calibration: Calibration, names: Sequence[str]) -> dict[str, NormalEquations]:
    found = {name: NormalEquations() for name in names}
    layers = {name: calibration.model.get_submodule(name) for name in names}
    inputs: Inputs = None

    def hook_of(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            x = input_of(args, kwargs)
            if x is None:
                return
            x, y = as_batches(layer, x, output)
            for rows in design_rows(layer, x, y, unpadded_positions(inputs, x)):
                found[name].add(*rows)

        return hook

    hooks = (layers[name].register_forward_hook(hook_of(name), with_kwargs=True) for name in names)
    with borrowed(calibration.model), torch.no_grad(), hooked(hooks):
        for rows in torch.arange(calibration.n_examples).split(FORWARD_BATCH):
            inputs = calibration.rows(rows)
            calibration.forward(calibration.model, inputs)
    return found


def _consumers(
    model: nn.Module, players: Players, group: Group, name: str, equations: Mapping[str, NormalEquations]
) -> Iterator[_Consumer]:
    """One per group of the convolution ``name``; one for a linear layer."""
    layer, member = model.get_submodule(name), next(m for m in group.consumers if m.module == name)
    sums, weights = equations[name], exact(weights_with_bias(layer).detach())
    if not has_bias(layer):
        sums, weights = sums.without_intercept(), weights[:, :-1]
    if sums.gram is None:
        raise InputError(
            f"{name} behind {group.name!r} does not run on the data, so nothing is known of its inputs; add examples "
            "that take the way through it, or exclude the group"
        )
    grams = add_ridge(sums.gram / sums.rows, RIDGE)
    owners = member.owners(players.layers[name].n_in, 0, len(group)).reshape(len(grams), -1)
    energy = max(float(sums.energy) / sums.rows, 1e-30)
    for gram, weight, own in zip(grams, weights, owners, strict=True):
        kernel = (len(gram) - has_bias(layer)) // len(own)
        inputs = np.repeat(own, kernel)
        owned = [torch.from_numpy(np.flatnonzero(inputs == p)).to(gram.device) for p in range(len(group))]
        yield _Consumer(torch.linalg.inv(gram), weight.clone(), owned, energy)

"""Gradients of an example's worth at the dense network, by the masks at the consumers' inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shaprune.errors import InputError
from shaprune.network.borrow import borrowed
from shaprune.network.forward.calibration import FORWARD_BATCH, Calibration
from shaprune.network.game.worths import AnyWorth, Worth, apply_row_worth, reference_for, resolve_row_worth
from shaprune.network.removal.masks import ConsumerInputMask, consumer_input_masks
from shaprune.players.players import Players

Derive = Callable[[Tensor, list[Tensor]], Tensor]
_NO_SECOND = "criterion 'second_order' needs second derivatives, which this model does not have: {}"


def gate_gradients(calibration: Calibration, players: Players, worth: AnyWorth) -> NDArray[np.float64]:
    """(N, n) gradient of each example's worth with respect to the mask, at the full coalition.

    It is the sum over a player's channels and positions of activation times gradient (Molchanov et al. 2017): to first
    order, what the worth loses when this player leaves.

    Raises:
        InputError: the worth has no gradient, or a zero one at the dense network.
    """

    def derive(worths: Tensor, masks: list[Tensor]) -> Tensor:
        return torch.cat(torch.autograd.grad(worths.sum(), masks, materialize_grads=True), 1)

    input_masks = consumer_input_masks(players, players.groups, calibration.outputs.device)
    return differentiate_batches(
        calibration, players, input_masks, differentiable_worth(worth), derive, rows=FORWARD_BATCH // 2
    )


def second_order(calibration: Calibration, players: Players, worth: AnyWorth) -> NDArray[np.float64]:
    """(N, n) Shapley values of each group's game, with the worth replaced by its second-order expansion.

    Around the full coalition m = 1, with gradient g and Hessian H by the masks, the expansion is the quadratic game
    ``v(m) = v(1) + g (m - 1) + (m - 1) H (m - 1) / 2``. As a polynomial in m its linear coefficients are ``g - H 1``;
    m_i^2 = m_i gives each player its own H_ii / 2, and each pair shares its term H_ij m_i m_j equally. So

        phi = g - H 1 + diag(H) / 2 + (H 1 - diag(H)) / 2 = g - H 1 / 2,

    exact where the worth is quadratic in the masks. In terms of the loss these are the ``-g + H 1 / 2`` of Model
    Shapley (NeurIPS 2025), whose players are single parameters. Each group plays alone, the others stay whole: one
    Hessian-vector product per group and batch.

    Raises:
        InputError: the worth has no gradient, or an operation of the model has no second derivative.
    """

    def derive(worths: Tensor, masks: list[Tensor]) -> Tensor:
        first = torch.autograd.grad(worths.sum(), masks, create_graph=True, materialize_grads=True)
        _check_twice(first)
        return torch.cat([g.detach() - _hessian_row_sums(g, mask) / 2 for g, mask in zip(first, masks, strict=True)], 1)

    input_masks = consumer_input_masks(players, players.groups, calibration.outputs.device)
    return differentiate_batches(
        calibration, players, input_masks, resolve_row_worth(worth), derive, rows=FORWARD_BATCH // 8
    )  # graphs are large


def _check_twice(gradients: Sequence[Tensor]) -> None:
    """Refuse operations marked as differentiable once: torch takes their second derivative for zero."""
    stack = [g.grad_fn for g in gradients]
    met = set()
    while stack:
        node = stack.pop()
        if node is not None and node not in met:
            if node.name().endswith("::Error"):
                raise InputError(_NO_SECOND.format("an operation is marked once_differentiable"))
            met.add(node)
            stack += [source for source, _ in node.next_functions]


def _hessian_row_sums(gradient: Tensor, mask: Tensor) -> Tensor:
    """Row sums of each row's Hessian: rows do not depend on each other, so one product serves them all."""
    if not gradient.requires_grad:
        return torch.zeros_like(gradient)  # the worth is linear in these masks
    try:
        return torch.autograd.grad(gradient.sum(), mask, retain_graph=True, materialize_grads=True)[0]
    except RuntimeError as error:
        raise InputError(_NO_SECOND.format(error)) from error


def differentiable_worth(worth: AnyWorth) -> Worth:
    """The worth, if its gradient at the dense network can rank anything.

    Raises:
        InputError: it compares with the dense network's own outputs, so the dense network is its maximum.
    """
    chosen = resolve_row_worth(worth)
    if chosen.reference == "dense":
        raise InputError(
            f"worth {chosen.name!r} is at its maximum at the dense network, so its gradient is zero and ranks "
            "nothing; take worth='cross_entropy', or method='second_order'"
        )
    return chosen


def differentiate_batches(
    calibration: Calibration,
    players: Players,
    input_masks: Sequence[ConsumerInputMask],
    worth: Worth,
    derive: Derive,
    *,
    rows: int,
) -> NDArray[np.float64]:
    """(N, n) what ``derive`` makes of each batch.

    Args:
        calibration: the dense network, which comes back untouched, and its examples.
        players: of all groups.
        input_masks: of all groups.
        worth: with a gradient.
        derive: ``(worths (rows,), masks) -> (rows, n)``; the masks are all ones, (rows, players) for each group.
        rows: examples per batch.

    Raises:
        InputError: the worth has no gradient, or the examples of a batch meet.
    """
    calibration.check_apart("a criterion")
    reference = worth_reference(calibration, worth)
    masks: list[Tensor] = []
    gates = [_GroupInputMask.before(input_mask, players, masks) for input_mask in input_masks]
    parts = []
    with borrowed(calibration.model):
        with torch.no_grad():
            runner, _ = calibration.runner(gates, calibration.question(gates))
        for batch in torch.arange(calibration.n_examples, device=reference.device).split(
            rows if runner.rows_apart else 1
        ):
            with torch.no_grad():
                runner, state = calibration.ready(runner, batch)
            with torch.enable_grad():
                masks[:] = [
                    torch.ones(len(batch), len(g), device=batch.device).requires_grad_() for g in players.groups
                ]
                worths = apply_row_worth(worth, runner.run(state, torch.cat(masks, 1)), reference[batch])
                check_differentiable(worth, worths)
                parts.append(derive(worths, masks).detach().double().cpu().numpy())
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class _GroupInputMask(ConsumerInputMask):
    """An input mask that only masks of its own groups reach, so that a derivative by these does not pass the others.

    Attributes:
        input_mask: what masks the activations.
        masks: one per group, shared by all gates; while there are none, the given mask is used.
        own: whether the mask reads a group, for every group.
    """

    input_mask: ConsumerInputMask
    masks: list[Tensor]
    own: list[bool]

    @staticmethod
    def before(input_mask: ConsumerInputMask, players: Players, masks: list[Tensor]) -> _GroupInputMask:
        owners = input_mask.owners.cpu().numpy()
        own = [bool(np.isin(owners, group.indices).any()) for group in players.groups]
        return _GroupInputMask(
            input_mask.module, input_mask.n_players, input_mask.owners, input_mask.last, input_mask, masks, own
        )

    def apply(self, x: Tensor, mask: Tensor) -> Tensor:
        parts = [m if own else m.detach() for m, own in zip(self.masks, self.own, strict=False)]
        return self.input_mask.apply(x, torch.cat(parts, 1) if parts else mask)


def check_differentiable(worth: Worth, worths: Tensor) -> None:
    """Check that worths can be differentiated.

    Raises:
        InputError: they cannot (accuracy).
    """
    if not worths.requires_grad:
        raise InputError(
            f"worth {worth.name!r} has no gradient; take worth='cross_entropy', or a criterion that needs none"
        )


def worth_reference(calibration: Calibration, worth: Worth) -> Tensor:
    """(N, ...) what the worth compares outputs with.

    Raises:
        InputError: the targets are missing, or do not fit.
    """
    return reference_for(worth, calibration.targets, calibration.outputs)[0]

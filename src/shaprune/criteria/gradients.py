"""Gradients of an example's worth at the dense network, by the masks at the consumers' inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shaprune.errors import GameError, InputError
from shaprune.network.borrow import borrowed
from shaprune.network.disk_buffer import is_out_of_memory
from shaprune.network.forward.cached_state import CachedState, gather_rows
from shaprune.network.forward.calibration import FORWARD_BATCH, Calibration
from shaprune.network.forward.runner import Runner
from shaprune.network.game.fingerprint import few_digits
from shaprune.network.game.worth_differences import HIDDEN, WorthDifferences
from shaprune.network.game.worths import AnyWorth, Worth, apply_row_worth, is_smooth, reference_for, resolve_row_worth
from shaprune.network.removal.mask_sites import channel_masks
from shaprune.network.removal.masks import ConsumerInputMask, MaskSite, UnevenRowsError
from shaprune.players.players import Players

Derive = Callable[[Tensor, list[Tensor], Tensor], Tensor]  # worths (rows,), masks, examples (rows,)
_WITHOUT = "take a criterion that needs none, such as 'activation_mean', or method='permutation'"
_NO_SECOND = "criterion 'second_order' needs second derivatives, which this model does not have: {}"


def gate_gradients(calibration: Calibration, players: Players, worth: AnyWorth) -> NDArray[np.float64]:
    """(N, n) gradient of each example's worth with respect to the mask, at the full coalition.

    It is the sum over a player's channels and positions of activation times gradient (Molchanov et al. 2017): to first
    order, what the worth loses when this player leaves.

    Raises:
        InputError: the worth has no gradient, or a zero one at the dense network.
    """

    def derive(worths: Tensor, masks: list[Tensor], examples: Tensor) -> Tensor:
        return torch.cat(torch.autograd.grad(worths.sum(), masks, materialize_grads=True), 1)

    sites = channel_masks(players, players.groups, calibration.outputs.device)
    return differentiate_batches(
        calibration, players, sites, differentiable_worth(worth), derive, rows=FORWARD_BATCH // 2
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

    def derive(worths: Tensor, masks: list[Tensor], examples: Tensor) -> Tensor:
        first = torch.autograd.grad(worths.sum(), masks, create_graph=True, materialize_grads=True)
        _check_twice(first)
        return torch.cat([g.detach() - _hessian_row_sums(g, mask) / 2 for g, mask in zip(first, masks, strict=True)], 1)

    sites = channel_masks(players, players.groups, calibration.outputs.device)
    return differentiate_batches(
        calibration, players, sites, resolve_row_worth(worth), derive, rows=FORWARD_BATCH // 8
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
    sites: Sequence[MaskSite],
    worth: Worth,
    derive: Derive,
    *,
    rows: int,
) -> NDArray[np.float64]:
    """(N, n) what ``derive`` makes of each batch.

    Args:
        calibration: the dense network, which comes back untouched, and its examples.
        players: of all groups.
        sites: the masks of all groups.
        worth: with a gradient.
        derive: ``(worths (rows,), masks, examples (rows,)) -> (rows, n)``; the masks are all ones, (rows, players) for
            each group.
        rows: examples per batch.

    Raises:
        InputError: the worth has no gradient, or the examples of a batch meet.
    """
    calibration.check_apart("a criterion")
    reference = worth_reference(calibration, worth)
    masks: list[Tensor] = []
    gates = [_by_groups(site, players, masks) for site in sites]
    found_any = False  # a batch may take a way past all of the masks

    def forward(runner: Runner, batch: Tensor) -> Tensor:
        with torch.no_grad():
            runner, state = ready_apart(calibration, runner, batch)
        masks[:] = [torch.ones(len(batch), len(g), device=batch.device).requires_grad_() for g in players.groups]
        return apply_row_worth(worth, runner.run(state, torch.cat(masks, 1)), reference[batch])

    def derived(runner: Runner, batch: Tensor) -> Tensor:
        nonlocal found_any
        with torch.enable_grad():
            worths = forward(runner, batch)
            if not worths.requires_grad:
                return torch.zeros(len(batch), players.n, dtype=torch.float64)
            found = derive(worths, masks, batch).detach().double().cpu()
        if not found_any:
            found_any = True
            _check_seen(calibration, runner, batch[:1], forward, derive, masks, worth, reference)
        return found

    with borrowed(calibration.model):
        try:
            found = over_batches(calibration, gates, derived, rows)
        except RuntimeError as error:
            if isinstance(error, GameError) or is_out_of_memory(error):
                raise
            raise InputError(
                f"what lies behind the masks has no derivatives ({str(error).splitlines()[0]}); {_WITHOUT}"
            ) from error
    if not found_any:
        check_differentiable(worth, torch.zeros(()))
    return found


def _check_seen(
    calibration: Calibration,
    runner: Runner,
    example: Tensor,
    forward: Callable[[Runner, Tensor], Tensor],
    derive: Derive,
    masks: list[Tensor],
    worth: Worth,
    reference: Tensor,
) -> None:
    """Compare the derivatives by the masks of one example with differences of worths.

    Raises:
        InputError: they differ.
    """
    if few_digits(calibration.model):
        return
    with torch.enable_grad():
        worths = forward(runner, example)
        if not worths.requires_grad:
            return
        gradients = torch.autograd.grad(worths.sum(), masks, retain_graph=True, materialize_grads=True)
        slopes = torch.cat(gradients, 1)[0]
        derive(worths, masks, example)  # which drops what it has kept of this run
    masks.clear()  # from here on, masks are those that are given
    with torch.no_grad():
        runner, state = calibration.ready(runner, example)

    def worths_of(given: Tensor) -> Tensor:
        again = torch.zeros(len(given), dtype=torch.int64, device=example.device)
        return apply_row_worth(worth, runner.run(gather_rows(state, again), given), reference[example[again]])

    outputs = calibration.outputs[example]
    off = WorthDifferences(worths_of, torch.ones_like(slopes), outputs).deviation(slopes)
    if off is not None:
        raise InputError(f"{HIDDEN.format(off)}; {_WITHOUT}")


def ready_apart(calibration: Calibration, runner: Runner, batch: Tensor) -> tuple[Runner, CachedState]:
    """`Calibration.ready` for the examples (B,) of a batch, each of which must keep rows of its own.

    Raises:
        UnevenRowsError: what runs these examples cannot keep them apart; run them one by one.
    """
    runner, state = calibration.ready(runner, batch)
    if len(batch) > 1 and not runner.rows_apart:
        raise UnevenRowsError("on these examples they are not where they are on others")
    return runner, state


def over_batches(
    calibration: Calibration, sites: Sequence[MaskSite], of: Callable[[Runner, Tensor], Tensor], rows: int
) -> NDArray[np.float64]:
    """(N, n) what ``of`` gives for batches of examples, with what runs them; a model that is borrowed.

    Args:
        calibration: the dense network and its examples.
        sites: where the masks stand.
        of: ``(runner, examples (B,)) -> (B, n)``.
        rows: examples per batch; 1 where rows of a batch cannot be masked apart.
    """

    def all_of(runner: Runner) -> NDArray[np.float64]:
        every = torch.arange(calibration.n_examples, device=calibration.outputs.device)
        found = [of(runner, batch) for batch in every.split(rows if runner.rows_apart else 1)]
        return torch.cat(found).double().cpu().numpy()

    with torch.no_grad():
        runner, _ = calibration.runner(sites, calibration.question(sites))
    try:
        return all_of(runner)
    except UnevenRowsError as error:
        if not runner.rows_apart:
            raise
        because = f"one coalition at a time, because rows of a batch cannot be masked apart: {error}"
        return all_of(calibration.one_by_one(sites, None, because)[0])


@dataclass(frozen=True)
class _GroupMasks:
    """Masks of groups, of which only some are to be reached by a derivative.

    Attributes:
        masks: one per group, shared by all gates; while there are none, the given mask is used.
        own: whether a site reads a group, for every group.
    """

    masks: list[Tensor]
    own: list[bool]

    def joined(self, mask: Tensor) -> Tensor:
        """One mask (rows, n) that passes derivatives to the site's own groups alone."""
        parts = [m if own else m.detach() for m, own in zip(self.masks, self.own, strict=False)]
        return torch.cat(parts, 1) if parts else mask


@dataclass(frozen=True, eq=False)
class _GroupSite(MaskSite):
    """A site that only masks of its own groups reach, so that a derivative by these does not pass the others."""

    site: MaskSite
    groups: _GroupMasks

    def attach(self, model: nn.Module, mask: Tensor) -> list[RemovableHandle]:
        return self.site.attach(model, self.groups.joined(mask))


@dataclass(frozen=True, eq=False)
class _GroupInputMask(ConsumerInputMask):
    """The same, for the input of a consumer."""

    site: ConsumerInputMask
    groups: _GroupMasks

    def apply(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.site.apply(x, self.groups.joined(mask))


def _by_groups(site: MaskSite, players: Players, masks: list[Tensor]) -> MaskSite:
    owners = site.owners.cpu().numpy()
    groups = _GroupMasks(masks, [bool(np.isin(owners, group.indices).any()) for group in players.groups])
    if isinstance(site, ConsumerInputMask):
        return _GroupInputMask(site.module, site.n_players, site.owners, site.last, site, groups)
    return _GroupSite(site.module, site.n_players, site.owners, site, groups)


def check_differentiable(worth: Worth, worths: Tensor) -> None:
    """Check that worths can be differentiated.

    Raises:
        InputError: they cannot (accuracy).
    """
    if not worths.requires_grad and is_smooth(worth):
        raise InputError(
            "autograd does not reach what reads the masks (no_grad, inference_mode, .detach(), torch.utils.checkpoint "
            f"with use_reentrant=True); {_WITHOUT}"
        )
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

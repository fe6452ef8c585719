"""The proof of a set of players: random coalitions are masked and removed, and the outputs must agree."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.network.batches import Inputs, call, tensors, transform
from shaprune.network.discovery.tied_players import kinds_of
from shaprune.network.discovery.wider_when_called import convert_when_called
from shaprune.network.error_location import error_location
from shaprune.network.hooks import hooked
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import remove_players
from shaprune.network.shared_weights import convert, in_type, release, sharing
from shaprune.network.tolerance import relative_difference, tolerance_for
from shaprune.players.players import Group, Players

_SMALL = 1 << 26  # bytes in doubles up to which every model is compared in doubles
ALL_GONE = "one must stay: "  # how a reason begins where a group agrees but for all its players at once


def disagreement(copy: nn.Module, inputs: Inputs, players: Players) -> str | None:
    """What `Proof.disagreement` finds, asked once."""
    with Proof(copy, inputs) as proof:
        return proof.disagreement(players)


class Proof:
    """Compares masking with removing, in more than the model's own precision, on the same inputs again and again.

    Layers hold their weights in doubles only while they run, where the network runs so: the wider copy takes as much
    memory as its widest layer.

    Args:
        copy: a private copy, in eval mode.
        inputs: few example inputs.
    """

    def __init__(self, copy: nn.Module, inputs: Inputs) -> None:
        self.copy, self.inputs = copy, inputs
        self.wider = _wider(copy)
        self._dense: nn.Module | None = None
        self._by_layer = True
        self._dtype: torch.dtype | None = self.wider

    def __enter__(self) -> Proof:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def disagreement(self, players: Players) -> str | None:
        """Mask and remove random coalitions, each in the whole batch; return what differs, None where they agree.

        One coalition for all rows does not ask which axis the batch is, nor whether rows meet each other. In more than
        the model's own precision, where rounding cannot hide an operation that mixes channels only a little.
        """
        coalitions, at_once = _drawn(players, np.random.default_rng(0))
        more = ""
        try:
            special = any(m.part.unit for group in players.groups for m in group.members)
            dense = self._widened((False,) if special else (True, False))  # masks of weights read them beforehand
            limit = 1e-5 if self._dtype is None else _limit(players, self.wider)
            for k, kept in enumerate(coalitions):
                more = ALL_GONE if k == at_once else ""
                cuts = self._by_removal(players, kept)
                reason = _difference(self._by_mask(dense, players, kept), cuts, limit)
                if reason is not None:
                    return more + reason
        except Exception as error:  # whatever surgery breaks becomes the reason of a refusal, never a number
            place, said = error_location(error), str(error).splitlines()[0] if str(error) else type(error).__name__
            return f"{more}removal breaks the network{f' at {place}' if place else ''}: {said}"
        return None

    def _widened(self, by_layer: Sequence[bool]) -> nn.Module:
        """The network in the type that it is compared in, converted in one of these ways; in its own if it insists."""
        if self._dense is None:
            for self._by_layer in by_layer:
                self._dense = self._convert(sharing(self.copy))
                if _runs(self._dense, self._given, self.wider):
                    return self._dense
                self._release()
            self._dense, self._dtype = self.copy, None
        return self._dense

    def _release(self) -> None:
        if self._dense is not None and self._dense is not self.copy:
            release(self._dense)
        self._dense = None

    def _convert(self, model: nn.Module) -> nn.Module:
        if self._dtype is None:
            return model
        return (convert_when_called if self._by_layer else convert)(model, self._dtype)

    @property
    def _given(self) -> Inputs:
        """New tensors with the inputs, as a network may write to them."""
        dtype = self._dtype
        return transform(self.inputs, torch.clone if dtype is None else lambda t: in_type(t, dtype).clone())

    def _by_mask(self, dense: nn.Module, players: Players, kept: NDArray[np.bool_]) -> list[Tensor]:
        """What the network gives where the players that ``kept`` leaves out are masked."""
        device = tensors(self.inputs)[0].device
        sites = mask_sites(players, players.groups, device)
        with torch.no_grad(), masked(dense, sites, torch.from_numpy(kept[None]).to(device, torch.float32)):
            return tensors(call(dense, self._given))

    def _by_removal(self, players: Players, kept: NDArray[np.bool_]) -> list[Tensor]:
        """What the network gives without the players that ``kept`` leaves out."""
        small = self._convert(remove_players(sharing(self.copy), players, kept))
        try:
            with torch.no_grad():
                return tensors(call(small, self._given))
        finally:
            release(small)


def _wider(model: nn.Module) -> torch.dtype:
    """In which type a model is compared: doubles; float32 for a large model of 16 bits.

    The copy then takes at most twice the model's memory; what float32 cannot resolve is far below what 16 bits can.
    """
    held = [p for p in model.parameters() if p.is_floating_point()]
    narrow = sum(p.numel() for p in held if p.element_size() < 4)
    large = 2 * narrow > sum(p.numel() for p in held) and narrow * 8 > _SMALL
    return torch.float32 if large else torch.float64


def _limit(players: Players, dtype: torch.dtype) -> float:
    """How close masking and removing must be.

    Where a norm over channels of players computes in float32, or is put together from measured weights, two ways to
    the same statistic differ by its rounding.
    """
    norms = [players.layers[m.module] for group in players.groups for m in group.members if m.role == "norm"]
    rounded = dtype == torch.float32 or any(layer.narrow or layer.held for layer in norms)
    return 1e-5 if rounded else 1e-9


def _runs(model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> bool:
    """Whether a network runs in this type, and none of its modules returns anything narrower."""
    sizes: set[int] = set()

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        sizes.update(t.element_size() for t in tensors(output) if t.is_floating_point())
        sizes.update(t.element_size() // 2 for t in tensors(output) if t.is_complex())

    try:
        with hooked(module.register_forward_hook(hook) for module in model.modules()), torch.no_grad():
            call(model, transform(inputs, torch.clone))
    except Exception:
        return False
    return min(sizes, default=dtype.itemsize) >= dtype.itemsize


def _drawn(players: Players, rng: np.random.Generator) -> tuple[NDArray[np.bool_], int | None]:
    """(rows, n) random coalitions, two or a few more: every player leaves in one, and enough stay for layers to run.

    How many of a group stay shares no divisor with how many there are, so that neither broadcasting nor a whole number
    of groups (of a norm, a convolution) hides what does not fit. In a last row, its number given, all of a kind leave
    at once where its layers keep other channels.
    """
    coalitions = np.ones((2, players.n), dtype=bool)
    for group in players.groups:
        n = len(group)
        some = next(k for k in range(n // 2, -1, -1) if gcd(k, n) == 1)  # 0 of 1
        order = rng.permutation(group.indices)
        first, second = rng.permutation(2)
        coalitions[first, order[:some]] = False
        coalitions[second, order[some:]] = False
    rows = [_widened(players, row, rng) for row in coalitions]
    while (left := np.logical_and.reduce(rows)).any():  # players that were put back in all rows so far
        row = _widened(players, ~left, rng)
        rows.append(np.arange(players.n) != left.argmax() if row.all() else row)  # each can leave alone
    rows = [row for row in rows if not row.all()]
    gone = [_at_once(players, group) for group in players.groups if len(group) > 1]
    if not any(map(len, gone)):
        return np.array(rows), None
    all_gone = ~np.isin(np.arange(players.n), np.concatenate(gone))
    return np.array([*rows, _widened(players, all_gone, rng)]), len(rows)


def _at_once(players: Players, group: Group) -> NDArray[np.int64]:
    """Players of a group, all of a kind, that can leave at once with enough channels left in each of its layers."""
    gone = np.zeros(len(group), dtype=bool)
    for kind in [] if any(m.part.unit for m in group.members) else kinds_of(group.members):
        tried = gone.copy()
        tried[kind] = True
        left = ((players.layers[m.module], m) for m in group.members)
        if all(min(m.left(layer, int(m.widths[tried].sum()))) >= layer.least for layer, m in left):
            gone = tried
    return group.indices[gone]


def _widened(players: Players, kept: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """``kept`` with players put back at random until every layer can run."""
    row = kept.copy()
    while short := players.too_narrow(row):
        owning = [
            i
            for group in players.groups
            for member in group.members
            for i, own in zip(group.indices, member.channels, strict=True)
            if member.module in short and own and not row[i]
        ]
        row[rng.choice(owning)] = True
    return row


def _difference(by_mask: Sequence[Tensor], by_removal: Sequence[Tensor], limit: float) -> str | None:
    """How the tensors of two outputs, in order, lie apart; None where they agree."""
    if len(by_mask) != len(by_removal):
        return f"without it the network returns {len(by_removal)} tensors, and {len(by_mask)} with its channels at zero"
    for masks, cuts in zip(by_mask, by_removal, strict=True):
        if masks.shape != cuts.shape:
            return f"an output of shape {tuple(masks.shape)} has the shape {tuple(cuts.shape)} without it"
        if not masks.isfinite().all() or not cuts.isfinite().all():
            return "without it an output is NaN or infinite"
        error = relative_difference(masks, cuts)
        if not error < tolerance_for(masks.dtype, limit):
            return f"masking and removing disagree (relative difference {error:.1e})"
    return None

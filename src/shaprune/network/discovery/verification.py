"""The proof that masking a group is removing it: both are done to random coalitions, and the outputs must agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.network.batches import Inputs, call, tensors, transform
from shaprune.network.discovery.tied_players import kinds_of, some_of
from shaprune.network.discovery.unit_filters import are_heads
from shaprune.network.error_location import error_location
from shaprune.network.hooks import hooked
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import remove_players
from shaprune.network.shared_weights import convert, in_precision, in_type, release, sharing
from shaprune.network.tolerance import relative_difference, tolerance_for
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Group, Players, Skipped, number_groups

_SMALL = 1 << 26  # bytes in doubles up to which every model is compared in doubles
Refused = tuple[Candidate, str]
ALL_GONE = "one must stay: "  # how a reason begins where a group agrees but for all its players at once
BESIDE = "together with other groups "  # of groups that agree alone
Totals = tuple[int, float, int, float]  # parameters, multiply-adds, bytes on disk, bytes of layer outputs


def candidates_as_players(
    chosen: Sequence[Candidate], layers: dict[str, Layer], costs: Totals, skipped: Sequence[Skipped] = ()
) -> Players:
    """The players of some candidates."""
    touched = {m.module for c in chosen for m in c.members}
    groups = number_groups([(c.name, c.members) for c in chosen])
    found = {n: layer for n, layer in layers.items() if n in touched}
    for member in (m for c in chosen if are_heads(c.members, layers) for m in c.members):
        if member.role in ("out", "in"):
            found[member.module] = replace(found[member.module], heads=member.role)
    return Players(groups, found, tuple(skipped), *costs)


def verify_candidates(
    copy: nn.Module, inputs: Inputs, found: Sequence[Candidate], layers: dict[str, Layer], costs: Totals
) -> tuple[list[Candidate], list[Refused]]:
    """Split candidates into those whose mask equals their removal and those that disagree, by halving."""
    free, stuck = _free(found, layers)
    good, bad = _halved(copy, inputs, free, layers, costs)
    return good, [*stuck, *bad]


def _free(found: Sequence[Candidate], layers: dict[str, Layer]) -> tuple[list[Candidate], list[Refused]]:
    """Split candidates into players that can leave alone, and those without which a layer could not run."""
    free: list[Candidate] = []
    stuck: list[Refused] = []
    for candidate in found:
        needed = candidates_as_players([candidate], layers, (0, 0.0, 0, 0.0)).needed()
        by_layer: dict[str | None, list[int]] = defaultdict(list)
        for i in range(len(candidate.members[0].channels)):
            by_layer[needed.get(i)].append(i)
        for name, these in by_layer.items():
            if name is None:
                free.append(some_of(candidate, these))
            else:
                why = because(candidate, f"without it too little would be left of layer {name!r}")
                stuck.append((some_of(candidate, these), why))
    return free, stuck


def _halved(
    copy: nn.Module, inputs: Inputs, found: Sequence[Candidate], layers: dict[str, Layer], costs: Totals
) -> tuple[list[Candidate], list[Refused]]:
    """What `verify_candidates` does with players that can leave alone."""
    if not found:
        return [], []
    reason = disagreement(copy, inputs, candidates_as_players(found, layers, costs))
    if reason is None:
        return list(found), []
    if len(found) == 1:
        return [], [(found[0], because(found[0], reason))]
    middle = len(found) // 2
    left, right = (_halved(copy, inputs, half, layers, costs) for half in (found[:middle], found[middle:]))

    def joined(base: list[Candidate], more: list[Candidate]) -> tuple[list[Candidate], list[Refused]]:
        """Those of ``more`` that also agree together with ``base``, and those that do not."""
        reason = (
            disagreement(copy, inputs, candidates_as_players([*base, *more], layers, costs)) if base and more else None
        )
        if reason is None:
            return more, []
        if len(more) == 1:
            return [], [(more[0], f"{BESIDE}{reason}")]
        middle = len(more) // 2
        first = joined(base, more[:middle])
        second = joined([*base, *first[0]], more[middle:])
        return first[0] + second[0], first[1] + second[1]

    added, not_added = joined(left[0], right[0])
    return left[0] + added, left[1] + right[1] + not_added


def because(candidate: Candidate, reason: str) -> str:
    """A reason, and that a candidate meets the network's input where it does."""
    met = "its channels meet those of the network's input, which stay: " if candidate.meets_input else ""
    return f"{met}{reason}"


def disagreement(copy: nn.Module, inputs: Inputs, players: Players) -> str | None:
    """Mask and remove random coalitions, each in the whole batch; return what differs, None where they agree.

    One coalition for all rows does not ask which axis the batch is, nor whether rows meet each other. In more than the
    model's own precision, where rounding cannot hide an operation that mixes channels only a little.
    """
    coalitions, at_once = _drawn(players, np.random.default_rng(0))
    wider, limit = _precision(copy, players)
    dtype: torch.dtype | None = wider
    precise = transform(inputs, lambda t: in_type(t, wider))
    more = ""
    try:
        by_mask = _by_mask(copy, precise, players, coalitions, dtype)
        if by_mask is None:  # a model that insists on its own precision is compared in that
            dtype, limit, precise = None, 1e-5, inputs
            by_mask = _by_mask(copy, inputs, players, coalitions, None)
            assert by_mask is not None
        for k, (kept, masks) in enumerate(zip(coalitions, by_mask, strict=True)):
            more = ALL_GONE if k == at_once else ""
            reason = _difference(masks, _by_removal(copy, precise, players, kept, dtype), limit)
            if reason is not None:
                return more + reason
    except Exception as error:  # whatever surgery breaks becomes the reason of a refusal, never a number
        place, said = error_location(error), str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"{more}removal breaks the network{f' at {place}' if place else ''}: {said}"
    return None


def _precision(model: nn.Module, players: Players) -> tuple[torch.dtype, float]:
    """In which type a model is compared, and how close: doubles; float32 for a large model of 16 bits.

    The copy then takes at most twice the model's memory; what float32 cannot resolve is far below what 16 bits can.
    Where a norm over channels of players computes in float32, or is put together from measured weights, two ways to
    the same statistic differ by its rounding.
    """
    held = [p for p in model.parameters() if p.is_floating_point()]
    narrow = sum(p.numel() for p in held if p.element_size() < 4)
    large = 2 * narrow > sum(p.numel() for p in held) and narrow * 8 > _SMALL
    norms = [players.layers[m.module] for group in players.groups for m in group.members if m.role == "norm"]
    rounded = large or any(layer.narrow or layer.held for layer in norms)
    return torch.float32 if large else torch.float64, 1e-5 if rounded else 1e-9


def _by_mask(
    model: nn.Module, pair: Inputs, players: Players, coalitions: NDArray[np.bool_], dtype: torch.dtype | None
) -> list[list[Tensor]] | None:
    """What the masked network gives for each coalition; None where it does not run in ``dtype``."""
    device = tensors(pair)[0].device
    sites = mask_sites(players, players.groups, device)
    dense = model if dtype is None else in_precision(model, dtype)
    found = []
    try:
        if dtype is not None and not _runs(dense, pair, dtype):
            return None
        for kept in coalitions:
            with torch.no_grad(), masked(dense, sites, torch.from_numpy(kept[None]).to(device, torch.float32)):
                found.append(tensors(call(dense, transform(pair, torch.clone))))
    finally:
        if dtype is not None:
            release(dense)
    return found


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


def _by_removal(
    model: nn.Module, pair: Inputs, players: Players, kept: NDArray[np.bool_], dtype: torch.dtype | None
) -> list[Tensor]:
    """What the network gives without the players that ``kept`` leaves out."""
    small = remove_players(sharing(model), players, kept)
    if dtype is not None:
        small = convert(small, dtype)
    try:
        with torch.no_grad():
            return tensors(call(small, transform(pair, torch.clone)))
    finally:
        release(small)


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

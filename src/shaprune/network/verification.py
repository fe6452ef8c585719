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
from torch import nn

from shaprune.network.agreement import limit_for, relative_difference
from shaprune.network.batches import Inputs, call, concatenate, tensors, transform
from shaprune.network.borrow import copied
from shaprune.network.broken import place_of
from shaprune.network.coupling import Candidate
from shaprune.network.layers import Layer
from shaprune.network.masks import masked
from shaprune.network.players import Member, Players, Skipped, number_groups
from shaprune.network.sites import sites_of
from shaprune.network.surgery import cut
from shaprune.network.units import are_heads

Refused = tuple[Candidate, str]
Totals = tuple[int, float, int, float]  # parameters, multiply-adds, bytes on disk, bytes of layer outputs


def players_of(
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


def verified(
    copy: nn.Module, inputs: Inputs, found: Sequence[Candidate], layers: dict[str, Layer], costs: Totals
) -> tuple[list[Candidate], list[Refused]]:
    """Split candidates into those whose mask equals their removal and those that disagree, by halving.

    Of a single candidate, players that take channels from the same layers are tried together: behind a padded shortcut
    those that run through all of the network can leave, and those that the padding adds cannot.
    """
    if not found:
        return [], []
    reason = disagreement(copy, inputs, players_of(found, layers, costs))
    if reason is None:
        return list(found), []
    if len(found) == 1:
        kinds = _by_kind(found[0])
        tried = [(kind, disagreement(copy, inputs, players_of([kind], layers, costs))) for kind in kinds]
        good = [kind for kind, why in tried if why is None and len(kinds) > 1]
        return good, [(kind, _because(kind, why or reason)) for kind, why in tried if kind not in good]
    middle = len(found) // 2
    left, right = (verified(copy, inputs, half, layers, costs) for half in (found[:middle], found[middle:]))

    def joined(base: list[Candidate], more: list[Candidate]) -> tuple[list[Candidate], list[Refused]]:
        """Those of ``more`` that also agree together with ``base``, and those that do not."""
        reason = disagreement(copy, inputs, players_of([*base, *more], layers, costs)) if base and more else None
        if reason is None:
            return more, []
        if len(more) == 1:
            return [], [(more[0], f"together with other groups {reason}")]
        middle = len(more) // 2
        first = joined(base, more[:middle])
        second = joined([*base, *first[0]], more[middle:])
        return first[0] + second[0], first[1] + second[1]

    added, not_added = joined(left[0], right[0])
    return left[0] + added, left[1] + right[1] + not_added


def _because(candidate: Candidate, reason: str) -> str:
    met = "its channels meet those of the network's input, which stay: " if candidate.meets_input else ""
    return f"{met}{reason}"


def _by_kind(candidate: Candidate) -> list[Candidate]:
    """Candidates of the players that have channels in the same members."""
    if any(m.role not in ("out", "in", "both") for m in candidate.members):
        return [candidate]
    kinds: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for player in range(len(candidate.members[0].channels)):
        kinds[tuple(len(m.channels[player]) for m in candidate.members)].append(player)
    found = []
    for widths, players in kinds.items():
        members = tuple(
            Member(m.module, m.role, tuple(m.channels[p] for p in players))
            for m, width in zip(candidate.members, widths, strict=True)
            if width
        )
        first = next(m for m in members if m.role == "out")
        ordered = (first, *(m for m in members if m is not first))
        found.append(replace(candidate, name=first.module, members=ordered))
    return found


def disagreement(copy: nn.Module, inputs: Inputs, players: Players) -> str | None:
    """Mask and remove two random coalitions, one per row; return what differs, None where they agree.

    In double precision, where rounding cannot hide an operation that mixes channels only a little.
    """
    coalitions = _drawn(players, np.random.default_rng(0))
    pair = transform(inputs, lambda t: t[:2] if t.ndim and len(t) > 1 else t.expand(2, *t.shape[1:]) if t.ndim else t)
    model, limit = copy, 1e-5
    try:
        doubled = transform(pair, lambda t: t.double() if t.is_floating_point() else t.clone())
        precise = copied(copy).double()
        if _all_double(precise, doubled):
            model, pair, limit = precise, doubled, 1e-9
    except Exception:
        pass  # a model that insists on its own precision is compared in that
    try:
        return _compare(model, pair, players, coalitions, limit)
    except Exception as error:  # whatever surgery breaks becomes the reason of a refusal, never a number
        place, said = place_of(error), str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"removal breaks the network{f' at {place}' if place else ''}: {said}"


def _all_double(model: nn.Module, inputs: Inputs) -> bool:
    """Whether no module of a network in double precision returns anything narrower."""
    types: set[torch.dtype] = set()

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        types.update(t.dtype for t in tensors(output) if t.is_floating_point())

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    try:
        with torch.no_grad():
            call(model, transform(inputs, torch.clone))
    finally:
        for handle in handles:
            handle.remove()
    return types <= {torch.float64}


def _drawn(players: Players, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(2, n) random coalitions: of every group each player leaves in one of them, where enough stay for layers to run.

    How many stay shares no divisor with how many there are, so that neither broadcasting nor a whole number of groups
    (of a norm, a convolution) hides what does not fit.
    """
    coalitions = np.ones((2, players.n), dtype=bool)
    for group in players.groups:
        n = len(group)
        some = next(k for k in range(n // 2, -1, -1) if gcd(k, n) == 1)  # 0 of 1
        order = rng.permutation(group.indices)
        first, second = rng.permutation(2)
        coalitions[first, order[:some]] = False
        coalitions[second, order[some:]] = False
    for row in coalitions:
        while short := players.too_narrow(row):
            owning = [
                i
                for group in players.groups
                for member in group.members
                for i, own in zip(group.indices, member.channels, strict=True)
                if member.module in short and own and not row[i]
            ]
            row[rng.choice(owning)] = True
    return coalitions


def _compare(
    model: nn.Module, pair: Inputs, players: Players, coalitions: NDArray[np.bool_], limit: float
) -> str | None:
    device = tensors(pair)[0].device
    mask = torch.from_numpy(coalitions).to(device, torch.float32)
    with torch.no_grad():
        with masked(model, sites_of(players, players.groups, device), mask):
            by_mask = call(model, transform(pair, torch.clone))
        by_removal = []
        for row, kept in enumerate(coalitions):
            small = cut(copied(model), players, kept)
            by_removal.append(call(small, transform(pair, lambda t: t[row : row + 1].clone() if t.ndim else t)))  # noqa: B023
    for masks, cuts in zip(tensors(by_mask), tensors(concatenate(by_removal)), strict=True):
        error = relative_difference(masks, cuts)
        if not error < limit_for(masks.dtype, limit):
            return f"masking and removing disagree (relative difference {error:.1e})"
    return None

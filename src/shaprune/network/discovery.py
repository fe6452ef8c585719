"""Find the players of a network, and prove for each group that masking it is removing it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shaprune.errors import InputError, check_choice, nearest
from shaprune.network.agreement import limit_for, relative_difference
from shaprune.network.batches import Inputs, call, concatenate, length, tensors, transform
from shaprune.network.borrow import borrowed, copied
from shaprune.network.coupling import Candidate, candidates
from shaprune.network.layers import Layer
from shaprune.network.masks import edges_of, masked
from shaprune.network.players import Players, Skipped, number_groups
from shaprune.network.surgery import cut, removals

Filter = str | type[nn.Module]


def find_players(
    model: nn.Module,
    example_inputs: Inputs,
    unit: str = "channel",
    include: Filter | Sequence[Filter] | None = None,
    exclude: Filter | Sequence[Filter] | None = None,
) -> Players:
    """Find every group of coupled channels (or neurons) that can leave, and list what cannot, with the reason.

    Every group is verified on the example inputs: two random coalitions are masked and removed, and the outputs must
    agree; a group where they do not is skipped with the reason.

    Args:
        model: any module; it is not changed.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, batch first.
        unit: what a player is; ``"channel"``: output channels of convolutions and neurons of linear layers.
        include: names, globs (``"layer*.conv1"``) or module types; only groups with a matching producer are kept.
        exclude: the same; groups with a matching producer are skipped.

    Raises:
        InputError: inputs that the model does not take, a model that is not deterministic in eval mode, a filter that
            matches nothing, or no prunable group at all (the reasons are in the message).
    """
    check_choice("unit", unit, ["channel"])
    with borrowed(copied(model)) as copy:
        inputs = tuple(example_inputs) if isinstance(example_inputs, list) else example_inputs
        inputs = transform(inputs, torch.clone)  # a model may write to what it is given
        _check_runs(copy, inputs)
        found, skipped, layers = candidates(copy, inputs)
        costs = _model_cost(copy, layers)
        chosen, left_out = _choose(copy, found, _filters(include), _filters(exclude))
        skipped += [
            Skipped(p, layers[p].n_out, why) for c, why in left_out for p in c.producers if layers[p].kind != "norm"
        ]
        accepted, refused = _verify(copy, inputs, chosen, layers, costs)
        skipped += [
            Skipped(p, layers[p].n_out, why) for c, why in refused for p in c.producers if layers[p].kind != "norm"
        ]
    order = {name: i for i, name in enumerate(layers)}
    skipped.sort(key=lambda s: order.get(s.name, len(order)))
    if not accepted:
        reasons = "\n".join(f"  {s.name}: {s.reason}" for s in skipped)
        raise InputError(
            f"nothing in this model can be pruned:\n{reasons or '  it has no convolution or linear layer'}"
        )
    return _players(accepted, layers, skipped, costs)


def _players(
    chosen: Sequence[Candidate], layers: dict[str, Layer], skipped: Sequence[Skipped], costs: tuple[int, float]
) -> Players:
    touched = {m.module for c in chosen for m in c.members}
    groups = number_groups([(c.name, c.members) for c in chosen])
    return Players(groups, {n: layer for n, layer in layers.items() if n in touched}, tuple(skipped), *costs)


def _check_runs(copy: nn.Module, inputs: Inputs) -> None:
    """One example must run, twice alike, to finite numbers."""
    if not tensors(inputs):
        raise InputError(
            f"example_inputs is a {type(inputs).__name__} without a tensor; give a tensor, a tuple or a dict"
        )
    if length(inputs) == 0:
        raise InputError("example_inputs holds no example; give at least one")
    with torch.no_grad():
        try:
            first, second = (tensors(call(copy, transform(inputs, torch.clone))) for _ in range(2))
        except Exception as error:
            shapes = [tuple(t.shape) for t in tensors(inputs)]
            raise InputError(f"the model does not run on example_inputs of shape {shapes}: {error}") from error
    if not first:
        raise InputError("the model returns no tensor; wrap it so that forward returns one")
    if not all(torch.isfinite(t).all() for t in first if t.is_floating_point()):
        raise InputError("the model's output on example_inputs is NaN or infinite; check the weights and the inputs")
    if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        raise InputError("the model is not deterministic in eval mode: two runs on the same inputs differ")


def _model_cost(copy: nn.Module, layers: dict[str, Layer]) -> tuple[int, float]:
    macs = sum(layer.macs(layer.n_in, layer.n_out) for layer in layers.values())
    return sum(p.numel() for p in copy.parameters()), macs


def _filters(given: Filter | Sequence[Filter] | None) -> list[Filter] | None:
    if given is None:
        return None
    return [given] if isinstance(given, (str, type)) else list(given)


def _choose(
    copy: nn.Module, found: Sequence[Candidate], include: list[Filter] | None, exclude: list[Filter] | None
) -> tuple[list[Candidate], list[tuple[Candidate, str]]]:
    """Split candidates into those wanted and those left out with the reason."""

    def matches(candidate: Candidate, pattern: Filter) -> bool:
        if isinstance(pattern, str):
            return any(fnmatchcase(name, pattern) for name in (candidate.name, *candidate.producers))
        return any(isinstance(copy.get_submodule(name), pattern) for name in candidate.producers)

    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns or []:
            if not any(matches(c, pattern) for c in found):
                known = [name for c in found for name in c.producers]
                shown = pattern if isinstance(pattern, str) else pattern.__name__
                raise InputError(f"{option}={shown!r} matches no prunable layer{nearest(str(shown), known)}")
    chosen: list[Candidate] = []
    left_out: list[tuple[Candidate, str]] = []
    for candidate in found:
        out = [p for p in exclude or [] if matches(candidate, p)]
        if out:
            left_out.append((candidate, f"excluded by {out[0]!r}"))
        elif include is not None and not any(matches(candidate, p) for p in include):
            left_out.append((candidate, "not in include"))
        else:
            chosen.append(candidate)
    return chosen, left_out


def _verify(
    copy: nn.Module, inputs: Inputs, found: Sequence[Candidate], layers: dict[str, Layer], costs: tuple[int, float]
) -> tuple[list[Candidate], list[tuple[Candidate, str]]]:
    """Split candidates into those whose mask equals their removal and those that disagree, by halving."""
    if not found:
        return [], []
    reason = _disagreement(copy, inputs, _players(found, layers, (), costs))
    if reason is None:
        return list(found), []
    if len(found) == 1:
        return [], [(found[0], reason)]
    middle = len(found) // 2
    left, right = (_verify(copy, inputs, half, layers, costs) for half in (found[:middle], found[middle:]))
    accepted, refused = left[0] + right[0], left[1] + right[1]
    if left[0] and right[0]:  # each side agrees alone
        reason = _disagreement(copy, inputs, _players(accepted, layers, (), costs))
        if reason is not None:
            return [], refused + [(c, f"together with other groups {reason}") for c in accepted]
    return accepted, refused


def _disagreement(copy: nn.Module, inputs: Inputs, players: Players) -> str | None:
    """Mask and remove two random coalitions, one per row; return what differs, None where they agree.

    In double precision, where rounding cannot hide an operation that mixes channels only a little.
    """
    rng = np.random.default_rng(0)
    coalitions = rng.random((2, players.n)) < 0.5
    for group in players.groups:
        for row in coalitions:
            row[rng.choice(group.indices, 2, replace=False)] = (True, False)
    pair = transform(inputs, lambda t: t[:2] if t.ndim and len(t) > 1 else t.expand(2, *t.shape[1:]) if t.ndim else t)
    model, limit = copy, 1e-5
    try:
        doubled = transform(pair, lambda t: t.double() if t.is_floating_point() else t.clone())
        precise = copied(copy).double()
        with torch.no_grad():
            call(precise, transform(doubled, torch.clone))
        model, pair, limit = precise, doubled, 1e-9
    except Exception:
        pass  # a model that insists on its own precision is compared in that
    try:
        return _compare(model, pair, players, coalitions, limit)
    except Exception as error:  # whatever surgery breaks becomes the reason of a refusal, never a number
        return f"removal breaks the network: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def _compare(
    model: nn.Module, pair: Inputs, players: Players, coalitions: NDArray[np.bool_], limit: float
) -> str | None:
    device = tensors(pair)[0].device
    mask = torch.from_numpy(coalitions).to(device, torch.float32)
    with torch.no_grad():
        with masked(model, edges_of(players, players.groups, device), mask):
            by_mask = call(model, transform(pair, torch.clone))
        by_removal = []
        for row, kept in enumerate(coalitions):
            small = cut(copied(model), players, removals(players.groups, kept))
            by_removal.append(call(small, transform(pair, lambda t: t[row : row + 1].clone() if t.ndim else t)))  # noqa: B023
    for masks, cuts in zip(tensors(by_mask), tensors(concatenate(by_removal)), strict=True):
        error = relative_difference(masks, cuts)
        if not error < limit_for(masks.dtype, limit):
            return f"masking and removing disagree (relative difference {error:.1e})"
    return None

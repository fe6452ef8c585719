"""Find the players of a network, and prove for each group that masking it is removing it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from shaprune.errors import InputError, nearest
from shaprune.network.batches import Inputs, call, length, tensors, transform
from shaprune.network.borrow import borrowed, copied
from shaprune.network.coupling import Candidate, candidates
from shaprune.network.layers import Layer
from shaprune.network.players import Players
from shaprune.network.units import wanted
from shaprune.network.verification import players_of, verified

Filter = str | type[nn.Module]


def find_players(
    model: nn.Module,
    example_inputs: Inputs,
    unit: str | Sequence[str] = "channel",
    include: Filter | Sequence[Filter] | None = None,
    exclude: Filter | Sequence[Filter] | None = None,
    *,
    max_seconds: float = 300.0,
    max_memory: int = 1 << 31,
) -> Players:
    """Find every group of coupled channels (or neurons) that can leave, and list what cannot, with the reason.

    Every group is verified on the example inputs: two random coalitions are masked and removed, and the outputs must
    agree; a group where they do not is skipped with the reason.

    Args:
        model: any module; it is not changed.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, batch first.
        unit: what a player is, one name or several: ``"channel"``, the smallest sets of channels that can leave, of
            whatever layer (channels, neurons, heads); or only some of these: ``"neuron"`` of linear layers, ``"ffn"``:
            hidden neurons of feed-forward blocks, ``"head"``: attention heads (grouped queries with their keys).
        include: names, globs (``"layer*.conv1"``) or module types; only groups with a matching producer are kept.
        exclude: the same; groups with a matching producer are skipped.
        max_seconds, max_memory: bounds of following channels through the network; bytes for its activations.

    Raises:
        InputError: inputs that the model does not take, a model that is not deterministic in eval mode, a filter that
            matches nothing, or no prunable group at all (the reasons are in the message).
    """
    is_wanted = wanted(unit)
    with borrowed(copied(model)) as copy:
        inputs = tuple(example_inputs) if isinstance(example_inputs, list) else example_inputs
        inputs = transform(inputs, torch.clone)  # a model may write to what it is given
        _check_runs(copy, inputs)
        found, skipped, layers = candidates(copy, inputs, max_seconds=max_seconds, max_memory=max_memory)
        costs = _model_cost(copy, layers)
        chosen, left_out = _choose(copy, found, _filters(include), _filters(exclude))
        left_out += [(c, f"it is no {unit!r}") for c in chosen if not is_wanted(c.members, layers)]
        chosen = [c for c in chosen if is_wanted(c.members, layers)]
        accepted, refused = verified(copy, inputs, chosen, layers, costs)
        skipped += [s for candidate, why in (*left_out, *refused) for s in candidate.skipped(layers, why)]
    order = {name: i for i, name in enumerate(layers)}
    skipped.sort(key=lambda s: order.get(s.name, len(order)))
    if not accepted:
        reasons = "\n".join(f"  {s.name}: {s.reason}" for s in skipped)
        raise InputError(
            f"nothing in this model can be pruned:\n{reasons or '  it has no convolution or linear layer'}"
        )
    return players_of(accepted, layers, costs, skipped)


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

"""Layers that no example takes (experts, optional heads) and that may read the channels of a group.

Nothing is known of what such a layer reads. Where one in the same list of modules does run and reads the channels of a
group, the group is refused; where only the widths fit, the user is warned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from shaprune.network.batches import Inputs
from shaprune.network.layers.kinds import kind_of, widths_of
from shaprune.network.layers.used_parameters import modules_used
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer

_SHOWN = 3  # names in a warning


def unseen_readers(copy: nn.Module, inputs: Inputs, ran: Collection[str]) -> dict[str, int]:
    """Layers that do not run on the example inputs and may read what others give: name -> channels that they read.

    In a module no layer of which runs, a layer that reads as many channels as one before it gives is taken to read
    those.

    Args:
        copy: the network.
        inputs: example inputs.
        ran: names of the layers that run.
    """
    widths = {
        name: widths
        for name, module in copy.named_modules()
        if kind_of(module) not in (None, "embedding") and (widths := widths_of(module)) is not None
    }
    if all(name in ran for name in widths):
        return {}
    ran = {*ran, *modules_used(copy, inputs)}
    around = {outer for name in ran for outer in _outer(name)}
    found: dict[str, int] = {}
    given: dict[str, set[int]] = defaultdict(set)  # by the outermost module that does not run
    for name, (n_in, n_out) in widths.items():
        if name not in ran:
            silent = next(outer for outer in _outer(name) if outer not in around)
            if n_in not in given[silent]:
                found[name] = n_in
            given[silent].add(n_out)
    return found


def _outer(name: str) -> list[str]:
    """A module and all that hold it, from the outside."""
    steps = name.split(".")
    return [".".join(steps[: i + 1]) for i in range(len(steps))]


def sibling(copy: nn.Module, name: str, others: Collection[str]) -> str | None:
    """One of ``others`` in the same place of another entry of a list or dict of modules that holds ``name``."""
    steps = name.split(".")
    for other in others:
        its = other.split(".")
        differ = [i for i, (a, b) in enumerate(zip(steps, its, strict=False)) if a != b]
        if len(its) != len(steps) or len(differ) != 1:
            continue
        if isinstance(copy.get_submodule(".".join(steps[: differ[0]])), (nn.ModuleList, nn.ModuleDict)):
            return other
    return None


def split_by_unseen(
    copy: nn.Module, unseen: Mapping[str, int], found: Sequence[Candidate], layers: Mapping[str, Layer]
) -> tuple[list[Candidate], list[tuple[Candidate, str]]]:
    """Split candidates into those that can leave, and those that layers beside unseen ones read.

    Args:
        copy: the network.
        unseen: see `unseen_readers`.
        found: the candidates.
        layers: the layers that run.
    """
    good: list[Candidate] = []
    refused: list[tuple[Candidate, str]] = []
    for candidate in found:
        readers = [m.module for m in candidate.members if m.role != "out" and layers[m.module].kind != "parameter"]
        pairs = ((name, sibling(copy, name, [r for r in readers if layers[r].n_in == n])) for name, n in unseen.items())
        why = next((_refusal(name, beside) for name, beside in pairs if beside is not None), None)
        if why is None:
            good.append(candidate)
        else:
            refused.append((candidate, why))
    return good, refused


def _refusal(name: str, beside: str) -> str:
    return (
        f"{name} does not run on the example inputs, and {beside} beside it reads these channels; give example inputs "
        "that take the way through each of them"
    )


def unseen_warning(
    copy: nn.Module, unseen: Mapping[str, int], layers: Mapping[str, Layer], found: Sequence[Candidate]
) -> str | None:
    """What to warn of: layers that do not run and read as many channels as a group's layers have; None for nothing."""
    alone = {name: n_in for name, n_in in unseen.items() if sibling(copy, name, layers) is None}
    groups = {
        candidate.name: {
            layers[m.module].n_out if m.role == "out" else layers[m.module].n_in for m in candidate.members
        }
        for candidate in found
    }
    fitting = {name: [group for group, widths in groups.items() if n_in in widths] for name, n_in in alone.items()}
    named = [f"{name} (perhaps {_listed(fits)})" for name, fits in fitting.items() if fits]
    if not named:
        return None
    return (
        "layers that do not run on the example inputs may read players: the pruned network then breaks where they run. "
        f"Give example inputs that take the way through them, or exclude the groups: {_listed(named)}"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

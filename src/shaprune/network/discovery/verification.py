"""The proof that masking a group is removing it: both are done to random coalitions, and the outputs must agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from shaprune.network.batches import Inputs
from shaprune.network.discovery.proof import Proof
from shaprune.network.discovery.tied_players import some_of
from shaprune.network.discovery.unit_filters import are_heads
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Players, Skipped, number_groups

Refused = tuple[Candidate, str]
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
    with Proof(copy, inputs) as proof:
        good, bad = _by_place(proof, free, layers, costs)
    return good, [*stuck, *bad]


def _by_place(
    proof: Proof, found: list[Candidate], layers: dict[str, Layer], costs: Totals
) -> tuple[list[Candidate], list[Refused]]:
    """What `_halved` does, where a refusal names its place by way of the candidates that are cut there."""
    bad: list[Refused] = []
    while len(found) > 1:
        reason = proof.disagreement(candidates_as_players(found, layers, costs))
        if reason is None:
            return found, bad
        there = _cut_at(reason, proof.copy, found)
        if not 0 < len(there) <= len(found) // 4:
            break
        refused = [refused for c in there for refused in _halved(proof, [c], layers, costs)[1]]
        if not refused:
            break  # each can leave, but not with the others
        bad += refused
        gone = {id(c) for c, _ in refused}
        found = [c for c in found if id(c) not in gone]
    good, more = _halved(proof, found, layers, costs)
    return good, [*bad, *more]


def _cut_at(reason: str, model: nn.Module, found: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that are cut in the module, or in what holds the attribute, that a reason names first."""
    names = {name for name, _ in model.named_modules() if name}
    for word in (w.strip("'\",:;") for w in reason.split()):
        place = word if word in names else word.rpartition(".")[0]
        if place in names:
            return [c for c in found if any(f"{m.module}.".startswith(f"{place}.") for m in c.members)]
    return []


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
    proof: Proof, found: Sequence[Candidate], layers: dict[str, Layer], costs: Totals
) -> tuple[list[Candidate], list[Refused]]:
    """What `verify_candidates` does with players that can leave alone."""
    if not found:
        return [], []
    reason = proof.disagreement(candidates_as_players(found, layers, costs))
    if reason is None:
        return list(found), []
    if len(found) == 1:
        return [], [(found[0], because(found[0], reason))]
    middle = len(found) // 2
    left, right = (_halved(proof, half, layers, costs) for half in (found[:middle], found[middle:]))

    def joined(base: list[Candidate], more: list[Candidate]) -> tuple[list[Candidate], list[Refused]]:
        """Those of ``more`` that also agree together with ``base``, and those that do not."""
        reason = proof.disagreement(candidates_as_players([*base, *more], layers, costs)) if base and more else None
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
    """A reason, and that a candidate meets the network's input where it does, said once."""
    met = "its channels meet those of the network's input, which stay: " if candidate.meets_input else ""
    return reason if reason.startswith(met) else f"{met}{reason}"

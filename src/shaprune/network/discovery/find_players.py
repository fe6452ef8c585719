"""Find the players of a network, and prove for all of them that masking is removing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from shaprune.errors import InputError, ShapruneWarning, check_choice, nearest
from shaprune.network.batches import Inputs, copied_inputs, example_of
from shaprune.network.borrow import borrowed, preserve_globals
from shaprune.network.discovery.channels.coupling import find_candidates
from shaprune.network.discovery.channels.unseen_readers import split_by_unseen, unseen_readers, unseen_warning
from shaprune.network.discovery.copy_check import check_copy
from shaprune.network.discovery.few_examples import few_examples
from shaprune.network.discovery.input_checks import check_example_inputs
from shaprune.network.discovery.model_support import check_model
from shaprune.network.discovery.named_units import named_units, unite
from shaprune.network.discovery.proof import disagreement
from shaprune.network.discovery.settling import settle
from shaprune.network.discovery.unit_filters import has_unit, special_unit
from shaprune.network.discovery.verification import Refused, Totals, candidates_as_players, verify_candidates
from shaprune.network.discovery.zero_weights import zeros_filled
from shaprune.network.layers.compound_macs import compound_macs
from shaprune.network.layers.kinds import measure_layers, stored_bytes
from shaprune.network.removal.blocks import not_inside
from shaprune.network.removal.hf_config import hf_fields_of
from shaprune.network.removal.norms import with_held
from shaprune.network.removal.player_kinds import KINDS
from shaprune.network.shared_weights import private
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Players, Skipped
from shaprune.players.roles import NORMS

Filter = str | type[nn.Module]
Unit = str | Sequence[str] | Mapping[str, str | Sequence[str]]


def find_players(
    model: nn.Module,
    example_inputs: Inputs,
    unit: Unit = "channel",
    include: Filter | Sequence[Filter] | None = None,
    exclude: Filter | Sequence[Filter] | None = None,
    *,
    norm: str = "slice",
    max_seconds: float = 300.0,
    max_memory: int = 1 << 31,
) -> Players:
    """Find every group of players that can leave, and list what cannot, with the reason.

    Every group is verified on the example inputs: two random coalitions are masked and removed, and the outputs must
    agree; a group where they do not is skipped with the reason. Channels are followed on as few of the examples as run
    every layer that all of them run: give some that take every way through the network. Units are one of

    - coupled channels, one name or several: ``"channel"``, the smallest sets of channels that can leave, of whatever
      layer (channels, neurons, heads); or only some of these: ``"neuron"`` of linear layers, ``"ffn"``: hidden neurons
      of feed-forward blocks, ``"head"``: attention heads (grouped queries with their keys), ``"hidden"``: channels of
      a residual stream, through its norms (LayerNorm, RMSNorm and others by a statistic over channels, of any class),
      ``"recurrent"``: units of LSTM, GRU and RNN layers (one of every layer and direction inside);
    - ``"block"``: parts of an `nn.Sequential` or `nn.ModuleList` whose output has the shape of their input (residual
      blocks, transformer layers), the outermost first; a removed one is passed by. All make one group, ``"blocks"``;
    - ``"expert"``: the experts in an `nn.ModuleList` or `nn.ModuleDict` beside an `nn.Linear` router (or a module
      with one, called router or gate); one group per mixture;
    - ``"weight"``: the single weights of linear layers and convolutions, one group per layer, player k being entry k of
      the flat weight. They are set to zero, nothing gets smaller, and their costs are 0: plan with
      ``Budget(players=...)``, and name the layers by ``include``;
    - a mapping ``{"mine": ["conv2[0]", "fc1[1?]"]}``: each name is one player that owns all channels of the channel
      players (or groups) that its globs match; only ``*`` and ``?`` are special. All make one group, ``"named"``.

    Args:
        model: any module; it is not changed.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, batch first.
        unit: what a player is, see above.
        include: names, globs (``"layer*.conv1"``) or module types; only groups with a matching producer (blocks,
            mixtures, layers that match) are kept.
        exclude: the same; groups with a matching producer are skipped.
        norm: what the norms over a stream do without channels that left: ``"slice"``, their statistics run over those
            that stay, as in a plain norm of that width; ``"compensated"``, they hold the means (RMSNorm: the mean
            energies) over ``example_inputs`` of those that left in their place, so give some dozens of examples; such
            norms become `shaprune.network.layers.norm_forms.HeldNorm`.
        max_seconds, max_memory: bounds of following channels through the network; bytes for its activations.

    Returns:
        `Players`: all groups, their costs, and ``skipped`` layers with the reasons.

    Raises:
        InputError: inputs that the model does not take, a model that is not deterministic in eval mode or whose copies
            run the original's layers, an unknown unit or ``norm``, units that do not go together, a filter that matches
            nothing, too many weights, a named unit that cannot leave, or no prunable group at all (the reasons are in
            the message).

    Warns:
        ShapruneWarning: layers that do not run on the example inputs may read players; labels among the inputs.
    """
    check_choice("norm", norm, NORMS)
    units = "channel" if isinstance(unit, Mapping) else unit
    special = special_unit(units)
    kind = None if special is None else KINDS[special]
    is_wanted = has_unit(units) if kind is None else lambda members, layers: True
    check_model(model)
    inputs, labels = example_of(model, example_inputs)
    if labels is not None:
        warnings.warn(
            f"example_inputs hold {labels!r}, with which the model may compute a loss over the batch: taken out",
            ShapruneWarning,
            stacklevel=2,
        )
    inputs = copied_inputs(inputs)  # a model may write to what it is given
    with preserve_globals(), borrowed(private(model, inputs)) as copy:
        check_example_inputs(copy, inputs)
        few = few_examples(copy, inputs)
        check_copy(model, copy, few)
        if kind is None:
            found, skipped, layers, few = find_candidates(
                copy, inputs, few, max_seconds=max_seconds, max_memory=max_memory
            )
            layers = with_held(copy, inputs, layers) if norm == "compensated" else layers
            costs = _model_cost(copy, inputs, layers)
        else:
            ran = measure_layers(copy, inputs)
            costs = _model_cost(copy, inputs, ran)
            found, skipped, layers = kind.find(copy, inputs, ran)
        chosen, left_out = _choose(copy, found, _filters(include), _filters(exclude))
        left_out += [(c, f"it is no {unit!r}") for c in chosen if not is_wanted(c.members, layers)]
        chosen = [c for c in chosen if is_wanted(c.members, layers)]
        unseen = unseen_readers(copy, inputs, layers) if kind is None else {}
        chosen, not_seen = split_by_unseen(copy, unseen, chosen, layers)
        left_out += not_seen
        if kind is not None:
            chosen, not_settled = kind.settle(copy, inputs, chosen, layers, include is not None)
            left_out += not_settled
        with zeros_filled(copy):
            accepted, refused, layers = _proven(copy, few, chosen, layers, costs, split=kind is None)
        skipped += [s for candidate, why in (*left_out, *refused) for s in _skipped(candidate, layers, why)]
        if kind is not None and kind.one_group:
            skipped = not_inside(skipped, accepted)
        order = {name: i for i, name in enumerate(layers)}
        skipped.sort(key=lambda s: order.get(s.name, len(order)))
        if not accepted:
            nothing = "it has no convolution or linear layer" if kind is None else kind.nothing
            reasons = "\n".join(f"  {s.name}: {s.reason}" for s in skipped) or f"  {nothing}"
            raise InputError(f"nothing in this model can be pruned:\n{reasons}")
        players = candidates_as_players(accepted, layers, costs, skipped)
        if kind is not None and kind.one_group:
            each = {c.name: (i,) for i, c in enumerate(accepted)}
            players = replace(players, groups=(unite(players, kind.one_group, each),))
        if isinstance(unit, Mapping):
            players = named_units(players, unit)
            why = disagreement(copy, few, players)
            if why is not None:
                raise InputError(f"the named units cannot leave: {why}; name other players")
        risk = unseen_warning(copy, unseen, layers, accepted)
        if risk is not None:
            warnings.warn(risk, ShapruneWarning, stacklevel=2)
        return replace(players, config=hf_fields_of(copy, players))


def _proven(
    copy: nn.Module, few: Inputs, chosen: list[Candidate], layers: dict[str, Layer], costs: Totals, *, split: bool
) -> tuple[list[Candidate], list[Refused], dict[str, Layer]]:
    """What agrees, what does not and why, and the layers with their numbers; refused groups may be ``split``."""
    accepted, refused = verify_candidates(copy, few, chosen, layers, costs)
    if not refused or not split:
        return accepted, refused, layers
    settled = settle(copy, few, refused, layers, costs)
    if not settled.chosen:
        return accepted, settled.left, layers
    layers = layers | settled.layers
    place = {name: i for i, name in enumerate(layers)}
    together = sorted([*accepted, *settled.chosen], key=lambda c: place[c.members[0].module])
    accepted, refused = verify_candidates(copy, few, together, layers, costs)
    return accepted, [*refused, *settled.left], layers


def _skipped(candidate: Candidate, layers: dict[str, Layer], reason: str) -> list[Skipped]:
    """What stays when a candidate is left out."""
    special = any(m.part.unit for m in candidate.members)
    return [Skipped(candidate.name, 0, reason)] if special else candidate.skipped(layers, reason)


def _model_cost(copy: nn.Module, inputs: Inputs, layers: dict[str, Layer]) -> Totals:
    macs = sum(layer.macs(layer.n_in, layer.n_out) for layer in layers.values())
    macs += sum(compound_macs(copy, inputs, layers).values())
    outputs = sum(layer.activations(layer.n_in, layer.n_out) for layer in layers.values())
    return sum(p.numel() for p in copy.parameters()), macs, stored_bytes(copy), outputs


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

"""Models of transformers: which numbers of their configuration say what is left, found by trying, and setting them.

A number belongs to the groups whose layers get another width when the model is built with another number. That is tried
on the meta device, where nothing is computed or stored: once built from the changed configuration, as
``from_pretrained`` would, and once cut; all shapes must agree. So no table of architectures is needed, and
transformers itself is not imported.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shaprune.errors import SurgeryError
from shaprune.network.borrow import preserve_globals
from shaprune.network.layers.kinds import parameter_sides
from shaprune.network.removal.player_kinds import kind_of_group
from shaprune.network.removal.surgery import remove_players
from shaprune.network.silence import silence
from shaprune.network.state_dicts import tensors_of
from shaprune.players.hf_fields import HfField, HfFields
from shaprune.players.players import Group, Member, Players

_HIDDEN = ("inner", "intermediate", "ffn", "d_ff")  # in names of fields that may be None, for a multiple of the width
KeptPlayers = NDArray[np.bool_]
Shapes = dict[str, tuple[int, ...]]  # of parameters and saved buffers


def hf_fields_of(model: nn.Module, players: Players) -> HfFields | None:
    """What the configurations inside a network can say about its players; None for a network without any.

    Args:
        model: the dense network.
        players: its players.
    """
    found = [_Pretrained(name, module) for name, module in _pretrained(model)]
    if not found:
        return None
    fields: list[HfField] = []
    fixed: dict[str, str] = {}
    meta = _on_meta(model)
    for group in players.groups:
        if any(group.name in known.groups for known in fields):
            continue
        part = next((p for p in found if all(p.holds(m.module) for m in group.members)), None)
        why = "they stand in no model of transformers" if part is None else _field(part, meta, players, group)
        if isinstance(why, HfField):
            fields.append(why)
        else:
            fixed[group.name] = why
    tied = {name for known in fields for name in known.groups}
    return HfFields(tuple(fields), {name: why for name, why in fixed.items() if name not in tied})


def config_refusal(model: nn.Module, players: Players, kept: KeptPlayers) -> str | None:
    """Why the configurations inside ``model`` cannot say that the players ``kept`` (n,) stay; None where they can."""
    assert players.config is not None
    dense = {group.name: len(group) for group in players.groups}
    left = {group.name: int(kept[group.indices].sum()) for group in players.groups}
    why = players.config.refusal(dense, left)
    if why is not None:
        return why
    small = remove_players(_on_meta(model), players, kept)
    for name, module in _pretrained(model):
        values = _numbers(players, left, name)
        why = _difference(_shapes(small.get_submodule(name)), _Pretrained(name, module).built(values))
        if why is not None:
            return why
    return None


def write_configs(small: nn.Module, players: Players, kept: KeptPlayers) -> None:
    """Write into the configurations inside ``small``, in place, that the players ``kept`` (n,) stay."""
    left = {group.name: int(kept[group.indices].sum()) for group in players.groups}
    for name, module in _pretrained(small):
        configs = {id(c): c for m in module.modules() if type(c := getattr(m, "config", None)) is type(module.config)}
        for config in configs.values():  # encoders and decoders may have copies
            _set(config, _numbers(players, left, name))


def _numbers(players: Players, left: Mapping[str, int], name: str) -> dict[str, int]:
    """The fields of the model at ``name`` when so many players per group are left."""
    assert players.config is not None
    values: dict[str, int] = {}
    for counted in players.config.fields:
        stay = left[counted.groups[0]]
        if counted.model == name and stay < len(players.group(counted.groups[0])):
            values |= dict(counted.pinned)
            values |= {key: n * stay for key, n in zip(counted.names, counted.each, strict=True)}
    return values


@dataclass(frozen=True, eq=False)
class _Pretrained:
    """A model of transformers, where it stands in the network, and what has been built from its configuration."""

    name: str
    module: Any
    known: dict[frozenset[tuple[str, int]], Shapes | str] = field(default_factory=dict)

    def holds(self, layer: str) -> bool:
        """Whether a layer of the network stands in it."""
        return not self.name or layer.startswith(f"{self.name}.")

    def built(self, values: Mapping[str, int]) -> Shapes | str:
        """Shapes of a model that is built anew with these numbers; or what its classes have against them."""
        key = frozenset(values.items())
        if key not in self.known:
            with silence(), preserve_globals(), torch.device("meta"):
                try:  # as from_pretrained does, which reads a config.json
                    config = copy.deepcopy(self.module.config)
                    _set(config, values)
                    self.known[key] = _shapes(type(self.module)(type(config).from_dict(config.to_dict())))
                except Exception as error:  # of any kind: a number that is computed, a validator, the constructor
                    self.known[key] = _last_line(error)
        return self.known[key]


@dataclass(frozen=True)
class _FieldChange:
    """Fields that may set the number of players of a group; what each loses with one player, and what stays."""

    each: Mapping[str, int]
    pinned: Mapping[str, int]

    def values(self, left: int) -> dict[str, int]:
        """The fields when ``left`` players stay."""
        return {**self.pinned, **{name: n * left for name, n in self.each.items()}}

    def __str__(self) -> str:
        return " and ".join(self.each)


def _field(part: _Pretrained, meta: nn.Module, players: Players, group: Group) -> HfField | str:
    """The field that says how many players of a group stay, or why there is none."""
    kind = kind_of_group(group)
    if kind is not None:
        return kind.fixed
    if any(m.role == "norm" and players.layers[m.module].held for m in group.members):
        return "its norms are compensated, which config.json cannot say; find_players with norm='slice'"
    if any(len(set(m.widths.tolist())) > 1 for m in group.members):
        return "its players differ in size, which no number of config.json can say"
    why = _difference(_shapes(meta.get_submodule(part.name)), part.built({}))
    if why is not None:
        return f"config.json does not describe the dense model: {why}"
    reasons = []
    for knob in _field_changes(part.module.config, players, group):
        found = _try_change(part, meta, players, group, knob)
        if isinstance(found, HfField):
            return found
        reasons.append(found)
    return reasons[0] if reasons else f"no number of config.json counts the {len(group)} players"


def _field_changes(config: Any, players: Players, group: Group) -> Iterator[_FieldChange]:
    """What may set the number of players: fields with that number, or with as many heads as the players own."""
    n = len(group)
    widths = [int(m.widths[0]) for m in group.producers]
    if not widths:
        return
    least = _least(group)
    numbers = dict(_integers(config))
    if least == 1:
        yield from (_FieldChange({name: 1}, {}) for name, value in numbers.items() if value == n)
        unset = [key for key, value in config.to_dict().items() if value is None]
        yield from (_FieldChange({name: 1}, {}) for name in unset if any(word in name for word in _HIDDEN))
        return
    sizes = {n * (width // least) for width in widths}  # query heads per player, and key heads
    heads = {
        name: value // n
        for name, value in numbers.items()
        if value in sizes | {n} and "head" in name and "dim" not in name and "size" not in name
    }
    pins = [{}] if numbers.get("head_dim") else [{}, {"head_dim": least}]
    for pinned in pins:
        if heads:
            yield _FieldChange(heads, pinned)
        if len(heads) > 1:
            yield from (_FieldChange({name: each}, pinned) for name, each in heads.items())


def _least(group: Group) -> int:
    """The fewest channels that each player has in a layer: the size of a head, 1 of a neuron (its gate beside it)."""
    return min(int(m.widths[0]) for m in (*group.producers, *group.consumers))


def _try_change(
    part: _Pretrained, meta: nn.Module, players: Players, group: Group, knob: _FieldChange
) -> HfField | str:
    """What a knob does: the field it is, or what speaks against it."""
    n = len(group)
    several = _least(group) > 1  # classes often accept only some numbers of heads
    counts: tuple[int, ...] | None = None
    tried = {left: part.built(knob.values(left)) for left in (range(n - 1, 0, -1) if several else {n - 1, 1})}
    for step in [] if several else [s for s in range(2, n // 2 + 1) if n % s == 0]:  # a multiple of heads
        if not all(isinstance(shapes, str) for shapes in tried.values()):
            break
        ends = {left: part.built(knob.values(left)) for left in (n - step, step)}
        if not any(isinstance(shapes, str) for shapes in ends.values()):
            counts = tuple(range(step, n + 1, step))
        tried |= ends
    built = {left: shapes for left, shapes in tried.items() if not isinstance(shapes, str)}
    if not built:
        return f"{knob} cannot say that {n - 1} of {n} players stay: {tried.get(n - 1, 'a layer would be empty')}"
    dense = part.built({})
    assert not isinstance(dense, str)
    moved = {
        (name, axis)
        for shapes in built.values()
        for name, shape in shapes.items()
        for axis in range(len(shape))
        if len(dense.get(name, ())) != len(shape) or dense[name][axis] != shape[axis]
    }
    groups = [g for g in players.groups if any(_touches(part, meta, players, m, moved) for m in g.members)]
    if group not in groups:
        return f"{knob} does not set the width of its layers: the size of each player follows from it"
    other = next((g for g in groups if len(g) != n), None)
    if other is not None:
        return f"{knob} is also a width of {other.name!r}"
    for left in {max(built), min(built)}:  # both ends: divisions with a remainder can agree at one of them
        kept = np.ones(players.n, dtype=bool)
        for g in groups:
            kept[g.indices[left:]] = False
        try:
            small = remove_players(copy.deepcopy(meta), players, kept)
        except SurgeryError as error:
            return f"{knob} cannot be tried: {error}"
        why = _difference(_shapes(small.get_submodule(part.name)), built[left])
        if why is not None:
            return f"{knob} counts more than these players: {why}"
    counts = (*sorted(built), n) if several else counts
    each, pinned = tuple(knob.each.values()), tuple(knob.pinned.items())
    return HfField(tuple(knob.each), each, tuple(g.name for g in groups), counts, part.name, pinned)


def _touches(part: _Pretrained, meta: nn.Module, players: Players, member: Member, moved: set[tuple[str, int]]) -> bool:
    """Whether an axis of a parameter that changed its length is that of a member's channels."""
    name = member.module.partition("@")[0]
    inside, layer = name[len(part.name) + 1 :] if part.name else name, players.layers[member.module]
    for key, axis in moved:
        own = key[len(inside) + 1 :] if key.startswith(f"{inside}.") else None
        if key == inside:
            return axis == layer.axis
        if own is not None:
            sides = parameter_sides(meta.get_submodule(name), layer, own)
            if not sides or sides.get(axis) == member.role:
                return True
    return False


def _difference(ours: Shapes, built: Shapes | str) -> str | None:
    """Where a cut model differs from one that is built from a configuration; or why none can be built."""
    if isinstance(built, str):
        return f"a model cannot be built from it: {built}"
    for name, shape in ours.items():
        if built.get(name) != shape:
            what = f"is {list(built[name])}" if name in built else "does not exist"
            return f"{name} is {list(shape)} here, and {what} when built from it"
    return None


def _pretrained(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The outermost models of transformers in a network, by name."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(not other or name.startswith(f"{other}.") for other in found)
        known = all(callable(getattr(module, word, None)) for word in ("save_pretrained", "from_pretrained"))
        if not inside and known and hasattr(getattr(module, "config", None), "to_dict"):
            found.append(name)
            yield name, module


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of a network without any weights: shapes only."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {}
    for tensor in tensors:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(module).items()}


def _integers(config: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers of a configuration, nested ones by dotted names."""
    for name, value in vars(config).items():
        if type(value) is int and not name.startswith("_"):
            yield prefix + name, value
        elif hasattr(value, "to_dict"):
            yield from _integers(value, f"{prefix}{name}.")


def _set(config: Any, values: Mapping[str, int]) -> None:
    for name, value in values.items():
        *path, last = name.split(".")
        owner = config
        for step in path:
            owner = getattr(owner, step)
        setattr(owner, last, value)


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)

"""Players as they stand in JSON documents: the types of their fields, and what must fit together. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from shaprune.errors import InputError
from shaprune.players.layer_costs import Kind
from shaprune.players.roles import PARTS, Role
from shaprune.storage.typed_json import Count, Document, Number, Positive, Size, typed

WHAT = "these are not players written by shaprune"
LISTED = Field(strict=False)  # JSON has lists where we have tuples


class _Member(Document):
    module: str
    role: Role
    channels: list[list[Count]]


class _Group(Document):
    name: str
    members: list[_Member]
    labels: list[str] = []  # noqa: RUF012  # pydantic copies it


class _Layer(Document):
    kind: Kind
    n_in: Count
    n_out: Count
    groups: Positive
    kernel: Count
    bias: bool
    positions: Size
    axis: int = 0
    least: Count = 1
    heads: Literal["out", "in"] | None = None
    numbers: Sequence[str] | None = None
    divided: Literal["out", "in"] = "out"
    sizes: Sequence[Annotated[tuple[str, Sequence[Count]], LISTED]] = ()
    passes: Sequence[Count | str | None] = ()
    returns: Count | None = None
    itemsize: Count = 4
    buffers: Size = 0
    activation: Size = 0
    depth: Positive = 1
    cells: Count = 0
    tied: bool = False
    norm: str = ""
    everywhere: bool = False
    eps: Number = 0.0
    axes: Count = 0
    held: Sequence[Number] = ()
    narrow: bool = False


class _Field(Document):
    names: Sequence[str]
    each: Sequence[Count]
    groups: Sequence[str]
    counts: Sequence[Count] | None
    model: str
    pinned: Sequence[Annotated[tuple[str, int], LISTED]]


class _Config(Document):
    fields_: Sequence[_Field]
    fixed: dict[str, str]


class _Players(Document):
    groups: list[_Group]
    layers: dict[str, _Layer]
    skipped: list[Annotated[tuple[str, Count, str], LISTED]]
    model_params: Count
    model_macs: Size
    model_bytes: Count = 0
    model_activations: Size = 0
    weights: dict[str, list[Size]] = {}  # noqa: RUF012  # pydantic copies it


def check_players(data: Any) -> None:
    """Check players as `Players.to_json` writes them.

    Raises:
        InputError: a field that is missing or of the wrong kind, or parts that do not fit together.
    """
    found = typed(_Players, data, WHAT)
    names = [group.name for group in found.groups]
    if len(set(names)) < len(names):
        raise InputError(f"{WHAT}: two groups have one name")
    for group in found.groups:
        sizes = {len(member.channels) for member in group.members}
        if len(sizes) != 1 or 0 in sizes:
            raise InputError(f"{WHAT}: the members of group {group.name!r} do not have the same players")
        if len(group.labels) not in (0, *sizes):
            raise InputError(f"{WHAT}: labels do not fit the players of group {group.name!r}")
        for player in range(min(sizes)):
            if not any(member.channels[player] for member in group.members):
                raise InputError(f"{WHAT}: player {player} of group {group.name!r} owns nothing")
        for member in group.members:
            _check_member(member, group.name, found.layers.get(member.module))


def check_config(data: Any, groups: list[str]) -> None:
    """Check what a configuration can say, as `HfFields.to_json` writes it, of groups with these names.

    Raises:
        InputError: a field that is missing or of the wrong kind, or an unknown group.
    """
    found = typed(_Config, {**data, "fields_": data.get("fields")} if isinstance(data, dict) else data, WHAT)
    for field in found.fields_:
        if len(field.names) != len(field.each) or not field.groups:
            raise InputError(f"{WHAT}: a field of its configuration is not whole")
    unknown = {*found.fixed, *(name for field in found.fields_ for name in field.groups)} - set(groups)
    if unknown:
        raise InputError(f"{WHAT}: its configuration names {min(unknown)!r}, which is no group")


def _check_member(member: _Member, group: str, layer: _Layer | None) -> None:
    if layer is None:
        raise InputError(f"{WHAT}: layer {member.module!r} of group {group!r} is missing")
    if len(layer.held) not in (0, layer.n_out):
        raise InputError(f"{WHAT}: what layer {member.module!r} holds does not fit its channels")
    if any(not counted or max(counted) >= layer.n_out for _, counted in layer.sizes):
        raise InputError(f"{WHAT}: a size of layer {member.module!r} counts outputs that it does not have")
    part = PARTS[member.role]
    width = layer.n_in if part.takes_in and not part.takes_out else max(layer.n_in, layer.n_out)
    top = max((max(channels) for channels in member.channels if channels), default=-1)
    if top >= width:
        raise InputError(f"{WHAT}: layer {member.module!r} has no channel {top}")

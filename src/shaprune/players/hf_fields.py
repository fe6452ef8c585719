"""Fields of a Hugging Face config.json that can express a pruned network. Pure data, no torch.

There, one number holds for all layers, so that a model is loaded again by ``from_pretrained`` only where every layer
lost the same number of heads, or of hidden neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class HfField:
    """Numbers of a configuration that say together how many players stay in each of some groups.

    Attributes:
        names: the fields, such as ``("num_attention_heads", "num_key_value_heads")``; dots lead into nested
            configurations.
        each: what each of them loses with one player of every group.
        groups: names of the groups, which must all lose the same number of players.
        counts: players per group that may stay, as far as the configuration accepts them; None = any number.
        model: where in the network the model with this configuration stands; ``""`` is the network itself.
        pinned: fields to be written down, with their value, because they would follow from the others (``head_dim``).
    """

    names: tuple[str, ...]
    each: tuple[int, ...]
    groups: tuple[str, ...]
    counts: tuple[int, ...] | None = None
    model: str = ""
    pinned: tuple[tuple[str, int], ...] = ()

    def allows(self, left: int) -> bool:
        """Whether ``left`` players may stay in every group."""
        return self.counts is None or left in self.counts

    def __str__(self) -> str:
        return " and ".join(self.names)


@dataclass(frozen=True)
class HfFields:
    """Which groups a configuration can say something about.

    Attributes:
        fields: the numbers that can be changed, and the groups they belong to.
        fixed: why the players of every other group must all stay, by group name.
    """

    fields: tuple[HfField, ...]
    fixed: Mapping[str, str]

    def refusal(self, dense: Mapping[str, int], left: Mapping[str, int]) -> str | None:
        """Why a configuration cannot say that ``left`` of ``dense`` players stay in each group; None where it can."""
        for name, why in self.fixed.items():
            if left[name] != dense[name]:
                return f"group {name!r} loses {dense[name] - left[name]} players, and {why}"
        for field in self.fields:
            counts = {name: left[name] for name in field.groups}
            first = field.groups[0]
            other = next((name for name in counts if counts[name] != counts[first]), None)
            if other is not None:
                return (
                    f"{field} is one number for {len(field.groups)} groups, and {counts[first]} players stay in "
                    f"{first!r}, {counts[other]} in {other!r}"
                )
            if not field.allows(counts[first]):
                return f"{field} cannot say that {counts[first]} players stay in {first!r}, only {_listed(field)}"
        return None

    def __str__(self) -> str:
        """What is fixed, and why, one line each."""
        return "\n".join(f"  {name}: {why}" for name, why in self.fixed.items())

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"fields": [asdict(field) for field in self.fields], "fixed": dict(self.fixed)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> HfFields:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or of the wrong kind.
        """
        return HfFields(tuple(_field(f) for f in data["fields"]), {str(k): str(v) for k, v in data["fixed"].items()})


def _listed(field: HfField) -> str:
    """The numbers of players that a field can say."""
    return ", ".join(str(n) for n in field.counts or ())


def _field(data: Mapping[str, Any]) -> HfField:
    counts = data["counts"]
    return HfField(
        _strings(data["names"]),
        tuple(int(n) for n in data["each"]),
        _strings(data["groups"]),
        None if counts is None else tuple(int(n) for n in counts),
        str(data["model"]),
        tuple((str(name), int(value)) for name, value in data["pinned"]),
    )


def _strings(data: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(entry) for entry in data)

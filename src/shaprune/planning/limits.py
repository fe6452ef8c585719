"""Limits of a plan: how far each group may shrink, in which order, and how many players leave at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from shaprune.errors import InputError
from shaprune.options.fields import as_list, option
from shaprune.players.hf_fields import HfFields
from shaprune.players.players import Group, Member, Players


def shares_of(texts: Sequence[str]) -> dict[str, float]:
    """``["0.5", "layer1*=0.25"]`` -> the largest share that leaves, per glob.

    Raises:
        InputError: a glob twice, or a share that is no number.
    """
    shares: dict[str, float] = {}
    for text in texts:
        glob, _, number = text.rpartition("=")
        if (glob or "*") in shares:
            raise InputError(f"{glob or 'a share for all groups'} is given twice")
        try:
            shares[glob or "*"] = float(number)
        except ValueError:
            raise InputError(f"{number!r} in {text!r} is no share, such as 0.5 or 'layer1*=0.25'") from None
    return shares


@dataclass(frozen=True)
class Limits:
    """What a plan must leave in every group, whatever the budget.

    Attributes:
        min_players: players that stay in every group.
        min_width: channels that stay in every layer whose filters a group takes (convolutions, linear layers,
            embeddings); never below 1, because a layer without channels does not run. A narrower layer stays whole.
        round_to: such a layer is left whole or with a multiple of so many channels. Where a player owns several
            channels of a layer (heads, slots of a grouped convolution), only so many players leave together that every
            width fits; where no number does (a dense width of 10, two channels per player, multiples of 8 below it
            out of reach), the group stays whole.
        max_removed: the largest share of a group's players, and of their channels in each such layer, that leaves; or
            one per glob over group names, of which the smallest holds.
        keep: globs over the names of groups whose players all stay.
        hf_uniform: only what the config.json of a Hugging Face model can say is left: the same number of players in all
            groups that one of its fields counts, and all players of groups that none counts.

    Raises:
        InputError: a number out of range.
    """

    min_players: int = option(1, "Players that stay in every group.", least=0)
    min_width: int = option(1, "Channels that stay in every layer that loses some.", least=1)
    round_to: int = option(1, "Layers that lose channels are left with a multiple of so many, such as 8.", least=1)
    max_removed: float | Mapping[str, float] = option(
        1.0,
        "The largest share of a group that leaves: 0.5, or 'layer1*=0.25' for some groups. Repeatable.",
        metavar="[GLOB=]SHARE",
        read=shares_of,
        repeated=True,
        plain=float | dict[str, float],
        shown="1",
    )
    keep: str | Sequence[str] = option(
        (), "Groups whose players all stay. Repeatable.", metavar="GLOB", repeated=True, plain=str | tuple[str, ...]
    )
    hf_uniform: bool = option(
        False,
        "Only what the config.json of a transformers model can say: as many heads or neurons from every layer.",
    )

    def __post_init__(self) -> None:
        for name, number, least in (
            ("min_players", self.min_players, 0),
            ("min_width", self.min_width, 1),
            ("round_to", self.round_to, 1),
        ):
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise InputError(f"{name} is {number!r}; it must be a whole number, {least} or above")
        for glob, share in self.shares.items():
            if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
                raise InputError(f"max_removed is {share!r} for {glob!r}; it must be a share between 0 and 1")

    @property
    def shares(self) -> dict[str, float]:
        """`max_removed` per glob."""
        return dict(self.max_removed) if isinstance(self.max_removed, Mapping) else {"*": self.max_removed}

    @property
    def spared(self) -> tuple[str, ...]:
        """The globs of `keep`."""
        return tuple(as_list(self.keep))

    def __str__(self) -> str:
        """The limits that hold, as options: what can be loosened where a budget cannot be met."""
        given = [f"min_players={self.min_players}", f"min_width={self.min_width}"]
        given += [f"round_to={self.round_to}"] if self.round_to > 1 else []
        given += [f"max_removed={self.max_removed}"] if min(self.shares.values(), default=1) < 1 else []
        given += [f"keep={self.keep!r}"] if self.spared else []
        given += ["hf_uniform=True"] if self.hf_uniform else []
        return ", ".join(given)

    def share(self, group: Group) -> float:
        """The largest share of a group that may leave."""
        if any(fnmatchcase(group.name, glob) for glob in self.spared):
            return 0.0
        return min([share for glob, share in self.shares.items() if fnmatchcase(group.name, glob)], default=1.0)


def check_hf_uniform(players: Players) -> HfFields:
    """Check that a config.json can say that some of these players are gone.

    Raises:
        InputError: why it cannot, and what to do.
    """
    if players.config is None:
        raise InputError(
            "hf_uniform=True is for models of transformers (a config and save_pretrained), and these players are of "
            "another network, or were saved by an older shaprune; leave it out, and keep the pruned network by sp.save"
        )
    if not players.config.fields:
        raise InputError(
            "hf_uniform=True: config.json cannot say that any of these players is gone; find other players, or leave "
            f"it out and keep the pruned network by sp.save\n{players.config}"
        )
    return players.config


def _of_others(players: Players, member: Member) -> int:
    """How many channels that a layer reads are players of other groups, and may leave with these."""
    ours = int(member.widths.sum())
    theirs = [m for group in players.groups for m in group.consumers if m.module == member.module]
    return sum(int(m.widths.sum()) for m in theirs) - ours

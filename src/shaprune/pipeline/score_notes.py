"""Notes on scores: how the rows were run, and which values carry no information."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from shaprune.errors import ShapruneWarning
from shaprune.network.game.network_game import NetworkGame
from shaprune.runs.session import RunOptions
from shaprune.values.result import Values
from shaprune.values.stopping import Reason, Rule


def running_notes(
    games: Mapping[str, NetworkGame], stop: Rule | Reason | None, run_options: RunOptions
) -> tuple[str, ...]:
    """Say which games were not run in the fastest way, and what a run depends on besides its seed."""
    notes = []
    because = ((name, game.whole_because) for name, game in games.items() if game.whole_because is not None)
    for reason, names in _by_text(because).items():
        of = "" if len(names) == len(games) else f" of {', '.join(names)}"
        notes.append(f"the whole model was run for every coalition{of}: {reason}")
    refuted = [(name, what, why) for name, game in games.items() for what, why in game.refuted]
    for what, names in _by_text((name, what) for name, what, _ in refuted).items():
        why = next(why for _, other, why in refuted if other == what)
        notes.append(f"{', '.join(names)}: {what}, because it answers otherwise than the plain masked network ({why})")
    for together in dict.fromkeys(game.inseparable_because for game in games.values()):
        if together is not None:
            notes.append(f"{together}: one order of leaving for all examples, not one for each")
    if run_options.path is not None and isinstance(stop, Rule) and "seconds" in stop.kinds:
        notes.append(
            "the stopping rule looks at the clock: a run that is resumed may end elsewhere than one that is not"
        )
    if run_options.shard is not None:
        notes.append(f"shard {run_options.shard}: merge the shards, then score without a shard")
    return tuple(notes)


def flat_notes(values: Mapping[str, Values], games: Mapping[str, NetworkGame]) -> tuple[str, ...]:
    """Question values that are all the same with standard error 0, and name the likely cause; each is a warning, too.

    Args:
        values: of every group, or of all groups together.
        games: those that are still known, by the same names.

    Warns:
        ShapruneWarning: per cause.
    """
    found = []
    for name, group in values.items():
        if group.flat:
            cause = games[name].why_flat() if name in games else "the game does not distinguish its players"
            found.append((name, f"{group.value[0]:g} with standard error 0: {cause}"))
    notes = [f"all values of {', '.join(names)} are {what}" for what, names in _by_text(found).items()]
    for note in notes:
        warnings.warn(note, ShapruneWarning, stacklevel=3)
    return tuple(notes)


def _by_text(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names that share a text, by the text."""
    found: dict[str, list[str]] = {}
    for name, text in pairs:
        found.setdefault(text, []).append(name)
    return found

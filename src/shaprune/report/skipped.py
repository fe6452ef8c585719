"""Skipped layers, grouped by reason. No torch."""

from __future__ import annotations

from shaprune.players.players import Players


def by_reason(players: Players) -> dict[str, list[str]]:
    """Reason -> the layers it holds for, with their channels, in order of execution."""
    found: dict[str, list[str]] = {}
    for layer in players.skipped:
        found.setdefault(layer.reason, []).append(str(layer))
    return found

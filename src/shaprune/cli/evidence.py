"""Evidence for ``shaprune report``: feature maps, and pairs of players that can replace each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

import shaprune as sp
from shaprune.builtin.datasets import Dataset
from shaprune.cli.command import as_usage_error, say
from shaprune.cli.images import read_images
from shaprune.errors import InputError
from shaprune.report.content import Evidence
from shaprune.values.redundancy import MAX_PLAYERS

_REDUNDANCY_EXAMPLES = 200


def gather_evidence(
    evidence: Evidence,
    scores: sp.Scores,
    model: nn.Module,
    data: Dataset,
    images: str | None,
    groups: Sequence[str],
    examples: int,
    seed: int,
) -> Evidence:
    """The evidence, with what was seen on ``images``, and with the redundancy of ``groups``."""
    with as_usage_error("--redundancy"):
        for name in groups:
            if (n := len(scores.players.group(name))) > MAX_PLAYERS:
                raise InputError(f"{name} has {n} players; at most {MAX_PLAYERS} of a group are compared")
    if images is not None:
        chosen = read_images(images, data)
        say(f"looking at {len(chosen)} images ...")
        evidence = replace(evidence, look=sp.feature_maps(model, scores.players, scores, chosen, classes=data.classes))
    found = {}
    for name in groups:
        part = data.held_out.take(min(examples, _REDUNDANCY_EXAMPLES))
        say(f"comparing the players of {name} on {len(part):,} held-out examples ...")
        game = sp.NetworkGame(model, scores.players, part.batches(), "fidelity", name)
        found[name] = sp.metrics.redundancy(game, seed=seed)
    return replace(evidence, redundancies=found)

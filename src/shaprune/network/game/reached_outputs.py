"""Reached outputs: whether players reach the output that a worth looks at, where a network has several."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shaprune.errors import InputError, ShapruneWarning
from shaprune.network.batches import main_output, named_leaves
from shaprune.network.borrow import borrowed
from shaprune.network.forward.calibration import FORWARD_BATCH, Calibration
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import MaskSite, masked
from shaprune.players.players import Group, Players

_FEW = 4  # examples that are tried


def check_reached(calibration: Calibration, players: Players, groups: Sequence[Group]) -> None:
    """Look whether the output that worths look at changes when all players of some groups leave.

    Args:
        calibration: the network and its examples.
        players: of all groups.
        groups: that play.

    Raises:
        InputError: no player of the network reaches it, but another output.

    Warns:
        ShapruneWarning: no player of these groups does, but others do.
    """
    if len(calibration.output_names) < 2:
        return
    main, moved = _moved(calibration, mask_sites(players, groups, calibration.device))
    if not moved or main in moved:
        return
    _, by_all = _moved(calibration, mask_sites(players, players.groups, calibration.device))
    names = ", ".join(group.name for group in groups[:3]) + (", ..." if len(groups) > 3 else "")
    advice = f"give forward=lambda model, inputs: model(inputs){moved[0]}, or what should be judged"
    if main not in by_all:
        raise InputError(
            f"the worth looks at the output {main}, which no player reaches; {' and '.join(by_all)} they do: {advice}"
        )
    warnings.warn(
        f"the worth looks at the output {main}, which no player of {names} reaches, so that their values are 0; "
        f"{' and '.join(moved)} they do: {advice}, or exclude them",
        ShapruneWarning,
        stacklevel=3,
    )


def _moved(calibration: Calibration, sites: Sequence[MaskSite]) -> tuple[str, list[str]]:
    """The name of the output that worths look at, and those of the outputs that the players behind masks change."""
    most = FORWARD_BATCH if calibration.meet else _FEW
    rows = torch.arange(min(most, calibration.n_examples), device=calibration.device)
    with borrowed(calibration.model), torch.no_grad():
        dense = calibration.forward(calibration.model, calibration.rows(rows))
        with masked(calibration.model, sites, torch.zeros(1, sites[0].n_players, device=calibration.device)):
            without = calibration.forward(calibration.model, calibration.rows(rows))
    ours, theirs = _tensors(dense), _tensors(without)
    looked_at = main_output(dense)
    main = next(name for name, tensor in ours.items() if tensor is looked_at)
    return main, [name for name, tensor in ours.items() if name not in theirs or not torch.equal(tensor, theirs[name])]


def _tensors(outputs: Any) -> dict[str, Tensor]:
    return {name: leaf for name, leaf in named_leaves(outputs).items() if isinstance(leaf, Tensor)}

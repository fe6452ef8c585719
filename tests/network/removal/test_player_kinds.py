"""A kind of players is a row: what a file of its own defines is found, masked, proved, planned, cut and saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch
from testkit.reported import made_up
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import shaprune as sp
from shaprune.network.batches import Inputs
from shaprune.network.discovery import unit_filters
from shaprune.network.removal import player_kinds
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import MaskSite, masked
from shaprune.network.removal.player_kinds import KINDS, PlayerKind
from shaprune.players import roles
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Member, Skipped
from shaprune.players.roles import PARTS, SPECIAL_UNITS, Part, Role


class Gains(nn.Module):
    """Features times gains; a gain that has left is 1."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(n) + 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


# --- a kind of its own: single gains ---


def find_gains(
    copy: nn.Module, inputs: Inputs, ran: Mapping[str, Layer]
) -> tuple[list[Candidate], list[Skipped], dict[str, Layer]]:
    found = {name: len(m.gain) for name, m in copy.named_modules() if isinstance(m, Gains)}
    layers = {name: Layer("norm", n, n, 1, 0, False, 0.0, least=0) for name, n in found.items()}
    candidates = [Candidate(name, (Member(name, "gain", tuple((i,) for i in range(n))),)) for name, n in found.items()]
    return candidates, [], layers


@dataclass(frozen=True, eq=False)
class GainMask(MaskSite):
    def attach(self, model: nn.Module, mask: Tensor) -> list[RemovableHandle]:
        kept = self.columns(mask)

        def hook(module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
            return torch.where(kept.expand(len(output), -1) > 0, output, args[0])

        return [model.get_submodule(self.module).register_forward_hook(hook)]


def remove_gains(model: nn.Module, name: str, layer: Layer, gone: list[int]) -> None:
    gain = model.get_submodule(name).gain
    gain.data = gain.data.index_fill(0, torch.tensor(gone), 1)  # the memory may be shared


GAINS = PlayerKind(
    find=find_gains,
    site=lambda member, group, n, owners: GainMask(member.module, n, owners),
    remove=remove_gains,
    width=lambda module, layer: (layer.n_in, layer.n_out),
)


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "gain", Part(takes_in=False, takes_out=True, unit="gain", plural="gains"))
    monkeypatch.setitem(KINDS, "gain", GAINS)
    monkeypatch.setattr(unit_filters, "SPECIAL_UNITS", (*SPECIAL_UNITS, "gain"))  # as the row would have made it


def test_a_new_kind_is_found_masked_removed_and_costed_by_its_row(gains: None) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4), Gains(4), nn.Linear(4, 3)).eval(), torch.randn(7, 5)
    players = sp.find_players(model, x, unit="gain")
    assert players.names == tuple(f"1[{i}]" for i in range(4))
    kept = np.array([True, False, True, False])
    plan = sp.Plan.from_coalition(players, kept)
    small = sp.prune(model, plan, x)
    assert small[1].gain.tolist() == [model[1].gain[0].item(), 1, model[1].gain[2].item(), 1]
    sites = mask_sites(players, players.groups, x.device)
    with masked(model, sites, torch.from_numpy(kept[None]).float()), torch.no_grad():
        assert torch.equal(model(x), small(x))
    dense = sp.Plan.from_coalition(players, np.ones(4, dtype=bool)).cost
    assert plan.cost == {**dense, "players": 2}
    decided = sp.plan(sp.Scores(players, made_up(players)), sp.Budget(players=0.5))
    assert decided.kept.sum() == 2
    with pytest.raises(sp.InputError, match="needs channels, and the players of group '1' are gains"):
        sp.recover(small, model, plan, [x], ["refit"])


def test_every_kind_has_a_row_in_both_tables() -> None:
    assert set(KINDS) == set(SPECIAL_UNITS)
    assert set(PARTS) == set(get_args(Role))
    assert tuple(unit_filters.CHANNEL_UNITS) == roles.CHANNEL_UNITS
    assert player_kinds.kind_of_part(PARTS["both"]) is None

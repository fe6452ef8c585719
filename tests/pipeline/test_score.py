"""Scoring: one game per group or one over all, files, and compress, which is all of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from testkit.networks import NETWORKS
from testkit.options import compression
from torch import nn

import shaprune as sp
from shaprune.deploy.measure import count

MAKE, EXAMPLE = NETWORKS["plain"]
EVERY_SIZE = sp.options.Scoring(window=(0.0, 1.0))


@pytest.fixture
def model() -> nn.Module:
    return MAKE().eval()


@pytest.fixture
def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, *EXAMPLE().shape[1:], generator=generator)
    return [(inputs[:16], torch.arange(16) % 5), (inputs[16:], torch.arange(8) % 5)]


def test_every_group_has_values_in_player_order(model: nn.Module, data: list) -> None:  # type: ignore[type-arg]
    players = sp.find_players(model, EXAMPLE())
    scores = sp.score(model, players, data, "cross_entropy", progress=False, options=EVERY_SIZE)
    assert list(scores) == [g.name for g in players.groups]
    for group in players.groups:
        game = sp.NetworkGame(model, players, data, "cross_entropy", group.name)
        alone = sp.estimate(game)
        assert scores[group.name].value.tolist() == alone.value.tolist()
    with pytest.raises(sp.InputError, match="did you mean 'conv1'"):
        scores["conv11"]


def test_scores_with_exact_values_are_the_exact_values(model: nn.Module, data: list) -> None:  # type: ignore[type-arg]
    players = sp.find_players(model, EXAMPLE(), include="conv1")
    exact = sp.score(model, players, data, "fidelity", "exact", options=EVERY_SIZE)["conv1"]
    near = sp.score(model, players, data, max_evaluations=24 * 9 * 100, options=EVERY_SIZE)["conv1"]
    assert exact.value.sum() == pytest.approx(exact.worth_all - exact.worth_none)
    assert np.all(np.abs(near.value - exact.value) < 5 * near.stderr)


def test_one_game_over_all_groups_is_split_by_group(model: nn.Module, data: list) -> None:  # type: ignore[type-arg]
    players = sp.find_players(model, EXAMPLE())
    together = sp.score(
        model, players, data, "fidelity", progress=False, options=sp.options.Scoring(together=True, window=(0, 1))
    )
    whole = sp.estimate(sp.NetworkGame(model, players, data, "fidelity"))
    joined = np.concatenate([together[g.name].value for g in players.groups])
    assert joined.tolist() == whole.value.tolist()
    assert joined.sum() == pytest.approx(whole.worth_all - whole.worth_none)
    assert together["conv1"].efficiency_gap is None
    assert together.n_evaluations == whole.n_evaluations


def test_too_many_players_for_exact_are_refused_before_any_work() -> None:
    wide = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 25), nn.ReLU(), nn.Linear(25, 2)).eval()
    inputs, targets = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    players = sp.find_players(wide, inputs)
    calls = []

    def worth(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return outputs[:, 0]

    with pytest.raises(sp.InputError, match="limit is 24 players"):
        sp.score(wide, players, [(inputs, targets)], worth, "exact", progress=False)
    assert not calls  # not even the small first group was scored


def test_scores_survive_their_file_and_damage_is_named(model: nn.Module, data: list, tmp_path: Path) -> None:  # type: ignore[type-arg]
    players = sp.find_players(model, EXAMPLE())
    scores = sp.score(model, players, data, "fidelity", progress=False)
    path = tmp_path / "values.json"
    scores.save(path)
    again = sp.Scores.load(path)
    assert {k: v.value.tolist() for k, v in again.items()} == {k: v.value.tolist() for k, v in scores.items()}
    assert again.worth == "fidelity"
    assert sp.plan(again, sp.Budget(macs=0.5)).removed == sp.plan(scores, sp.Budget(macs=0.5)).removed
    document = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in document.items() if k != "values"}))
    with pytest.raises(sp.InputError, match="'values'"):
        sp.Scores.load(path)
    path.write_text(json.dumps(document | {"schema": 7}))
    with pytest.raises(sp.InputError, match="schema 7, newer"):
        sp.Scores.load(path)


def test_an_error_in_a_game_names_the_group(model: nn.Module, data: list) -> None:  # type: ignore[type-arg]
    players = sp.find_players(model, EXAMPLE(), include="conv2")
    with pytest.raises(sp.InputError, match="conv2: max_evaluations=3"):
        sp.score(model, players, data, "fidelity", max_evaluations=3, progress=False)


def test_compress_does_all_of_it_and_leaves_the_model_alone(model: nn.Module, data: list, untouched) -> None:  # type: ignore[no-untyped-def,type-arg]
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with untouched(model):
        result = sp.compress(model, data, sp.Budget(macs=0.5), example_inputs=EXAMPLE(), test=data, progress=False)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    dense, raw, small = (result.measurements[k] for k in ("dense", "raw", "pruned"))
    assert small.macs == result.plan.cost["macs"] == raw.macs <= 0.5 * dense.macs
    assert (small.parameters, small.macs) == count(result.model, EXAMPLE())
    assert small.bytes < dense.bytes
    assert result.values.worth == "fidelity"
    assert set(result.seconds) == {"find_players", "score", "plan", "prune", "recover", "measure"}


def test_compress_is_reproducible(model: nn.Module, data: list) -> None:  # type: ignore[type-arg]
    a, b = (
        sp.compress(model, data, sp.Budget(players=0.6), example_inputs=EXAMPLE(), seed=5, progress=False)
        for _ in range(2)
    )
    assert a.plan.removed == b.plan.removed
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_compress_refuses_a_bare_number_as_budget(model: nn.Module, data: list) -> None:  # type: ignore[type-arg]
    with pytest.raises(sp.InputError, match=r"sp\.Budget\(macs=0\.5\)"):
        sp.compress(model, data, 0.5, example_inputs=EXAMPLE())  # type: ignore[arg-type]


def test_compress_hands_the_limits_of_a_plan_on(model: nn.Module, data: list) -> None:  # type: ignore[type-arg]
    limits = {"round_to": 4, "max_removed": {"conv1": 0.4}, "min_width": 5}
    options = {"example_inputs": EXAMPLE(), "worth": "fidelity", "recover": (), "progress": False, **limits}
    result = sp.compress(model, data, sp.Budget(players=0.85), **compression(**options))
    kept = {g.name: int(result.plan.kept[g.indices].sum()) for g in result.plan.players.groups}
    assert kept["conv1"] == 8  # 4 of 8 would be the next multiple
    assert all(n % 4 == 0 or n == 10 for n in kept.values())
    with pytest.raises(sp.InputError, match=r"cannot be met.*min_players=9, min_width=5, round_to=4"):
        sp.compress(model, data, sp.Budget(players=0.3), **compression(min_players=9, **options))


def test_the_bar_tells_the_error_of_the_game_that_ended_last(
    model: nn.Module,
    data: list,  # type: ignore[type-arg]
    capsys: pytest.CaptureFixture[str],
) -> None:
    players = sp.find_players(model, EXAMPLE(), include="conv1")
    values = sp.score(model, players, data, "fidelity", progress=True)["conv1"]
    error = np.median(values.stderr / np.abs(values.value))
    assert f"± {error:.0%}" in capsys.readouterr().err
    sp.score(model, players, data, "fidelity", "exact", progress=True)  # exact values have no error
    assert "±" not in capsys.readouterr().err

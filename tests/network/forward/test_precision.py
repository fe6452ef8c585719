"""Rows in bfloat16: near float32, told apart from it, chosen by a probe, and kept by a run."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from testkit.networks import NETWORKS, labelled
from testkit.options import scoring
from torch import Tensor, nn

import shaprune as sp
from shaprune.errors import GameError, InputError
from shaprune.network.forward.calibration import Calibration
from shaprune.network.forward.suffix import SuffixRunner
from shaprune.network.game import precision_probe
from shaprune.network.game.precision_probe import probe_precision
from shaprune.network.game.worker_recipe import worker_recipe
from shaprune.pipeline import score as score_module

MAKE, EXAMPLE = NETWORKS["plain"]
Data = list[tuple[Tensor, Tensor]]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> nn.Module:
    return MAKE().eval()


def batches(n: int = 64) -> Data:
    return [labelled(EXAMPLE(), n)]


def games(model: nn.Module, worth: Any = "fidelity", data: Data | None = None, **options: Any) -> list[sp.NetworkGame]:
    players = sp.find_players(model, EXAMPLE().to(next(model.parameters()).dtype), include="conv*")
    calibration = Calibration(model, batches() if data is None else data)
    return [sp.NetworkGame(model, players, calibration, worth, g.name, **options) for g in players.groups]


def score(model: nn.Module, **options: Any) -> sp.Scores:
    players = sp.find_players(model, EXAMPLE(), include="conv[12]")
    return sp.score(model, players, batches(), "fidelity", progress=False, **scoring(**options))


class Norms(nn.Module):
    """Batch-norms that may and that may not be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.masked = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.twice, self.heard = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
        self.head = nn.Linear(8, 5)
        for norm in self.norms:
            norm.running_mean.normal_()  # type: ignore[operator, union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[operator, union-attr]
            nn.init.normal_(norm.weight)  # type: ignore[arg-type]
            nn.init.normal_(norm.bias)  # type: ignore[arg-type]
        self.heard.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.norms[0](self.masked(x)).relu()
        y = self.twice(x)
        x = (self.norms[1](y) + y).relu()
        x = self.norms[2](self.heard(x)).relu()
        x = self.norms[3](x)
        head: Tensor = self.head(x.mean((2, 3)))
        return head


def test_in_bfloat16_batch_norms_are_folded_where_nobody_sees_what_is_before_them() -> None:
    torch.manual_seed(0)
    model = Norms().eval()
    x = torch.randn(16, 3, 8, 8)
    players = sp.find_players(model, x[:2], include="first")
    exact, lower = (
        sp.NetworkGame(model, players, [(x, None)], "fidelity", "first", precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert isinstance(lower.runner, SuffixRunner)
    assert isinstance(exact.runner, SuffixRunner)
    assert {str(node.target) for node in lower.runner.suffix.instead} == {"masked", "norms.0"}
    assert not exact.runner.suffix.instead
    state = lower.runner.prepare(x)
    mask = (torch.rand(16, 8) < 0.5).float()
    with torch.no_grad():  # in float32, where only rounding may differ
        folded, plain = (
            game.runner.run(dict(state_of), mask)
            for game, state_of in ((lower, state), (exact, exact.runner.prepare(x)))
        )
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        model.norms[0].bias.add_(1.0)  # type: ignore[union-attr, operator]
    later = sp.NetworkGame(model, players, [(x, None)], "fidelity", "first", precision="bfloat16")
    with torch.no_grad():
        assert not torch.allclose(later.runner.run(later.runner.prepare(x), mask), folded, atol=1e-2)


@pytest.mark.parametrize("ask", ["walks", "rows", "everyone"])
@pytest.mark.parametrize("forward", [None, lambda model, x: model(x)], ids=["cut", "whole"])
@pytest.mark.filterwarnings("ignore:the whole model is run")
def test_worths_in_bfloat16_are_near_those_in_float32(model: nn.Module, ask: str, forward: Any) -> None:
    players = sp.find_players(model, EXAMPLE(), include="conv2")
    exact, lower = (
        sp.NetworkGame(model, players, batches(), "fidelity", "conv2", forward=forward, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    rng = np.random.default_rng(0)
    examples = np.arange(16)
    orders = rng.permuted(np.tile(np.arange(exact.n_players), (16, 1)), axis=1)
    coalitions = rng.random((16, exact.n_players)) < 0.5
    a, b = (
        game.walk(orders, examples) if ask == "walks" else game(coalitions, examples if ask == "rows" else None)
        for game in (exact, lower)
    )
    assert not np.array_equal(a, b)
    assert np.abs(a - b).max() <= 0.1 * np.abs(a).max()
    assert not torch.is_autocast_enabled("cpu")


def test_games_in_another_precision_are_other_games(model: nn.Module) -> None:
    first, second = games(model)[0], games(model, precision="bfloat16")[0]
    assert first.fingerprint != second.fingerprint
    assert first.at("bfloat16").fingerprint == second.fingerprint
    assert second.judged_by("cross_entropy").precision == "bfloat16"


def test_workers_play_in_the_precision_of_the_driver(model: nn.Module) -> None:
    players = sp.find_players(model, EXAMPLE(), include="conv2")
    calibration = Calibration(model, batches())
    how: dict[str, Any] = {"build": None, "max_memory": 1 << 30, "workers": 2}
    groups: dict[str, str | None] = {"conv2": "conv2"}
    made = worker_recipe(model, players, calibration, "fidelity", groups, precision="bfloat16", **how)()("conv2")
    here = sp.NetworkGame(model, players, calibration, "fidelity", "conv2", precision="bfloat16")
    row = np.ones((1, here.n_players), dtype=bool)
    row[0, ::2] = False
    assert made(row) == here(row)


def test_what_cannot_be_lowered_is_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match="for networks in float32; this one has float64 weights on cpu"):
        games(model.double(), data=[(batches()[0][0].double(), batches()[0][1])], precision="bfloat16")
    model.float()
    with pytest.raises(InputError, match=r"precision 'bfloat'.*did you mean 'bfloat16'"):
        games(model, precision="bfloat")
    with pytest.raises(InputError, match="Evaluate runs the model itself"):
        games(model, sp.Evaluate(lambda m: float(m(EXAMPLE()).detach().sum())), precision="bfloat16")
    with pytest.raises(InputError, match=r"plays no game; drop precision$"):
        score(model, method="weight_norm", precision="bfloat16")
    with pytest.raises(InputError, match="a log holds worths of one precision"):
        score(model, precision="auto", log="unused")
    with pytest.raises(InputError, match="shards must agree on a precision"):
        score(model, precision="auto", run="unused", shard="1/2")


def tick(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Probed walks take so long, in turns."""
    clock, turn = [0.0], itertools.cycle([step for s in seconds for step in (0.0, s)])

    def now() -> float:
        clock[0] += next(turn)
        return clock[0]

    monkeypatch.setattr(precision_probe.time, "perf_counter", now)


def test_a_probe_chooses_what_is_faster_and_ranks_alike(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_probe, "MIN_RANK_CORRELATION", 0.5)
    for *seconds, expected in (
        (2.0, 1.0, 1.0, "bfloat16"),
        (2.0, 1.0, 0.99, "bfloat16"),  # no reason to lay the channels out otherwise
        (2.0, 1.0, 0.8, "bfloat16-channels-last"),
        (2.0, 1.9, 1.0, "bfloat16-channels-last"),
        (1.1, 1.0, 1.2, "float32"),
        (1.0, 1.2, 0.9, "float32"),
    ):
        tick(monkeypatch, *seconds)
        chosen, why = probe_precision(games(model))
        assert chosen == expected
        assert f"{expected} by a probe" in why
    tick(monkeypatch, 2.0, 1.0, 1.0)
    assert "bfloat16 ran 2.00 times as fast" in probe_precision(games(model))[1]


def test_channels_last_are_not_tried_without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(32, 6)
    players = sp.find_players(model, x[:2])
    tick(monkeypatch, 2.0, 1.0)
    monkeypatch.setattr(precision_probe, "MIN_RANK_CORRELATION", -1.0)
    played = [sp.NetworkGame(model, players, [(x, None)], "fidelity", g.name) for g in players.groups]
    assert probe_precision(played)[0] == "bfloat16"


def test_channels_last_are_left_where_they_rank_otherwise(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    tick(monkeypatch, 2.0, 1.0, 0.5)
    monkeypatch.setattr(precision_probe, "MIN_RANK_CORRELATION", 0.5)
    correlations = itertools.cycle([1.0, 1.0, 0.4])
    monkeypatch.setattr(precision_probe, "rank_correlation", lambda *means: next(correlations))
    assert probe_precision(games(model))[0] == "bfloat16"


@pytest.mark.parametrize("group", ["conv1", "conv2"])
@pytest.mark.parametrize("ask", ["rows", "walks", "derivatives"])
def test_channels_last_give_nearly_the_same_by_other_operations(model: nn.Module, ask: str, group: str) -> None:
    players, laid = sp.find_players(model, EXAMPLE()), []
    plain, last = (
        sp.NetworkGame(model, players, batches(), "fidelity", group, precision=precision)
        for precision in ("bfloat16", "bfloat16-channels-last")
    )
    assert plain.fingerprint != last.fingerprint
    assert isinstance(last.runner, SuffixRunner)
    for node in last.runner.suffix.instead:  # the folded convolutions, which are the game's own
        last.runner.suffix.instead[node].register_forward_pre_hook(
            lambda _, args: laid.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
    rng, n = np.random.default_rng(0), plain.n_players
    coalitions, orders = rng.random((16, n)) < 0.5, np.stack([rng.permutation(n) for _ in range(16)])
    found = []
    for game in (plain, last):
        if ask == "walks":
            found.append(game.walk(orders, np.arange(16)))
        else:
            found.append((game.derivatives if ask == "derivatives" else game)(coalitions, np.arange(16)))
    assert np.abs(found[0] - found[1]).max() <= 0.1 * np.abs(found[0]).max()
    assert all(laid)
    assert bool(laid) == (group == "conv1" and ask != "walks")  # else no folded convolution is run


def test_a_probe_refuses_what_ranks_otherwise(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    tick(monkeypatch, 2.0, 1.0, 1.0)
    with torch.no_grad():
        model.fc.bias += 1000.0  # type: ignore[union-attr,operator]
    chosen, why = probe_precision(
        games(model, lambda outputs, targets: outputs.sum(1))
    )  # differences drown in the rounding
    assert (chosen, "wanted" in why) == ("float32", True)


def test_a_probe_leaves_no_values_at_the_cut_behind(model: nn.Module) -> None:
    asked = games(model)
    probe_precision(asked)
    assert all(game.evaluator.rows._cache is None for game in asked)


def test_a_probe_keeps_float32_where_it_cannot_tell(model: nn.Module) -> None:
    assert (
        probe_precision(games(model, sp.worths.SetWorth("mean", lambda outputs, targets: outputs.mean())))[0]
        == "float32"
    )
    doubles = [(batches()[0][0].double(), batches()[0][1])]
    assert probe_precision(games(model.double(), data=doubles))[0] == "float32"


def test_a_probe_falls_back_where_bfloat16_overflows(model: nn.Module) -> None:
    def worth(outputs: Tensor, targets: Tensor) -> Tensor:
        rounded = torch.equal(outputs, outputs.bfloat16().float())
        return outputs.sum(1) * (float("inf") if rounded else 1.0)

    assert probe_precision(games(model, worth)) == ("float32", "float32: bfloat16 gives worths that are not finite")
    broken = games(model, lambda outputs, targets: outputs.sum(1) * float("inf"))
    with pytest.raises(GameError):
        probe_precision(broken)


def test_scores_say_in_what_rows_were_run(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    lower, exact = score(model, precision="bfloat16"), score(model)
    assert "rows were run in bfloat16" in lower.notes
    assert not exact.notes
    assert not np.array_equal(lower["conv2"].value, exact["conv2"].value)
    monkeypatch.setattr(score_module, "probe_precision", lambda games: ("bfloat16", "bfloat16 by a probe"))
    auto = score(model, precision="auto")
    assert np.array_equal(auto["conv2"].value, lower["conv2"].value)
    assert "rows were run in bfloat16 by a probe" in auto.notes


def test_a_run_goes_on_in_the_precision_it_began_with(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(score_module, "probe_precision", lambda games: ("bfloat16", "bfloat16 by a probe"))
    began = score(model, precision="auto", run=tmp_path / "run")
    monkeypatch.setattr(
        score_module, "probe_precision", lambda games: pytest.fail("a run that has begun is not probed again")
    )
    again = score(model, precision="auto", run=tmp_path / "run")
    assert np.array_equal(began["conv2"].value, again["conv2"].value)
    assert "rows were run in bfloat16, as the run began" in again.notes
    with pytest.raises(InputError, match="precision of rows"):
        score(model, run=tmp_path / "run")


def test_auto_starts_a_run_whose_journal_is_damaged(model: nn.Module, tmp_path: Path) -> None:
    tmp_path.joinpath("journal.sqlite").write_bytes(b"no journal" * 1000)
    with pytest.warns(UserWarning, match="is damaged"):
        score(model, precision="auto", run=tmp_path)


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_scoring_by_evaluate_has_no_precision_of_its_own(model: nn.Module, precision: Any) -> None:
    players = sp.find_players(model, EXAMPLE(), include="conv2")

    def asked() -> sp.Scores:
        how: dict[str, Any] = {"max_evaluations": 40, "precision": precision, "progress": False}
        return sp.score(
            model, players, None, sp.Evaluate(lambda m: float(m(EXAMPLE()).detach().sum())), **scoring(**how)
        )

    if precision == "auto":
        assert any("rows were run in float32" in note for note in asked().notes)
        return
    with pytest.raises(InputError, match="Evaluate runs the model itself"):
        asked()

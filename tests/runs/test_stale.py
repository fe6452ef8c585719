"""Known answers are never used for another network or worth than they were paid for, through whichever door."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from testkit.networks import NETWORKS
from testkit.options import scoring
from torch import Tensor, nn

import shaprune as sp
from shaprune.runs.merge_shards import merge
from shaprune.values.games.game import Game, Question
from shaprune.values.games.witness import Witness, difference, differing, question_for

X = torch.randn(150, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(150) % 3
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:the whole model is run")]


class Net(nn.Module):
    def __init__(self, temperature: float = 1.0, act: str = "relu") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.temperature, self.act = temperature, act

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(getattr(torch, self.act)(self.one(x)))
        return self.out(x.relu()) * self.temperature


def net(**options: Any) -> nn.Module:
    return Net(**options).eval()


def hooked(hook: Callable[..., Tensor | None]) -> nn.Module:
    model = net()
    model.two.register_forward_hook(hook)
    return model


def more_where_zero(module: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
    return output + 9.0 * ((given[0] == 0).sum(1, keepdim=True) > 6)


def rewritten() -> nn.Module:
    """The same class with other code in `forward`."""
    model = net()
    model.forward = lambda x: model.out(model.two(model.one(x).relu()))  # type: ignore[method-assign]
    return model


def scaled(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: outputs[:, 0] * factor


def weighted(outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    return -F.cross_entropy(outputs, targets, weight, reduction="none")


def closing_over(weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: weighted(outputs, targets, weight)


class Option:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, 0] + self.by * outputs[:, 1]


def evaluated(factor: float) -> sp.Evaluate:
    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(X) * factor).mean())

    return sp.Evaluate(evaluate)


ONES, NINE, LONG = torch.ones(3), torch.tensor([9.0, 1.0, 1.0]), torch.ones(5_000)
OTHER = LONG.clone()
OTHER[2_500] = 2.0
ENTROPY = functools.partial(nn.CrossEntropyLoss, reduction="none")
Setting = tuple[Callable[[], nn.Module], Any]
CHANGES: dict[str, tuple[Setting, Setting, str]] = {
    "attribute": ((net, "margin"), (lambda: net(temperature=4.0), "margin"), "the network answers otherwise"),
    "activation": ((net, "margin"), (lambda: net(act="tanh"), "margin"), "the network answers otherwise"),
    "code": ((net, "margin"), (rewritten, "margin"), "network answers otherwise|differs in model"),
    "hook": ((net, "margin"), (lambda: hooked(lambda m, i, o: o * 3), "margin"), "the network answers otherwise"),
    "hook on what is masked": (
        (net, "margin"),
        (lambda: hooked(more_where_zero), "margin"),
        "answers otherwise|changed",
    ),
    "closure": ((net, scaled(1.0)), (net, scaled(1.1)), "the worth has changed"),
    "tensor in a closure": ((net, closing_over(ONES)), (net, closing_over(NINE)), "differs in worth|log of another"),
    "lambda": ((net, lambda o, t: o[:, 0]), (net, lambda o, t: o[:, 1]), "the worth has changed"),
    "instance": ((net, Option(0.0)), (net, Option(0.1)), "the worth has changed"),
    "long partial": (
        (net, functools.partial(lambda o, t, table: o[:, 0] * table.mean(), table=LONG)),
        (net, functools.partial(lambda o, t, table: o[:, 0] * table.mean(), table=OTHER)),
        "differs in worth|log of another",
    ),
    "class weights": ((net, ENTROPY(weight=ONES)), (net, ENTROPY(weight=NINE)), "differs in worth|log of another"),
    "evaluate": ((net, evaluated(1.0)), (net, evaluated(1.01)), "network, or what evaluates it|log of another"),
    "set worth": (
        (net, sp.worths.SetWorth("mine", lambda o, t: float(o.mean()))),
        (net, sp.worths.SetWorth("mine", lambda o, t: float(o.std()))),
        "worth has changed|log of another",
    ),
}


def score(setting: Setting, **options: Any) -> sp.Scores:
    model, worth = setting[0](), setting[1]
    players = sp.find_players(net(), X[:2])
    data = None if isinstance(worth, sp.Evaluate) else [(X, Y)]
    return sp.score(model, players, data, worth, progress=False, **scoring(**options))


@pytest.mark.parametrize("door", ["run", "log"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_refused_and_what_has_not_is_used(tmp_path: Path, change: str, door: str) -> None:
    before, after, named = CHANGES[change]
    options = {"run": {"max_evaluations": 4_000}, "log": {"method": "leave-one-out"}}[door] | {door: tmp_path / door}
    first = score(before, **options)
    named = f"{named}|is worth .* there and .* here" if door == "log" else named
    with pytest.raises(sp.InputError, match=named):
        score(after, **options)
    again = score(before, **options)
    assert [v.value.tolist() for v in again.values()] == [v.value.tolist() for v in first.values()]


def test_shards_of_another_network_or_worth_do_not_merge(tmp_path: Path) -> None:
    for kind, other in (("network", (lambda: net(temperature=2.0), "margin")), ("worth", (net, scaled(2.0)))):
        run = tmp_path / kind
        first = (net, "margin") if kind == "network" else (net, scaled(1.0))
        score(first, run=run, shard="1/2")
        score(other, run=run, shard="2/2")  # type: ignore[arg-type]
        with pytest.raises(sp.InputError, match=rf"2-of-2.sqlite was computed with another {kind}"):
            merge(run)


def make_cold() -> nn.Module:
    return net(temperature=0.5)


def test_workers_that_make_another_network_are_refused() -> None:
    players = sp.find_players(net(), X[:2])
    with pytest.raises(sp.InputError, match="workers play another game than this process"):
        sp.score(
            net(), players, [(X, Y)], "margin", progress=False, run=sp.options.RunOptions(build=make_cold, workers=2)
        )


def test_a_journal_without_a_witness_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaprune.runs.journal.Journal.note", lambda *_: None)
    score((net, "margin"), run=tmp_path, max_evaluations=4_000)
    with pytest.raises(sp.InputError, match="cannot be compared"):
        score((net, "margin"), run=tmp_path, max_evaluations=4_000)


def game(n_players: int = 6, n_examples: int = 400, labels: Any = None) -> Game:
    made = Game.from_function(lambda kept: kept.sum(1), n_players)
    made.n_examples, made.labels = n_examples, labels
    return made


@pytest.mark.parametrize("n_players", [1, 2, 3, 50])
def test_every_row_removes_somebody_and_the_question_stays_the_same(n_players: int) -> None:
    one, again = question_for(game(n_players)), question_for(game(n_players))
    assert not one.rows.all(1).any()
    assert (one.rows.any(1) | (n_players == 1)).all()
    assert np.array_equal(one.rows, again.rows)
    assert len({row.tobytes() for row in one.rows}) > min(n_players, 8) // 2


def test_every_class_is_asked() -> None:
    labels = np.zeros(5_000, dtype=np.int64)
    labels[4_990:] = np.arange(1, 11)
    asked = question_for(game(3, 5_000, labels)).examples
    assert asked is not None
    assert set(labels[asked]) == set(range(11))
    assert len(set(asked)) == len(asked) == 128


@pytest.mark.parametrize(
    ("then", "now", "rough", "rows"),
    [
        ([0.0, 1.0, 2.0], [0.0, 1.0, 2.00001], False, 0),  # rounding
        ([0.0, 1.0, 2.0], [0.0, 1.0, 2.001], False, 1),
        ([1e6, 1e6 + 1, 1e6 + 2], [1e6, 1e6 + 1, 1e6 + 3], False, 1),
        ([1e-9, 2e-9, 3e-9], [2e-9, 4e-9, 6e-9], False, 3),  # however small
        ([0.0, 1.0, 2.0], [0.0, 1.0, 2.02], True, 0),
        ([0.0, 0.0], [0.0, 1e-12], False, 1),
        ([1.0], [float("nan")], False, 1),
        ([1.0, 2.0], [1.0], False, 2),
        ([0.0, 1.0] * 64, [0.0, 1.0] * 63 + [1.0, 1.0], False, 0),  # one example of 128 answers otherwise
        ([0.0, 1.0] * 64, [0.0, 1.0] * 60 + [1.0, 0.0] * 4, False, 8),
    ],
)
def test_rounding_is_no_change(then: list[float], now: list[float], rough: bool, rows: int) -> None:
    assert len(differing(np.array(then), np.array(now), rough=rough)) == rows


def test_a_damaged_witness_is_an_error_of_ours() -> None:
    good = Witness(Question(np.eye(2, dtype=bool)), np.zeros(2), np.zeros(1)).to_json()
    assert difference(good, good) is None
    for wrong in (None, [], {}, {**good, "worths": "x"}, {**good, "worths": [[1], 2]}, {**good, "dense": {"a": 1}}):
        with pytest.raises(sp.InputError, match="damaged"):
            difference(wrong, good)


def test_other_precisions_are_rough() -> None:
    make, example = NETWORKS["plain"]
    model = make().eval()
    players = sp.find_players(model, example(), include="conv1")
    data = [(example().repeat(4, 1, 1, 1), None)]
    assert not sp.NetworkGame(model, players, data, "fidelity").rough
    assert sp.NetworkGame(model, players, data, "fidelity", precision="bfloat16").rough

"""The caller's data and buffers are the caller's: they come back as they were, and nothing depends on the order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shaprune as sp
from shaprune.deploy.measure import accuracy, compare
from shaprune.network.batches import concatenate, main_output, named_leaves, tensors, transform
from shaprune.network.buffers import kept_buffers

N = 60


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "normalises": lambda x: x.sub_(0.7).div_(0.5),
    "an entry": lambda x: x.index_fill_(1, torch.tensor([0]), 2.0),
    "relu": lambda x: F.relu(x, inplace=True),
    "past autograd": lambda x: x.data.mul_(0.5),
}


class Writing(nn.Module):
    """Writes to its input."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.net = how, layers()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(WRITES[self.how](x))


@pytest.mark.parametrize("how", WRITES)
def test_a_network_that_writes_to_its_input_changes_no_data_and_no_number(how: str, tmp_path: Path) -> None:
    model, x, y = Writing(how).eval(), torch.randn(N, 5), torch.randint(3, (N,))
    kept, example = x.clone(), x[:4].clone()
    true = float((model(x.clone()).argmax(1) == y).double().mean())
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]
    assert [accuracy(model, batches), accuracy(model, batches), accuracy(model, batches[::-1])] == [true] * 3
    assert compare({"a": model}, example, batches, timings=2)["a"].accuracy == true
    players = sp.find_players(model, example)
    assert sp.NetworkGame(model, players, batches)(np.ones((1, players.n), bool))[0] == pytest.approx(true)
    for criterion in ("taylor", "apoz", "hessian", "reconstruction"):
        sp.score(model, players, batches, "cross_entropy", method=criterion, progress=False)
    result = sp.compress(
        model,
        batches,
        sp.Budget(params=0.7),
        example_inputs=example,
        recover=("refit", "batchnorm", "finetune"),
        test=batches,
        progress=False,
        options=sp.options.Compression(train=batches),
    )
    assert result.measurements["dense"].accuracy == true
    pruned = float((result.model(x.clone()).argmax(1) == y).double().mean())
    assert result.measurements["pruned"].accuracy == pruned
    if how != "past autograd":
        sp.export(result.model, example, tmp_path / "small.pt2")
    assert torch.equal(x, kept)
    assert torch.equal(example, kept[:4])


def test_each_recovery_step_sees_the_data_as_they_are() -> None:
    model, x, y = Writing("normalises").eval(), torch.randn(N, 5) + 0.7, torch.randint(3, (N,))
    players = sp.find_players(model, x[:4])
    plan = sp.Plan.from_coalition(players, np.arange(players.n) % 3 > 0)
    small = sp.prune(model, plan, x[:4])
    plain = Writing("normalises").eval()
    plain.load_state_dict(model.state_dict())
    WRITES["plain"] = lambda x: (x - 0.7) / 0.5
    try:
        plain.how = "plain"
        same = sp.prune(plain, plan, x[:4])
        for step in ("refit", "batchnorm"):
            ours = sp.recover(small, model, plan, [(x, y)], (step,))
            theirs = sp.recover(same, plain, plan, [(x, y)], (step,))
            assert torch.allclose(ours(x.clone()), theirs(x.clone()), atol=1e-5)
    finally:
        del WRITES["plain"]


# -- buffers ------------------------------------------------------------------------------------------------------


class Watching(nn.Module):
    """Counts its calls, and keeps the range of its activations, in eval mode too."""

    calls: Tensor
    high: Tensor
    last: Tensor

    def __init__(self, way: str) -> None:
        super().__init__()
        self.net, self.way = layers(), way
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("high", torch.tensor(float("-inf")))
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net[:3](x)
        if self.way == "in place":
            self.calls += 1
            self.high.copy_(torch.maximum(self.high, hidden.detach().max()))
        elif self.way == "anew":
            self.calls = self.calls + 1
            self.last = hidden.detach().mean() + torch.zeros(3)
        else:
            self.calls.data.add_(1)
        return self.net[3](hidden)


@pytest.mark.parametrize("way", ["in place", "anew", "data"])
def test_buffers_that_a_network_writes_to_come_back(way: str) -> None:
    model, x, y = Watching(way).eval(), torch.randn(N, 5), torch.randint(3, (N,))
    model(x[:3])
    before = {name: (tensor, tensor.clone()) for name, tensor in model.named_buffers()}
    players = sp.find_players(model, x[:2])
    scores = sp.score(model, players, [(x, y)], "cross_entropy", progress=False)
    sp.score(model, players, [(x, y)], "cross_entropy", method="taylor", progress=False)
    accuracy(model, [(x, y)])
    plan = sp.plan(scores, sp.Budget(players=0.6))
    small = sp.prune(model, plan, x[:2])
    recovered = sp.recover(small, model, plan, [(x, y)], ("refit", "batchnorm"))
    compare({"dense": model, "small": recovered}, x[:2], [(x, y)], timings=1)
    for name, (tensor, value) in before.items():
        found = model.get_buffer(name)
        assert found is tensor
        assert torch.equal(found, value)
        if not name.startswith("net."):
            assert torch.equal(recovered.get_buffer(name), value)
    assert not torch.equal(recovered.net[1].running_mean, small.net[1].running_mean)  # type: ignore[index, union-attr]


def test_copies_of_buffers_are_made_once_and_a_change_by_the_caller_stays() -> None:
    model = layers().eval()
    mean = model[1].running_mean
    assert isinstance(mean, Tensor)
    with kept_buffers(model):
        mean.fill_(7)
    assert torch.equal(mean, torch.zeros(8))
    mean.fill_(3)  # by the caller, between two blocks
    with pytest.raises(RuntimeError, match="shape"), kept_buffers(model):
        mean.add_(1).reshape(5, 5)
    assert torch.equal(mean, torch.full((8,), 3.0))


def test_a_network_whose_answers_depend_on_the_buffers_it_writes_is_refused_by_name() -> None:
    class Drifting(Watching):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + self.calls)

    with pytest.raises(sp.InputError, match="it writes to its buffer 'calls' as it runs"):
        sp.find_players(Drifting("in place").eval(), torch.randn(2, 5))


# -- structures ---------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    one: Any
    two: Any


@dataclass(frozen=True)
class Record:
    name: str
    tensor: Any


def test_named_tuples_and_dataclasses_keep_their_kind() -> None:
    tree = Pair(torch.zeros(2), {"a": Record("x", torch.ones(2, 3))})
    doubled = transform(tree, lambda t: t + 1)
    assert isinstance(doubled, Pair)
    record = doubled.two["a"]
    assert isinstance(record, Record)
    assert record.name == "x"
    assert torch.equal(record.tensor, torch.full((2, 3), 2.0))
    assert torch.equal(tree.two["a"].tensor, torch.ones(2, 3))
    assert [t.shape for t in tensors(concatenate([tree, doubled]))] == [(4,), (4, 3)]
    assert list(named_leaves(tree)) == [".one", ".two['a'].name", ".two['a'].tensor"]


class Answer(NamedTuple):
    classes: Tensor
    boxes: Tensor


@dataclass
class Result:
    classes: Tensor
    note: str = ""


@pytest.mark.parametrize(
    "answer", [lambda a, b: Answer(a, b), lambda a, b: Result(a), lambda a, b: {"out": a, "aux": b}]
)
def test_networks_that_take_and_answer_such_structures_are_scored_and_pruned(answer: Callable[..., Any]) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.classes, self.boxes = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 4)

        def forward(self, one: Tensor, two: Tensor) -> Any:
            hidden = (self.stem(one) + self.stem(two)).relu()
            return answer(self.classes(hidden), self.boxes(hidden))

    model, x, y = Heads().eval(), torch.randn(N, 5), torch.randint(3, (N,))
    players = sp.find_players(model, Pair(x[:2], x[:2]))
    scores = sp.score(model, players, [(Pair(x, -x), y)], "cross_entropy", progress=False)
    small = sp.prune(model, sp.plan(scores, sp.Budget(players=0.5)), Pair(x[:2], x[:2]))
    kept = np.ones((1, players.n), bool)
    game = sp.NetworkGame(model, players, [(Pair(x, -x), y)], "accuracy")
    assert accuracy(model, [(Pair(x, -x), y)]) == pytest.approx(game(kept)[0])
    assert main_output(small(x, x)).shape == (N, 3)


# -- what is no list of batches, and batches that do not go together -------------------------------------------------


def test_one_batch_in_place_of_a_list_is_refused_everywhere_with_the_next_step() -> None:
    model, x = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)).eval(), torch.randn(N, 5)
    players = sp.find_players(model, x[:2])
    plan = sp.Plan.from_coalition(players, np.arange(players.n) > 0)
    small, quiet = sp.prune(model, plan, x[:2]), {"example_inputs": x[:2], "progress": False}
    asked: list[Callable[[Any], Any]] = [
        lambda data: sp.score(model, players, data, "fidelity", progress=False),
        lambda data: sp.NetworkGame(model, players, data, "fidelity"),
        lambda data: sp.recover(small, model, plan, data),
        lambda data: sp.recover(small, model, plan, [x], ("finetune",), train=data),
        lambda data: sp.compress(model, data, sp.Budget(params=0.9), **quiet),  # type: ignore[arg-type]
        lambda data: sp.compress(model, [x], sp.Budget(params=0.9), test=data, **quiet),  # type: ignore[arg-type]
        lambda data: accuracy(model, data),
    ]
    for ask in asked:
        with pytest.raises(sp.InputError, match=r"put it in a list, \[\(inputs, targets\)\]"):
            ask((x, x))
        with pytest.raises(sp.InputError, match=r"put it in a list, \[batch\]"):
            ask(x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = layers()

    def forward(self, x: Tensor, scale: float = 1.0, mode: str = "a") -> Tensor:
        return self.net(x) * scale


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"scale": 5.0}, r"input \['scale'\] is 2.0 in the first batch and 5.0 in batch 2"),
        ({"scale": 2.0, "mode": "b"}, r"batch 2 has an input \['mode'\] and batch 1 has not"),
        ({}, r"batch 1 has an input \['scale'\] and batch 2 has not"),
        ({"scale": torch.ones(20)}, r"\['scale'\] is 2.0 in the first batch and a tensor of shape \(20,\) in batch 2"),
    ],
)
def test_arguments_that_differ_between_batches_are_refused_by_name(second: dict[str, Any], words: str) -> None:
    model, x = Scaled().eval(), torch.randn(40, 5)
    players = sp.find_players(model, {"x": x[:2], "scale": 2.0})
    with pytest.raises(sp.InputError, match=words):
        sp.NetworkGame(model, players, [{"x": x[:20], "scale": 2.0}, {"x": x[20:], **second}], "fidelity")
    same = [{"x": x[:20], "scale": 2.0}, {"x": x[20:], "scale": 2.0}]
    assert sp.NetworkGame(model, players, same, "fidelity").n_examples == 40


def test_sequences_of_different_lengths_are_refused_with_the_tokenizers_option() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    players = sp.find_players(model, torch.randint(9, (2, 5)))
    with pytest.raises(sp.InputError, match=r"\(2, 5\) in the first batch and \(2, 7\) in batch 2; .*max_length=7"):
        sp.NetworkGame(model, players, [torch.randint(9, (2, 5)), torch.randint(9, (2, 7))], "fidelity")


# -- several outputs ----------------------------------------------------------------------------------------------


def test_an_output_that_no_player_reaches_is_refused_and_one_that_a_group_does_not_reach_is_told() -> None:
    class Aside(nn.Module):
        def __init__(self, keys: tuple[str, str]) -> None:
            super().__init__()
            self.net, self.keys = layers(), keys

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return dict(zip(self.keys, (x * 0, self.net(x)), strict=True))

    x = torch.randn(N, 5)
    model = Aside(("seen", "answer")).eval()
    players = sp.find_players(model, x[:2])
    with pytest.raises(
        sp.InputError, match=r"output \['seen'\], which no player reaches; \['answer'\] they do: give forw"
    ):
        sp.NetworkGame(model, players, [x], "fidelity")
    known = Aside(("aux", "out")).eval()
    every = sp.options.Scoring(window=(0.0, 1.0))
    assert sp.score(known, sp.find_players(known, x[:2]), [x], options=every)["net.0"].worth_none < -1e-3

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = layers(), layers()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    both = Two().eval()
    found = sp.find_players(both, x[:2])
    with (
        pytest.warns(sp.errors.ShapruneWarning, match="all values of b.0 are 0 with standard error 0"),
        pytest.warns(
            sp.errors.ShapruneWarning, match=r"no player of b.0 reaches, so that their values are 0; \[1\] they do"
        ),
    ):
        scores = sp.score(both, found, [x], "fidelity", progress=False)
    assert np.abs(scores["a.0"].value).max() > 0

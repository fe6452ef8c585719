"""Several threads: they take turns in a model, get the same bits, and see nothing of the process change."""

import logging
import os
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from testkit.networks import NETWORKS, labelled
from torch import Tensor, nn

import shaprune as sp
from shaprune.errors import InputError
from shaprune.network import model_turns
from shaprune.network.borrow import borrowed, copied
from shaprune.network.discovery.channels.nan_marking import _plain_attention
from shaprune.network.forward.batch_threads import torch_threads
from shaprune.network.forward.fx_tracing import graph_of
from shaprune.network.game import evaluation
from shaprune.network.model_turns import turn
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.silence import silence
from shaprune.storage.atomic_files import replacing_directory, write_text

pytestmark = pytest.mark.usefixtures("one_thread")
MAKE, EXAMPLE = NETWORKS["plain"]


class Side(threading.Thread):
    """A thread that keeps what it returns or raises."""

    def __init__(self, run: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.run_, self.result = run, None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.run_()
        except BaseException as error:
            self.result = error

    def until_it_waits(self) -> None:
        while self not in model_turns._table.waiting:
            assert self.is_alive(), self.result
            time.sleep(0.001)

    def outcome(self) -> Any:
        self.join()
        return self.result


class Branching(nn.Module):
    """A model that torch.fx cannot follow."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.norm, self.b, self.c = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(24, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.a(x)))
        if x.shape[0] < 0:
            return h
        return self.c(torch.relu(self.b(nn.functional.adaptive_avg_pool2d(h, 2).flatten(1))))


def straight(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))


DATA = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4


def values_of(model: nn.Module, worth: Any = "cross_entropy") -> Any:
    players = sp.find_players(model, DATA[0][:2])
    scores = sp.score(model, players, [DATA], worth, max_evaluations=4000)
    return np.concatenate([values.value for values in scores.values()])


def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
    """A worth that draws random numbers, and needs none."""
    return outputs.sum(1) + 0 * torch.rand(len(outputs))


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads change as often as Python allows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("worth", ["cross_entropy", noisy])
@pytest.mark.parametrize("make", [straight, Branching])
def test_threads_score_one_model_or_two_with_the_same_bits(make: Any, worth: Any, untouched: Any) -> None:
    one, two = make(1), make(2)
    expected = values_of(one, worth), values_of(two, worth)
    with untouched(one, two):
        sides = [Side(lambda model=model: values_of(model, worth)) for model in (one, two, one)]
        for side, values in zip(sides, (*expected, expected[0]), strict=True):
            assert np.array_equal(side.outcome(), values), side.outcome()


@pytest.mark.parametrize("other", [lambda model: model, nn.Sequential, lambda model: next(model.children())])
def test_who_wants_a_model_its_parts_or_what_contains_it_waits(other: Any) -> None:
    model, order = MAKE(), []
    wanted = other(model)

    def second() -> None:
        with turn(wanted):
            order.append("second")

    with borrowed(model):
        side = Side(second)
        side.until_it_waits()
        order.append("first")
    side.outcome()
    assert order == ["first", "second"]


def test_a_copy_has_no_hooks_of_another_thread() -> None:
    model = MAKE().eval()
    players = sp.find_players(model, EXAMPLE())
    with masked(
        model, mask_sites(players, players.groups[:1], torch.device("cpu")), torch.ones(1, len(players.groups[0]))
    ):
        side = Side(lambda: copied(model))
        side.until_it_waits()
    assert not any(module._forward_pre_hooks for module in side.outcome().modules())


def test_turns_nest_in_one_thread_and_end_with_the_outermost() -> None:
    model = MAKE()
    with borrowed(model), borrowed(model), turn(next(model.children())):
        pass
    assert not model_turns._table.held
    assert Side(lambda: copied(model)).outcome() is not model


def test_threads_that_would_wait_for_each_other_are_refused() -> None:
    one, two = MAKE(), MAKE()
    begun = threading.Event()

    def second() -> str:
        with turn(two):
            begun.set()
            with turn(one):
                return "done"

    with turn(one):
        side = Side(second)
        begun.wait()
        side.until_it_waits()
        with pytest.raises(InputError, match="another thread is using, which waits for a model that this"), turn(two):
            pass
    assert side.outcome() == "done"
    assert not model_turns._table.held


def test_a_thread_that_was_called_up_and_has_not_woken_waits_for_nobody() -> None:
    """The first thread gives the model back and takes it, and what the second holds, before that one runs again."""
    model = MAKE()

    def second() -> str:
        with turn(model_turns.RANDOM), turn(model):
            return "done"

    with turn(model):
        side = Side(second)
        side.until_it_waits()
    with model_turns._table.changed:  # the second cannot wake
        taken = model_turns._table.held.get(model_turns.RANDOM)
        assert taken is not None
        assert model_turns._table._other(model_turns._table.waiting.get(side, []), side) is None
    with turn(model_turns.RANDOM), turn(model):
        pass
    assert side.outcome() == "done"


def test_a_thread_that_ended_holds_nothing() -> None:
    model = MAKE()

    def begun() -> Any:
        def hold() -> Iterator[None]:
            with turn(model):
                yield

        held = hold()
        next(held)
        return held

    kept = Side(begun).outcome()
    with turn(model):
        pass
    kept.close()
    with turn(model):
        pass
    assert not model_turns._table.held


def test_a_worth_of_ours_leaves_the_random_numbers_of_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def noted(model: nn.Module, *, draws: bool = True) -> Any:
        said.append(draws)
        return borrowed(model, draws=draws)

    model = MAKE().eval()
    players = sp.find_players(model, EXAMPLE())
    ours = sp.NetworkGame(model, players, [labelled(EXAMPLE(), 8)], "fidelity", "conv1")
    theirs = sp.NetworkGame(model, players, [labelled(EXAMPLE(), 8)], noisy, "conv1")
    monkeypatch.setattr(evaluation, "borrowed", noted)
    for game in (ours, theirs):
        game(np.ones((1, game.n_players), dtype=bool))
    assert said == [False, True]

    state = torch.get_rng_state()
    with borrowed(model, draws=False):
        torch.rand(1)  # another thread's
    assert not torch.equal(torch.get_rng_state(), state)


def test_other_threads_keep_their_number_of_torch_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen() -> int:
        return int(Side(torch.get_num_threads).outcome())

    torch.set_num_threads(3)
    with torch_threads(1):
        assert (torch.get_num_threads(), seen()) == (1, 3)
        with torch_threads(2):
            assert (torch.get_num_threads(), seen()) == (2, 3)
        assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), seen()) == (3, 3)
    monkeypatch.setattr("shaprune.network.forward.batch_threads._setters", lambda: (None, None))
    with torch_threads(1):
        assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), seen()) == (3, 3)
    torch.set_num_threads(1)


def test_warnings_and_messages_are_dropped_in_one_thread_only(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("shaprune_test.inner")

    def speak(text: str) -> None:
        logger.warning(text)
        warnings.warn(text, UserWarning, stacklevel=1)

    added = ("ignore", None, BytesWarning, None, 77)
    before = list(warnings.filters)
    with silence("shaprune_test"):
        speak("mine")
        logger.error("an error")
        assert "theirs" in str(Side(lambda: speak("theirs")).outcome())
        warnings.filters.insert(0, added)  # as another thread may
    assert [message.getMessage() for message in caplog.records] == ["an error", "theirs"]
    assert warnings.filters == [added, *before]
    with pytest.warns(UserWarning, match="again"):
        speak("again")


def test_the_umask_is_never_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    with monkeypatch.context() as patched:
        patched.setattr(os, "umask", None)
        write_text(tmp_path / "a.json", "{}")
        with replacing_directory(tmp_path / "folder") as folder:
            (folder / "b").write_text("x")
            (folder / "b").chmod(0o600)
    os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "folder", "folder/b")]
    assert modes == [0o640, 0o750, 0o640]


class Calling(nn.Module):
    """Its forward runs ``meanwhile`` in another thread."""

    def __init__(self, meanwhile: Callable[[], Any]) -> None:
        super().__init__()
        self.layer, self.meanwhile = nn.Linear(4, 4), meanwhile

    def forward(self, x: Tensor) -> Tensor:
        self.meanwhile()
        return self.layer(x)


def test_a_trace_has_nothing_of_another_thread() -> None:
    other, answers = nn.Linear(4, 2), []
    graph = graph_of(Calling(lambda: answers.append(Side(lambda: other(torch.ones(1, 4))).outcome())))
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["layer"]
    assert torch.equal(answers[0], other(torch.ones(1, 4)))


def test_two_threads_that_trace_leave_torch_as_it_was() -> None:
    plain = nn.Module.__call__, nn.Module.__getattr__
    sides: list[Side] = []

    def begin() -> None:
        sides.append(Side(lambda: graph_of(nn.Linear(4, 4))))
        sides[0].until_it_waits()

    graph_of(Calling(begin))
    assert isinstance(sides[0].outcome(), torch.fx.Graph)
    assert (nn.Module.__call__, nn.Module.__getattr__) == plain


def test_plain_attention_is_attention_and_keeps_a_nan() -> None:
    q, k, v = (torch.randn(2, 2, 5, 4) for _ in range(3))
    mask = torch.rand(5, 5) < 0.7
    mask[:, 0] = True
    attention = nn.functional.scaled_dot_product_attention
    for options in ({}, {"is_causal": True}, {"attn_mask": mask}, {"scale": 0.3}):
        assert torch.allclose(_plain_attention(q, k, v, **options), attention(q, k, v, **options), atol=1e-6)
    q[0, 0, 0, 0] = float("nan")
    assert _plain_attention(q, k, v)[0, 0, 0].isnan().all()

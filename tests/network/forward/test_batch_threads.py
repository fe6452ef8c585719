"""Batches side by side: the same bits with any number of threads, errors in order, nothing left changed."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from testkit.networks import NETWORKS, labelled

import shaprune as sp
from shaprune.errors import GameError
from shaprune.network.forward import row_batches
from shaprune.network.forward import rows as rows_module
from shaprune.network.forward.batch_threads import MAX_BATCH_THREADS, n_parallel_batches, run_in_threads
from shaprune.network.game.worths import Worth

MAKE, EXAMPLE = NETWORKS["plain"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many threads every question was given."""
    counts: list[int] = []

    def noted(run: Any, parts: Any, count: int) -> Any:
        counts.append(count)
        return run_in_threads(run, parts, count)

    monkeypatch.setattr(row_batches, "run_in_threads", noted)
    return counts


def game(worth: Any = "fidelity", n: int = 64, group: str = "conv2", **options: Any) -> sp.NetworkGame:
    model = MAKE().eval()
    return sp.NetworkGame(model, sp.find_players(model, EXAMPLE()), [labelled(EXAMPLE(), n)], worth, group, **options)


def asked(n: int, n_players: int, examples: int = 64) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.random((n, n_players)) < 0.5, rng.integers(0, examples, n)


def test_results_come_in_order_whoever_is_done_first(threads: Callable[[int], None]) -> None:
    threads(4)
    together, done = threading.Barrier(4), [threading.Event() for _ in range(9)]
    order: list[int] = []

    def run(part: int) -> tuple[int, int]:
        if part < 4:
            together.wait()  # ends once four parts run
            if part < 3:
                done[part + 1].wait()
        order.append(part)
        done[part].set()
        return part, torch.get_num_threads()

    found = [(part, answer()) for part, answer in run_in_threads(run, range(9), 4)]
    assert found == [(part, (part, 1)) for part in range(9)]
    assert [part for part in order if part < 4] == [3, 2, 1, 0]
    assert torch.get_num_threads() == 4


def test_no_more_begins_than_threads_ahead_of_what_is_asked_for(threads: Callable[[int], None]) -> None:
    threads(2)
    begun: list[int] = []
    parts = run_in_threads(lambda part: begun.append(part), range(100), 2)
    next(parts)
    while len(begun) < 3:
        time.sleep(0.001)
    parts.close()  # type: ignore[attr-defined]
    assert len(begun) == 3
    assert torch.get_num_threads() == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("shaprune")]


def test_parts_run_in_the_modes_of_whoever_asks(threads: Callable[[int], None]) -> None:
    threads(2)

    def run(part: int) -> tuple[bool, bool, torch.dtype]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    def found() -> set[tuple[bool, bool, torch.dtype]]:
        return {answer() for _, answer in run_in_threads(run, range(4), 2)}

    assert found() == {(True, False, torch.float32)}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert found() == {(False, False, torch.bfloat16)}
    with torch.inference_mode():
        assert found() == {(False, True, torch.float32)}


def test_an_error_comes_where_its_part_is_asked_for_and_threads_are_put_back(threads: Callable[[int], None]) -> None:
    threads(2)

    def run(part: int) -> int:
        if part == 2:
            raise ValueError("two")
        return part

    done: list[int] = []

    def all_of_it() -> None:
        for _, answer in run_in_threads(run, range(6), 2):
            done.append(answer())

    with pytest.raises(ValueError, match="two"):
        all_of_it()
    assert done == [0, 1]
    assert torch.get_num_threads() == 2


def test_one_core_or_one_part_needs_no_threads(threads: Callable[[int], None]) -> None:
    threads(1)
    assert n_parallel_batches(10) == 1
    threads(64)
    assert (n_parallel_batches(1), n_parallel_batches(3), n_parallel_batches(100)) == (1, 3, MAX_BATCH_THREADS)
    here = threading.get_ident()
    assert [answer() for _, answer in run_in_threads(lambda _: threading.get_ident(), range(2), 1)] == [here, here]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("ask", ["rows", "derivatives", "walks"])
def test_the_same_bits_with_any_number_of_threads(
    ask: str, precision: Any, used: list[int], threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "WALK_BATCH_BYTES", 1 << 18)
    monkeypatch.setattr(row_batches, "BATCH_BYTES", 1 << 16)
    found = []
    for count in (1, 2, 5):
        threads(count)
        playing = game(group="conv1", precision=precision)
        coalitions, examples = asked(300, playing.n_players)
        orders = np.random.default_rng(1).permuted(np.tile(np.arange(playing.n_players), (64, 1)), axis=1)
        found.append(
            playing.walk(orders, np.arange(64))
            if ask == "walks"
            else playing.derivatives(coalitions, examples)
            if ask == "derivatives"
            else playing(coalitions, examples)
        )
    assert {1, 2, 5} <= set(used)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_as_many_at_a_time_as_the_memory_allows(used: list[int], threads: Callable[[int], None]) -> None:
    threads(8)
    wide = game()
    bytes_each = wide.evaluator.rows.row_bytes
    coalitions, examples = asked(1_000, wide.n_players)
    narrow = game(max_memory=400 * bytes_each)
    parts = narrow.evaluator.rows.batches.split(1_000, bytes_each)
    narrow(coalitions, examples)
    largest = max(part.stop - part.start for part in parts)
    assert largest <= 200
    assert used[-1] == 200 // largest


def test_networks_that_somebody_listens_to_run_in_the_thread_that_asks(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(4)
    monkeypatch.setattr(row_batches, "BATCH_BYTES", 1 << 16)
    playing = game()
    heard: set[int] = set()
    coalitions, examples = asked(300, playing.n_players)
    playing.model.conv3.register_forward_hook(lambda *_: heard.add(threading.get_ident()))  # type: ignore[union-attr]
    playing(coalitions, examples)
    assert heard == {threading.get_ident()}


def test_torch_has_its_threads_back_when_a_worth_is_not_finite(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(4)
    monkeypatch.setattr(row_batches, "BATCH_BYTES", 1 << 16)
    bad = Worth("bad", lambda outputs, targets: outputs.sum(1) / 0, "targets")
    playing = game(bad)
    coalitions, examples = asked(300, playing.n_players)
    with pytest.raises(GameError, match="not finite"):
        playing(coalitions, examples)
    assert torch.get_num_threads() == 4


def test_batches_without_memory_are_halved_whichever_thread_ran_them(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(2)
    monkeypatch.setattr(row_batches, "BATCH_BYTES", 1 << 16)
    playing = game()
    coalitions, examples = asked(300, playing.n_players)
    truth = playing(coalitions, examples)
    failed: list[int] = []

    def starve(playing: sp.NetworkGame) -> None:
        run = playing.runner.run

        def short(state: Any, mask: Any) -> Any:
            if len(mask) > 20:
                failed.append(threading.get_ident())
                raise torch.OutOfMemoryError("can't allocate memory")
            return run(state, mask)

        monkeypatch.setattr(playing.runner, "run", short)

    starve(playing)
    np.testing.assert_allclose(playing(coalitions, examples), truth, rtol=1e-4, atol=1e-6)
    assert len(set(failed)) > 1
    failed.clear()
    threads(1)
    playing(coalitions, examples)
    assert not failed  # batches are as small from then on
    again = game()
    starve(again)
    again(coalitions, examples)
    assert len(failed) < 5  # not every batch of a question has to fail first


def test_parts_are_even_and_never_larger_than_a_batch() -> None:
    rows = game().evaluator.rows
    for n in (0, 1, 31, 64, 100, 333, 5_000):
        parts = rows.batches.split(n, rows.row_bytes)
        sizes = [part.stop - part.start for part in parts]
        assert sum(sizes) == n
        assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
        assert not sizes or max(sizes) - min(sizes) <= 1
        assert max(sizes, default=0) <= rows.batches.largest(rows.row_bytes)
        assert not 0 < len(parts) < MAX_BATCH_THREADS or len(parts) in (1, 2, 4)

"""Batches that are recorded once and made again: the same worths, and only where it is faster.

A GPU records by CUDA graphs; here a recorder on the CPU does what these do: it notes every operation with the memory it
reads and writes, and makes it again there.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from testkit.networks import NETWORKS, labelled
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import shaprune as sp
from shaprune.network.batches import to_device
from shaprune.network.forward import cuda_graphs, row_batches, row_runner
from shaprune.network.forward import rows as rows_module
from shaprune.network.forward.cuda_graphs import USES_BEFORE_RECORDING, CudaGraphs, Recordings, recorder_for

pytestmark = pytest.mark.usefixtures("one_thread")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
MAKE, EXAMPLE = NETWORKS["plain"]


class Noted(TorchDispatchMode):
    """Notes operations; asking for a number is refused, as it is while a CUDA graph is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        output = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, tree_leaves(output)))
        return output

    def again(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, before in self.operations:
                for old, new in zip(before, tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class OnCpu:
    """Records on the CPU; ``seconds`` is what making a recording again is said to take, where the plain way takes 1."""

    def __init__(self, seconds: float = 0.5) -> None:
        self.seconds, self.recorded, self.again = seconds, 0, 0

    def record(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        with Noted() as noted:
            output = run()

        def again() -> None:
            self.again += 1
            noted.again()

        return output, again

    def wait(self) -> None:
        """Nothing is under way."""


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> OnCpu:
    """Records for every game that is made."""
    ours = OnCpu()

    def seconds(_: Any, run: Callable[[], Any]) -> float:
        before = ours.again
        run()
        return ours.seconds if ours.again > before else 1.0

    monkeypatch.setattr(row_runner, "recorder_for", lambda device: ours)
    monkeypatch.setattr(cuda_graphs, "_seconds", seconds)
    return ours


def game(worth: Any = "cross_entropy", group: str = "conv2", **options: Any) -> sp.NetworkGame:
    model = MAKE().eval()
    return sp.NetworkGame(model, sp.find_players(model, EXAMPLE()), [labelled(EXAMPLE(), 64)], worth, group, **options)


def ask(which: str, played: sp.NetworkGame, seed: int) -> Any:
    rng, n = np.random.default_rng(seed), played.n_players
    orders = np.stack([rng.permutation(n) for _ in range(16)])
    coalitions, examples = rng.random((48, n)) < 0.5, rng.integers(0, 64, 48)
    if which == "walks":
        return played.walk(orders, examples[:16])
    if which == "walks from":
        return played.walk(orders[:, : n // 2], examples[:16], np.ones(n, dtype=bool))
    if which == "everyone":
        return played(coalitions[:6])
    return played.derivatives(coalitions, examples) if which == "derivatives" else played(coalitions, examples)


KINDS = ["pairs", "walks", "walks from", "everyone", "derivatives"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("group", ["conv1", "conv2"])
@pytest.mark.parametrize("which", KINDS)
def test_worths_have_the_same_bits_with_and_without_recordings(
    recorder: OnCpu, monkeypatch: pytest.MonkeyPatch, which: str, group: str, precision: Any
) -> None:
    recorded = game(group=group, precision=precision)
    with monkeypatch.context() as patched:
        patched.setattr(row_runner, "recorder_for", lambda device: None)
        plain = game(group=group, precision=precision)
    for seed in range(USES_BEFORE_RECORDING):
        ask(which, recorded, seed)
    made = recorder.again
    for seed in range(10, 15):  # other coalitions and other examples than those that were recorded
        assert np.array_equal(ask(which, recorded, seed), ask(which, plain, seed))
    assert recorder.recorded >= 1
    assert recorder.again >= made + 5


def test_what_is_asked_seldom_is_not_recorded(recorder: OnCpu) -> None:
    played = game()
    for rows in range(2, 12):  # every batch has another shape
        played(np.ones((rows, played.n_players), dtype=bool), np.arange(rows))
    assert recorder.recorded == 0


def test_a_recording_that_is_not_faster_is_tried_once_and_dropped(recorder: OnCpu) -> None:
    recorder.seconds = 0.99
    played = game()
    for seed in range(USES_BEFORE_RECORDING):
        ask("pairs", played, seed)
    tried = recorder.recorded, recorder.again
    for seed in range(USES_BEFORE_RECORDING + 3):
        ask("pairs", played, seed)
    assert tried[0] >= 1
    assert (recorder.recorded, recorder.again) == tried


def test_what_asks_the_host_on_its_way_runs_as_before(recorder: OnCpu) -> None:
    def halved(x: Tensor) -> Tensor:
        return x / 2 if float(x.sum()) > 0 else x

    recordings = Recordings(recorder, 1 << 20)
    for i in range(2 * USES_BEFORE_RECORDING):
        x = torch.full((3,), float(i - USES_BEFORE_RECORDING))
        assert torch.equal(recordings.run(halved, [x], "halved", 1), halved(x))
    assert (recorder.recorded, recorder.again) == (1, 0)


def test_a_recording_that_gives_something_else_for_other_rows_is_not_used(recorder: OnCpu) -> None:
    def ordered(x: Tensor) -> Tensor:
        order = np.argsort(x.numpy()).tolist()  # numbers, which a recording would keep
        return torch.stack([x[i] for i in order])

    recordings = Recordings(recorder, 1 << 20)
    for seed in range(2 * USES_BEFORE_RECORDING):
        x = torch.from_numpy(np.random.default_rng(seed).random(5))
        found = recordings.run(ordered, [x], "ordered", 1)
        assert torch.equal(found, x.sort().values)
    assert (recorder.recorded, recorder.again) == (1, 1)


def test_recordings_hold_no_more_than_their_share_of_the_memory(recorder: OnCpu) -> None:
    recordings = Recordings(recorder, 100)

    def twice(x: Tensor) -> Tensor:
        return 2 * x

    made = []
    for size, bytes_ in ((1, 60), (2, 60), (3, 40), (4, 1000)):
        before = recorder.again
        for _ in range(2 * USES_BEFORE_RECORDING):
            assert recordings.run(twice, [torch.ones(size)], "twice", bytes_).tolist() == [2.0] * size
        made.append(recorder.again > before + USES_BEFORE_RECORDING - 1)
    assert made == [True, False, True, False]
    assert recorder.recorded == 2


def test_a_result_is_not_overwritten_by_the_next_one(recorder: OnCpu) -> None:
    recordings = Recordings(recorder, 100)
    found = [
        recordings.run(torch.neg, [torch.full((2,), float(i))], "neg", 1) for i in range(3 * USES_BEFORE_RECORDING)
    ]
    assert [f.tolist() for f in found] == [[-i, -i] for i in map(float, range(3 * USES_BEFORE_RECORDING))]
    assert recorder.again > USES_BEFORE_RECORDING


def test_a_function_may_write_to_what_it_is_given(recorder: OnCpu) -> None:
    def doubled(x: Tensor) -> Tensor:
        return x.mul_(2).sum(1)

    recordings = Recordings(recorder, 100)
    for i in range(3 * USES_BEFORE_RECORDING):
        assert recordings.run(doubled, [torch.full((2, 3), float(i))], "doubled", 1).tolist() == [6.0 * i, 6.0 * i]
    assert recorder.again > USES_BEFORE_RECORDING


def test_derivatives_of_a_worth_of_the_users_are_not_recorded(recorder: OnCpu) -> None:
    played = game(lambda outputs, targets: outputs.square().mean(1), "conv2")
    for seed in range(2 * USES_BEFORE_RECORDING):
        ask("derivatives", played, seed)
    assert recorder.recorded == 0


def test_layers_with_hooks_are_not_recorded(recorder: OnCpu) -> None:
    model, heard = MAKE().eval(), list[int]()
    model.get_submodule("conv2").register_forward_hook(lambda module, args, output: heard.append(len(output)))
    played = sp.NetworkGame(model, sp.find_players(model, EXAMPLE()), [labelled(EXAMPLE(), 64)], "fidelity", "conv1")
    for seed in range(2 * USES_BEFORE_RECORDING):
        ask("pairs", played, seed)
    before = len(heard)
    ask("pairs", played, 0)
    assert recorder.recorded == 0
    assert len(heard) > before


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert recorder_for(torch.device("cpu")) is None


class Asked(TorchDispatchMode):
    """Counts how often the host asks for a number that has been computed: a GPU would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        self.times += func in waits
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("group", ["conv1", "conv2"])
@pytest.mark.parametrize("which", KINDS)
def test_nobody_waits_for_a_batch_before_the_next_one_begins(
    monkeypatch: pytest.MonkeyPatch, which: str, group: str
) -> None:
    times, batches = [], []
    for bytes_ in (1 << 30, 1 << 13):
        monkeypatch.setattr(row_batches, "BATCH_BYTES", bytes_)
        monkeypatch.setattr(rows_module, "WALK_BATCH_BYTES", bytes_)
        played = game(group=group)
        split = played.evaluator.rows.batches.split
        ask(which, played, 0)
        counted: list[int] = []
        monkeypatch.setattr(
            played.evaluator.rows.batches,
            "split",
            lambda *a, split=split, counted=counted: counted.append(len(split(*a))) or split(*a),
        )
        with Asked() as asked:
            ask(which, played, 1)
        times.append(asked.times)
        batches.append(sum(counted))
    assert times[0] == times[1] <= 2  # at the end of the question, and for who is left at the end of a walk
    assert which == "everyone" or batches[1] > batches[0]


@gpu
def test_what_a_gpu_recorded_gives_the_same() -> None:
    device = torch.device("cuda")
    layer = torch.nn.Linear(8, 8).to(device)
    recordings = Recordings(CudaGraphs(device), 1 << 20, [t.detach() for t in layer.parameters()])
    with torch.no_grad():
        for i in range(2 * USES_BEFORE_RECORDING):
            x = to_device(torch.full((4, 8), float(i)), device)
            torch.testing.assert_close(recordings.run(layer, [x], "layer", 1), layer(x))


def test_what_is_on_the_cpu_stays_there() -> None:
    x = torch.arange(3)
    assert to_device(x, torch.device("cpu")) is x


@gpu
def test_the_way_to_a_gpu_changes_nothing() -> None:
    x = torch.arange(1000)
    assert torch.equal(to_device(x, torch.device("cuda")).cpu(), x)

"""Measurements against numbers worked out by hand."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Untouched
from safetensors.torch import save_file
from testkit.networks import NETWORKS
from torch import Tensor, nn

import shaprune.deploy.layer_timing
from shaprune.deploy.layer_timing import layer_times
from shaprune.deploy.measure import Latency, Measurement, accuracy, count, latency, size_bytes, warn_if_not_faster
from shaprune.errors import InputError, ShapruneWarning


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that passes only where this is called: how busy the machine is changes nothing."""
    now = [0.0]
    monkeypatch.setattr("shaprune.deploy.measure.benchmark", SimpleNamespace(timer=lambda: now[0]))
    monkeypatch.setattr("shaprune.deploy.layer_timing.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


class Slow(nn.Module):
    def __init__(self, seconds: float, passes: Callable[[float], None]) -> None:
        super().__init__()
        self.seconds, self.passes = seconds, passes
        self.calls: list[tuple[bool, bool, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        self.passes(self.seconds)
        return x


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1)
        raise RuntimeError("the model's own error")


# --- accuracy ---


def test_accuracy_counts_examples_not_batches() -> None:
    model = nn.Identity()
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    batches = [(one, torch.tensor([0])), (two, torch.tensor([1, 0, 1]))]  # right, right, wrong, wrong
    assert accuracy(model, batches) == 0.5
    assert accuracy(model, (batch for batch in batches)) == 0.5


def test_accuracy_is_measured_in_eval_mode_and_the_model_comes_back(untouched: Untouched) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.9), nn.Linear(6, 3))
    model[1].eval()  # mixed flags
    x, y = torch.randn(50, 4), torch.randint(3, (50,))
    statistics = model[1].running_mean.clone()
    with untouched(model):
        first = accuracy(model, [(x, y)])
    assert first == accuracy(model, [(x[:20], y[:20]), (x[20:], y[20:])])
    assert model.training
    assert torch.equal(model[1].running_mean, statistics)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no example"),
        ([torch.zeros(2, 3)], "a batch has no targets"),
        ([(torch.zeros(2, 3), torch.zeros(2))], "the targets are torch.float32"),
        ([(torch.zeros(2), torch.zeros(2).long())], "as probabilities do"),
        ([(torch.zeros(2, 3), torch.zeros(3).long())], r"for 3 targets"),
    ],
)
def test_accuracy_refuses(batches: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        accuracy(nn.Identity(), batches)


@pytest.mark.parametrize(
    "measure",
    [
        lambda model: accuracy(model, [(torch.zeros(2, 2), torch.zeros(2).long())]),
        lambda model: latency({"model": model}, torch.zeros(2, 2), timings=1),
        lambda model: count(model, torch.zeros(2, 2)),
    ],
)
def test_a_model_that_raises_comes_back_untouched(measure: Callable[[nn.Module], object], untouched: Untouched) -> None:
    model = Raises()
    with untouched(model), pytest.raises(RuntimeError, match="the model's own error"):
        measure(model)


# --- latency ---


def test_latency_tells_slow_from_fast_and_restores_everything(
    untouched: Untouched, clock: Callable[[float], None]
) -> None:
    slow, fast = Slow(0.006, clock), Slow(0.001, clock)
    with untouched(slow, fast):
        measured = latency({"slow": slow, "fast": fast}, torch.zeros(1), timings=3, threads=1)
    assert list(measured) == ["slow", "fast"]
    assert (measured["slow"].median_ms, measured["fast"].median_ms) == pytest.approx((6, 1))
    for result in measured.values():
        assert isinstance(result, Latency)
        assert result.low_ms <= result.median_ms <= result.high_ms
    assert set(slow.calls + fast.calls) == {(False, False, 1)}  # eval, no gradients, one thread


def test_latency_interleaves_the_models(clock: Callable[[float], None]) -> None:
    order: list[str] = []

    class Noted(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            clock(0.021)  # long enough to run once per round
            order.append(self.name)
            return x

    latency({"a": Noted("a"), "b": Noted("b")}, torch.zeros(1), timings=4)
    switches = sum(x != y for x, y in pairwise(order))
    assert switches >= 4  # not all of one, then all of the other
    assert order.count("a") == order.count("b")


def test_latency_takes_tuples_and_dicts() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    for inputs in ((torch.ones(1), torch.ones(1)), {"x": torch.ones(1), "y": torch.ones(1)}):
        assert latency({"two": Two()}, inputs, timings=1)["two"].median_ms > 0


def test_latency_refuses() -> None:
    with pytest.raises(InputError, match="at least one model"):
        latency({}, torch.zeros(1))
    with pytest.raises(InputError, match="timings is 0"):
        latency({"a": nn.Identity()}, torch.zeros(1), timings=0)
    with pytest.raises(InputError, match="threads is 0"):
        latency({"a": nn.Identity()}, torch.zeros(1), threads=0)


# --- size and counts ---


def test_size_is_that_of_the_file(tmp_path: Path) -> None:
    model = NETWORKS["plain"][0]()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert size_bytes(model) == (tmp_path / "model.safetensors").stat().st_size
    assert size_bytes(model.to(memory_format=torch.channels_last)) == size_bytes(model)


def test_shared_tensors_count_once() -> None:
    free, tied = (nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100)) for _ in range(2))
    tied[1].weight = tied[0].weight
    assert 0 <= size_bytes(free) - size_bytes(tied) - 4 * 100 * 100 < 200  # the weight, and its entry in the header


def test_counts_by_hand(untouched: Untouched) -> None:
    layers = [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 8, 8), 6 * 2 * 9 + 6, 64 * 6 * 2 * 9),
        (nn.Conv2d(3, 5, 3, stride=2, bias=False), (3, 9, 9), 5 * 27, 16 * 5 * 27),
        (nn.Conv1d(2, 3, 5), (2, 12), 3 * 10 + 3, 8 * 3 * 10),
        (nn.ConvTranspose2d(4, 2, 2, stride=2), (4, 3, 3), 4 * 2 * 4 + 2, 9 * 4 * 2 * 4),
        (nn.Linear(7, 3), (7,), 24, 21),
        (nn.Linear(7, 3), (5, 7), 24, 5 * 21),  # at each of five positions
        (nn.BatchNorm2d(4), (4, 8, 8), 8, 0),
    ]
    for layer, shape, parameters, macs in layers:
        for n in (1, 3):
            x = torch.randn(n, *shape)
            with untouched(layer):
                assert count(layer, x) == (parameters, macs)


def test_a_layer_that_runs_twice_counts_twice() -> None:
    layer = nn.Linear(4, 4)
    assert count(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 4)) == (20, 32)


# --- what a timing says about itself, and fewer multiply-adds that are not faster ---


def test_a_latency_says_how_it_was_measured() -> None:
    found = latency({"a": nn.Identity()}, (torch.zeros(3, 2),), timings=1, threads=1)["a"]
    assert (found.threads, found.device, found.examples, found.compiled) == (1, "cpu", 3, None)


@pytest.mark.usefixtures("one_thread")
def test_compiled_models_are_timed_in_eval_mode_and_come_back(untouched: Untouched) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    with untouched(model):
        found = latency({"a": model}, torch.zeros(4, 2), timings=1, compiled="eager")["a"]
        with pytest.raises(InputError, match=r"a cannot be compiled with backend 'eagre'.*leave compiled out"):
            latency({"a": model}, torch.zeros(4, 2), timings=1, compiled="eagre")
    assert found.compiled == "eager"
    with pytest.MonkeyPatch.context() as patch:
        given: list[nn.Module] = []
        patch.setattr(torch, "compile", lambda copy, backend: given.append(copy) or copy)
        latency({"a": model}, torch.zeros(4, 2), timings=1, compiled="any")
    assert given[0] is not model
    assert not any(module.training for module in given[0].modules())
    assert found.median_ms > 0


def compared(dense: tuple[float, float], small: tuple[float, float], macs: int = 500) -> dict[str, Measurement]:
    """Measurements with these times (median, low) and multiply-adds."""
    times = [Latency(median, low, 2 * median, threads=2, examples=8) for median, low in (dense, small)]
    return {
        name: Measurement(None, 1, m, t, 1) for name, m, t in zip(("dense", "small"), (1000, macs), times, strict=True)
    }


def pair() -> dict[str, nn.Module]:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, width, 3), nn.Flatten(), nn.Linear(width * 36, 2))

    return {"dense": net(16), "small": net(13)}


@pytest.mark.usefixtures("one_thread")
def test_fewer_multiply_adds_that_are_not_faster_are_told(
    untouched: Untouched, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, x = pair(), torch.zeros(8, 1, 8, 8)
    times = {"dense": {"0": 2.0, "2": 1.0}, "small": {"0": 2.1, "2": 0.5}}
    monkeypatch.setattr(
        shaprune.deploy.layer_timing, "layer_times", lambda m, _: times["dense" if m is models["dense"] else "small"]
    )
    said = (
        r"small does 50% of dense's multiply-adds and is not faster: 5.10 ms \(4.90 to 10.20\) against 5.00 ms .*"
        r"8 examples, cpu, threads: 2; layers that are narrower and take as long: 0 \(1x16 -> 1x13: 2 -> 2.1 ms\); "
        "plan with round_to=8"
    )
    with untouched(*models.values()), pytest.warns(ShapruneWarning, match=said):
        warn_if_not_faster(models, compared((5.0, 4.8), (5.1, 4.9)), x)
    times["small"]["0"] = 1.0
    with pytest.warns(ShapruneWarning, match="faster one by one: the time goes elsewhere"):
        warn_if_not_faster(models, compared((5.0, 4.8), (5.1, 4.9)), x)


def test_nothing_is_said_where_it_is_faster_or_cannot_be_told() -> None:
    models, x = pair(), torch.zeros(8, 1, 8, 8)
    for measured in (
        compared((5.0, 4.8), (3.0, 2.9)),  # faster
        compared((5.0, 4.8), (6.0, 3.0)),  # faster in its quiet moments: the machine is busy
        compared((0.5, 0.4), (0.6, 0.5)),  # too short to tell
        compared((5.0, 4.8), (5.1, 4.9), macs=950),  # hardly fewer
    ):
        warn_if_not_faster(models, measured, x)  # warnings are errors here


@pytest.mark.usefixtures("one_thread")
def test_the_time_of_each_layer(untouched: Untouched, clock: Callable[[float], None]) -> None:
    class Wait(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            clock(0.004)
            return super().forward(x)

    model = nn.Sequential(Wait(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with untouched(model):
        found = layer_times(model, torch.zeros(1, 2), timings=3)
    assert list(found) == ["0", "2"]
    assert found == pytest.approx({"0": 4, "2": 0})
    with untouched(broken := nn.Sequential(nn.Linear(2, 2), Raises())), pytest.raises(RuntimeError, match="own error"):
        layer_times(broken, torch.zeros(1, 2))

"""What a state dict holds beside plain tensors is saved; what build() makes is compared with what was saved."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import shaprune as sp
from shaprune.deploy.network_outline import difference, outline_of

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.out = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.one(x)))


class Expanded(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.arange(8.0).expand(4, -1))
        self.register_buffer("window", torch.hann_window(16)[:8])  # a part of a larger memory
        self.register_buffer("some", self.window[::2])
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("nothing_else", torch.zeros(0))
        self.register_buffer("scalar", torch.tensor(float("nan")))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.window + self.rows[0]) + self.some.sum()


class Tied(Base):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        if tied:
            self.shift = self.scale

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale + self.shift


class Scaled(nn.Linear):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.state: Any = {"scale": 2.0, "history": [1, 2, 3], "of": None}

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.state["scale"]


class Extra(Base):
    def __init__(self, state: Any = None) -> None:
        super().__init__()
        self.middle = Scaled(6, 6)
        if state is not None:
            self.middle.state = state

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.middle(F.relu(self.one(x))))


class Versioned(Base):
    _version = 3

    def _load_from_state_dict(self, state: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        assert local_metadata.get("version") == 3
        super()._load_from_state_dict(state, prefix, local_metadata, *rest)


class Rounding(Base):
    def load_state_dict(self, state: Any, *args: Any, **options: Any) -> Any:
        return super().load_state_dict({**state, "one.bias": state["one.bias"].round()}, *args, **options)


class Beside(Base):
    def __init__(self, by: float = 0.5, name: str = "mean") -> None:
        super().__init__()
        self.register_buffer(name, torch.full((8,), by), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + next(self.buffers())


def pruned(make: Callable[[], nn.Module]) -> tuple[nn.Module, sp.Plan]:
    model = make().eval()
    players = sp.find_players(model, X)
    plan = sp.Plan.from_coalition(players, [i % 3 > 0 for i in range(players.n)])
    return sp.prune(model, plan, X), plan


@pytest.mark.parametrize("make", [Base, Expanded, Tied, lambda: Tied(False), Extra, Versioned, Beside])
def test_whatever_a_state_dict_holds_comes_back(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    small, plan = pruned(make)
    sp.save(small, plan, tmp_path / "out")
    again = sp.load(tmp_path / "out", build=make)
    assert torch.equal(again(X), small(X)) or torch.isnan(small(X)).any()
    assert list(again.state_dict()) == list(small.state_dict())
    with torch.no_grad():
        for tensor in again.buffers():
            tensor.zero_()  # each has memory of its own
    again.train()(X).nansum().backward()
    torch.optim.SGD(again.parameters(), 0.1).step()


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    small, plan = pruned(Tied)
    sp.save(small, plan, tmp_path / "out")
    again = sp.load(tmp_path / "out", build=Tied)
    assert again.shift is again.scale
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as weights:
        assert ("scale" in weights.keys()) != ("shift" in weights.keys())  # noqa: SIM118


def test_extra_state_is_given_back_and_what_json_cannot_hold_is_refused_by_layer(tmp_path: Path) -> None:
    small, plan = pruned(lambda: Extra({"scale": 3.0}))
    sp.save(small, plan, tmp_path / "out")
    again = sp.load(tmp_path / "out", build=Extra)
    assert again.middle.state == {"scale": 3.0}
    assert torch.equal(again(X), small(X))
    for wrong in (
        {"scale": 3.0, "of": (1, 2)},
        {"scale": 3.0, 1: 2},
        {"scale": torch.ones(1)},
        {"scale": float("inf")},
    ):
        small.middle.state = wrong
        with pytest.raises(sp.InputError, match="extra state of layer 'middle' is a dict that JSON"):
            sp.save(small, plan, tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_network_is_measured_and_scored_by_goes_with_extra_state(tmp_path: Path) -> None:
    model = Extra().eval()
    players = sp.find_players(model, X)
    scores = sp.score(
        model, players, [(X, None)], "fidelity", progress=False, run=sp.options.RunOptions(build=Extra, workers=2)
    )
    assert set(scores) == {g.name for g in players.groups}


class Other(Base):
    def __init__(self, act: str = "relu", scale: float = 1.0) -> None:
        super().__init__()
        self.act, self.scale = act, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.out(getattr(torch, self.act)(self.one(x))) * self.scale


class Opaque(Other):
    """torch.fx does not follow it."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x
        return super().forward(x)


def layers(act: nn.Module, eps: float = 1e-5, padding: int = 1) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 4, 3, padding=padding)
    return nn.Sequential(conv, nn.BatchNorm2d(4, eps), act, nn.Flatten(), nn.Linear(4 * 64, 3))


@pytest.mark.parametrize(
    ("saved", "built", "named"),
    [
        (Other, lambda: Other("tanh"), r"a step of forward was .*relu.* and is .*tanh"),
        (Other, lambda: Other(scale=4.0), "a step of forward was"),
        (Opaque, lambda: Opaque("tanh"), "act of 'the model' was 'relu' and is 'tanh'"),
        (Opaque, lambda: Opaque(scale=2.0), r"scale of 'the model' was 1\.0 and is 2\.0"),
        (Other, lambda: Other().double(), r"makes 'one.weight' in float64, and float32 was saved.*torch\.float32"),
        (lambda: Other().double(), Other, "makes 'one.weight' in float32, and float64 was saved"),
        (lambda: Beside(0.5), lambda: Beside(0.6), "buffer 'mean', which is not part of a state dict"),
        (lambda: Beside(0.5), lambda: Beside(0.5, "other"), "step of forward|buffer 'mean'"),
        (lambda: Tied(False), Tied, "a step of forward was get_attr shift"),
        (Base, Rounding, "tensor 'one.bias' does not take what was saved"),
    ],
)
def test_a_factory_of_another_network_is_refused_by_what_differs(
    tmp_path: Path, saved: Callable[[], nn.Module], built: Callable[[], nn.Module], named: str
) -> None:
    global X
    before, X = X, X.to(next(saved().parameters()).dtype)
    small, plan = pruned(saved)
    X = before
    sp.save(small, plan, tmp_path / "out")
    sp.load(tmp_path / "out", build=saved)
    with pytest.raises(sp.InputError, match=named):
        sp.load(tmp_path / "out", build=built)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (layers(nn.GELU()), "layer '2' was a ReLU and is a GELU"),
        (layers(nn.ReLU(), eps=1e-3), "eps of '1' was 1e-05 and is 0.001"),
        (layers(nn.ReLU(), padding=2), r"padding of '0' was \(1, 1\) and is \(2, 2\)"),
        (layers(nn.ReLU()), None),
    ],
)
def test_settings_of_layers_are_compared(other: nn.Module, named: str | None) -> None:
    found = difference(outline_of(layers(nn.ReLU())), outline_of(other))
    assert (found is None) == (named is None)
    assert named is None or re.search(named, str(found))


def test_an_outline_leaves_the_network_as_it_is_and_survives_json() -> None:
    class Remembering(Other):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x
            return super().forward(x)

    model = Remembering()
    outline = outline_of(model)
    assert outline.steps is not None
    assert model.calls == 0
    assert not hasattr(model, "last")
    assert type(outline).model_validate(json.loads(json.dumps(outline.model_dump()))) == outline


def test_a_manifest_of_the_first_schema_is_still_read(tmp_path: Path) -> None:
    small, plan = pruned(Base)
    sp.save(small, plan, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    first = {key: manifest[key] for key in ("kind", "versions", "shapes", "plan")}
    path.write_text(json.dumps({**first, "schema": 1}))
    assert torch.equal(sp.load(tmp_path / "out", build=Base)(X), small(X))


class Counting(nn.Module):
    """Writes to a buffer as it runs: ``way`` says how."""

    def __init__(self, way: str = "in place") -> None:
        super().__init__()
        self.a, self.o, self.way = nn.Linear(4, 8), nn.Linear(8, 3), way
        self.register_buffer("n", torch.zeros(5000))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.way == "in place":
            self.n.add_(1)
        elif self.way == "replaced":
            self.n = 0.9 * self.n + 0.1
        else:
            self.n.data[:2] = 7
        return self.o(torch.relu(self.a(x)))


@pytest.mark.parametrize("way", ["in place", "replaced", "data"])
def test_buffers_that_forward_writes_to_are_saved_and_loaded_as_they_are(way: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Counting(way).eval(), torch.randn(6, 4)
    players = sp.find_players(model, x)
    plan = sp.Plan.from_coalition(players, np.arange(players.n) > 2)
    small = sp.prune(model, plan, x)
    for _ in range(3):
        small(x)
    before = {name: buffer.clone() for name, buffer in small.named_buffers()}
    assert before["calls"] == 3
    sp.save(small, plan, tmp_path / "small")
    made = sp.load(tmp_path / "small", lambda: Counting(way))
    for name, buffer in before.items():
        assert torch.equal(dict(small.named_buffers())[name], buffer)
        assert torch.equal(dict(made.named_buffers())[name], buffer)


def test_a_network_that_writes_to_its_weights_in_forward_is_saved_as_it_is(tmp_path: Path) -> None:
    class Normed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self[2].weight.mul_(2)
            return super().forward(x)

    def build() -> nn.Module:
        return Normed(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    torch.manual_seed(0)
    small = build()
    plan = sp.Plan.from_coalition(sp.find_players(nn.Sequential(*small), torch.randn(6, 4)), np.ones(8, dtype=bool))
    before = small[2].weight.clone()
    sp.save(small, plan, tmp_path / "small")
    assert torch.equal(small[2].weight, before)
    assert torch.equal(sp.load(tmp_path / "small", build)[2].weight, before)


def test_a_factory_of_lazy_layers_is_told_to_run_them(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))

    def build_and_run() -> nn.Module:
        model = build()
        model(torch.zeros(1, 4))
        return model

    model, x = build_and_run().eval(), torch.randn(6, 4)
    players = sp.find_players(model, x)
    plan = sp.Plan.from_coalition(players, np.arange(8) > 2)
    small = sp.prune(model, plan, x)
    sp.save(small, plan, tmp_path / "small")
    with pytest.raises(sp.InputError, match=r"build\(\) makes '0.weight' without a shape .*; run the model once"):
        sp.load(tmp_path / "small", build)
    assert torch.equal(sp.load(tmp_path / "small", build_and_run)(x), small(x))

"""ONNX files and programs of torch.export: they give what the model gives, or they are not there."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Untouched
from safetensors.torch import save_file
from testkit.networks import NETWORKS
from torch import Tensor, nn
from typer.testing import CliRunner

import shaprune as sp
from shaprune.builtin.models import build_model
from shaprune.cli.app import app
from shaprune.deploy import export
from shaprune.storage.own_files import MARK

KINDS = ("pt2", "onnx")


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    return str(request.param)


each_kind = pytest.mark.parametrize("kind", KINDS, indirect=True)


def pruned(name: str) -> tuple[nn.Module, Tensor]:
    make, example = NETWORKS[name]
    model, inputs = make(), example()
    players = sp.find_players(model, inputs)
    kept = np.ones(players.n, dtype=bool)
    for group in players.groups:
        kept[group.indices[::2]] = False
    return sp.prune(model, sp.Plan.from_coalition(players, kept), inputs), inputs


class Two(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(x) - y, "x": x}


def outputs_of(path: Path, *inputs: Tensor) -> list[np.ndarray[Any, Any]]:
    """What a file gives, read with nothing of ours."""
    if path.suffix == ".pt2":
        found = torch.export.load(path).module()(*inputs)
        return [t.detach().numpy() for t in (found.values() if isinstance(found, dict) else [found])]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), inputs, strict=True)}
    return list(session.run(None, feed))


@each_kind
@pytest.mark.parametrize("name", ["mlp", "residual", "depthwise"])
def test_a_file_gives_what_the_pruned_network_gives_for_any_number_of_examples(
    kind: str, name: str, tmp_path: Path, untouched: Untouched
) -> None:
    model, inputs = pruned(name)
    model.train()
    with untouched(model):
        done = sp.export(model, inputs[:1], tmp_path / f"small.{kind}")
    assert done.difference is not None
    assert done.difference < 1e-5
    assert done.bytes == done.path.stat().st_size
    model.eval()
    for n in (1, len(inputs)):
        with torch.no_grad():
            expected = model(inputs[:n]).numpy()
        np.testing.assert_allclose(outputs_of(done.path, inputs[:n])[0], expected, atol=1e-5, rtol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [f"small.{kind}"]


@each_kind
@pytest.mark.parametrize("named", [False, True])
def test_several_inputs_by_place_and_by_name(kind: str, named: bool, tmp_path: Path) -> None:
    model, x, y = Two(), torch.randn(2, 4), torch.randn(2, 3)
    inputs: Any = {"y": y, "x": x} if named else (x, y)
    done = sp.export(model, inputs, tmp_path / f"two.{kind}")
    assert done.difference is not None
    assert done.difference < 1e-6
    if not named:
        np.testing.assert_allclose(outputs_of(done.path, x, y)[0], model(x, y)["logits"].detach().numpy(), atol=1e-6)


class Mean(nn.Module):
    """Goes on with one example or several, and looks at how many."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (2.0 if len(x) == 2 else 1.0)


@each_kind
def test_a_model_that_wants_so_many_examples_is_exported_for_them_only(kind: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    with pytest.raises(sp.InputError, match=r"cannot be exported.*fixed_batch=True asks for less"):
        sp.export(Mean(), x, tmp_path / f"mean.{kind}")
    assert list(tmp_path.iterdir()) == []
    done = sp.export(Mean(), x, tmp_path / f"mean.{kind}", fixed_batch=True)
    np.testing.assert_allclose(outputs_of(done.path, x)[0], 2 * x.numpy())


@each_kind
def test_a_file_whose_outputs_differ_is_not_written(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = pruned("mlp")
    written = export._write

    def wrong(copy: nn.Module, *arguments: Any) -> None:
        with torch.no_grad():
            copy.fc3.bias.add_(0.1)
        written(copy, *arguments)

    monkeypatch.setattr(export, "_write", wrong)
    path = tmp_path / f"small.{kind}"
    path.write_text(f"an older file, {MARK}")
    with pytest.raises(sp.InputError, match=r"outputs of small\.\w+ differ from the model's by .*nothing was written"):
        sp.export(model, inputs, path, overwrite=True)
    assert path.read_text() == f"an older file, {MARK}"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@each_kind
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_nothing_and_loses_nothing(
    kind: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched: Untouched
) -> None:
    model, inputs = pruned("mlp")

    def fail(copy: nn.Module, inputs: Any, path: Path, fixed_batch: bool) -> None:
        path.write_text("ha")
        raise failure

    monkeypatch.setattr(export, "_write", fail)
    path = tmp_path / f"small.{kind}"
    path.write_text(f"an older file, {MARK}")
    with untouched(model), pytest.raises((sp.InputError, KeyboardInterrupt), match=r"cannot be written: No space|^$"):
        sp.export(model, inputs, path, overwrite=True)
    assert path.read_text() == f"an older file, {MARK}"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    model, inputs = pruned("mlp")
    with pytest.raises(sp.InputError, match=r"has no known ending; name it \*\.onnx or \*\.pt2"):
        sp.export(model, inputs, tmp_path / "small.pth")
    (tmp_path / "small.pt2").write_text("mine")
    with pytest.raises(sp.InputError, match="exists"):
        sp.export(model, inputs, tmp_path / "small.pt2")
    assert (tmp_path / "small.pt2").read_text() == "mine"
    with pytest.raises(sp.InputError, match="cannot be written: No such file"):
        sp.export(model, inputs, tmp_path / "nowhere" / "small.pt2")
    with pytest.raises(sp.InputError, match="the model is a str"):
        sp.export("model", inputs, tmp_path / "a.pt2")  # type: ignore[arg-type]


def without(*packages: str) -> Callable[..., object]:
    find = importlib.util.find_spec
    return lambda name, *rest: None if name in packages else find(name, *rest)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = pruned("mlp")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", without("onnx", "onnxscript"))
        with pytest.raises(sp.InputError, match=r"need onnx and onnxscript: pip install 'shaprune\[onnx\]'"):
            sp.export(model, inputs, tmp_path / "small.onnx")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(importlib.util, "find_spec", without("onnxruntime"))
    with pytest.warns(sp.errors.ShapruneWarning, match=r"was not compared .* pip install 'shaprune\[onnx\]'"):
        done = sp.export(model, inputs, tmp_path / "small.onnx")
    assert done.difference is None
    assert done.path.stat().st_size == done.bytes


def test_the_command_exports_what_the_pruned_folder_holds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(build_model("digits").state_dict(), tmp_path / "dense.safetensors")
    common = ["export", "--model", "digits", "--shape", "1x8x8"]
    path = tmp_path / "dense.pt2"

    def run(*arguments: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [*common, *map(str, arguments)], prog_name="shaprune")
        assert result.exit_code == code, (result.stdout, result.stderr)
        return result

    weights = ("--weights", tmp_path / "dense.safetensors")
    told = json.loads(run(*weights, "--out", path, "--json").stdout)
    assert told["difference"] < 1e-5
    assert told["bytes"] == path.stat().st_size
    for arguments, message in (
        ((*weights, "--out", path), "exists"),
        ((*weights, "--out", tmp_path / "dense.pth"), "no known ending"),
        ((*weights, "--pruned", tmp_path, "--out", tmp_path / "a.pt2"), "leave --weights out"),
        (("--data", "digits", "--out", tmp_path / "a.pt2"), "give the data, or else the shape"),
    ):
        assert message in re.sub(r"[\s│]+", " ", run(*arguments, code=2).stderr)

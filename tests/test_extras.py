"""Extras one by one: absent, each refuses with the command that installs it; present, each does its work."""

import sys
from collections.abc import Callable
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ZOO
from torch import nn

import shaprune as sp
from shaprune.builtin.factories import call_factory
from shaprune.errors import InputError
from shaprune.logs.sinks import open_sink
from shaprune.report.plotly_bundle import has_plotly, plotly_js
from shaprune.runs.ray_workers import connect_ray

pytestmark = pytest.mark.usefixtures("one_thread")


def majority() -> sp.Game:
    return sp.Game.from_function(lambda kept: kept.sum(1) >= 2, n_players=3)


def exported(folder: Path) -> Path:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    return sp.export(model, torch.randn(2, 1, 8, 8), folder / "model.onnx").path


def logged(text: str) -> bool:
    sink = open_sink(text)
    sink.write("layer1.0[1]", 100, {"mean": 0.5})
    sink.close()
    return True


USES: dict[str, Callable[[Path], object]] = {
    "mlflow": lambda folder: logged(f"mlflow:{folder}/mlruns"),
    "onnx": exported,
    "pandas": lambda folder: sp.estimate(majority(), "exact").to_dataframe(),
    "plotly": lambda folder: plotly_js(),
    "ray": lambda folder: connect_ray("local", 1),
    "shapiq": lambda folder: majority().to_shapiq()(np.ones((1, 3), dtype=bool)),
    "tensorboard": lambda folder: logged(f"tensorboard:{folder}/events"),
    "timm": lambda folder: call_factory("timm.models.resnet:resnet18", what="model"),
    "torchvision": lambda folder: call_factory("torchvision.models:resnet18", what="model"),
    "transformers": lambda folder: ZOO["bert"].make(),
}
MODULES = {"onnx": ("onnx", "onnxscript")}  # that the extra brings, where they are not called like it
HERE = [extra for extra in USES if extra != "ray" and find_spec(extra) is not None]  # ray has tests of its own


def block(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages as if they were not installed."""
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            monkeypatch.delitem(sys.modules, name)
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def test_every_extra_has_a_use_here() -> None:
    assert set(metadata("shaprune").get_all("Provides-Extra") or ()) - {"dev", "docs"} == set(USES)


@pytest.mark.parametrize("extra", USES)
def test_an_absent_extra_is_named_with_the_command_that_installs_it(
    extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in MODULES.get(extra, (extra,)):
        with monkeypatch.context() as patch:
            block(patch, missing)
            with pytest.raises(InputError, match=rf"pip install 'shaprune\[{extra}\]'"):
                USES[extra](tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extra", HERE)
def test_a_present_extra_does_its_work(extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the full mlflow has a database, the client has not
    assert USES[extra](tmp_path) is not None


def test_the_development_environment_has_the_extras_that_are_tested_present() -> None:
    assert {"mlflow", "onnx", "plotly", "shapiq", "tensorboard", "transformers"} <= set(HERE)


def test_without_onnxruntime_a_file_is_written_and_said_to_be_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block(monkeypatch, "onnxruntime")
    with pytest.warns(sp.errors.ShapruneWarning, match=r"not compared.*shaprune\[onnx\]"):
        assert exported(tmp_path).exists()


def test_without_plotly_a_report_has_no_slider(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_plotly()
    block(monkeypatch, "plotly")
    assert not has_plotly()


def test_a_module_that_is_no_extra_is_to_be_found_or_installed() -> None:
    with pytest.raises(InputError, match="run from the folder that holds it, or install it"):
        call_factory("nowhere.at_all:resnet18", what="model")

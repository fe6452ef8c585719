"""The protocol of a log, its names, and the file of JSON lines. Imports nothing heavy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from shaprune.errors import InputError, check_choice


class Sink(Protocol):
    """Takes numbers of a group."""

    def write(self, group: str, step: int, numbers: Mapping[str, float]) -> None:
        """Note ``numbers`` of a group after ``step`` evaluations."""

    def close(self) -> None:
        """Write what is left."""


class JsonLines:
    """One JSON object per line, flushed at once: ``{"group", "step", "time", ...numbers}``; earlier lines stay.

    Args:
        path: the file, made where it is missing.

    Raises:
        InputError: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115  # closed by `close`
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}; name another file") from error

    def write(self, group: str, step: int, numbers: Mapping[str, float]) -> None:
        line = {"group": group, "step": step, "time": round(time.time(), 3), **numbers}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _tensorboard(place: str) -> Sink:
    from shaprune.logs.tensorboard import TensorBoard

    return TensorBoard(place or "tensorboard")


def _mlflow(place: str) -> Sink:
    from shaprune.logs.mlflow import MLflow

    return MLflow(place or None)


PROGRESS_FILE = "progress.jsonl"  # in the folder of a run: how its games stand
SINK_PACKAGES = ("tensorboard", "mlflow")  # packages, each an extra of the same name
SINKS: dict[str, Callable[[str], Sink]] = {
    "jsonl": lambda place: JsonLines(place or "scores.jsonl"),
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}


def check_sink(text: str) -> None:
    """Check ``"NAME"`` or ``"NAME:PLACE"``.

    Raises:
        InputError: an unknown name, or a package that is not installed; the message says how to install it.
    """
    name = text.partition(":")[0]
    check_choice("log", name, SINKS)
    if name in SINK_PACKAGES and find_spec(name) is None:
        raise InputError(f"a log of {name} needs its package: pip install 'shaprune[{name}]'")


def open_sink(text: str) -> Sink:
    """Open ``"jsonl[:FILE]"``, ``"tensorboard[:DIR]"`` or ``"mlflow[:URI]"``.

    Raises:
        InputError: as `check_sink`, or a place that cannot be written.
    """
    check_sink(text)
    name, _, place = text.partition(":")
    return SINKS[name](place)

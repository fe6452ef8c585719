"""Reading what the commands wrote: a file of values, or a folder that holds one with whatever belongs to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shaprune.errors import InputError
from shaprune.planning.frontier import SCHEMA
from shaprune.planning.plan import Plan
from shaprune.planning.scores import Scores
from shaprune.planning.sensitivity_curves import Sensitivity
from shaprune.report.comparison import latency_setting
from shaprune.storage.atomic_files import read_json
from shaprune.storage.schema import check_schema

if TYPE_CHECKING:
    from shaprune.deploy.measure import Measurement

T = TypeVar("T")
VALUES, PLAN, CURVES, FRONTIER, MEASURED = (
    "values.json",
    "plan.json",
    "curves.json",
    "frontier.json",
    "measurements.json",
)
BESIDE = ("schema", "kind", "seconds")  # what stands in a file of measurements beside the networks


@dataclass(frozen=True, eq=False)
class Run:
    """What was found; None (or empty) where there was nothing.

    Attributes:
        scores: the values.
        plan: who stays.
        sensitivity: curves of the groups.
        frontier: what ``shaprune plan --sweep`` wrote.
        measurements: networks by name, the dense one first.
        setting: how their latency was measured.
        seconds: wall time per stage.
    """

    scores: Scores
    plan: Plan | None
    sensitivity: Sensitivity | None
    frontier: dict[str, Any] | None
    measurements: dict[str, Measurement]
    setting: str
    seconds: dict[str, float]


def read_run(path: str | Path) -> Run:
    """Read a file of values, or a folder that `shaprune score`, `demo` or `compress` wrote.

    Raises:
        InputError: nothing there, no values in it (yet), or a damaged or newer file, named.
    """
    path = Path(path)
    if not path.is_dir():
        return Run(read_named(path, Scores.load), None, None, None, {}, "", {})
    if not (path / VALUES).is_file():
        raise InputError(
            f"{path} holds no {VALUES}: its run has not ended yet; `shaprune report {path} --watch` "
            f"shows how it goes, `shaprune resume {path}` goes on with one that no process computes any more"
            if _begun_run(path)
            else f"{path} holds no {VALUES}; name the folder or file that `shaprune score` or `compress` wrote"
        )
    there = {name for name in (PLAN, CURVES, FRONTIER, MEASURED) if (path / name).is_file()}
    return Run(
        read_named(path / VALUES, Scores.load),
        read_named(path / PLAN, Plan.load) if PLAN in there else None,
        read_named(path / CURVES, Sensitivity.load) if CURVES in there else None,
        read_frontier(path / FRONTIER) if FRONTIER in there else None,
        *(read_named(path / MEASURED, _read_measured) if MEASURED in there else ({}, "", {})),
    )


def read_frontier(path: Path) -> dict[str, Any]:
    """Read what ``shaprune plan --sweep`` wrote.

    Raises:
        InputError: something else, or of a newer schema; it names the file.
    """
    return read_named(path, _frontier)


def _frontier(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path)
    check_schema(found, "frontier", SCHEMA)
    if not isinstance(found.get("points"), list) or not found["points"]:
        raise InputError("it holds no points; name the frontier.json that `shaprune plan --sweep` wrote")
    return found


def _begun_run(path: Path) -> bool:
    return any(path.glob("journal*.sqlite"))


def read_named(path: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` makes of a file; its errors name the file."""
    try:
        return read(path)
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error


def _read_measured(path: Path) -> tuple[dict[str, Measurement], str, dict[str, float]]:
    """The measurements that `shaprune.report.comparison.to_json` wrote, how, and the seconds beside them."""
    found = read_json(path)
    try:
        networks = {name: _measurement(row) for name, row in found.items() if name not in BESIDE}
        if not networks:
            raise InputError("no network was measured")
        first = next(iter(networks.values())).latency
        seconds = {str(name): float(s) for name, s in found.get("seconds", {}).items()}
        return networks, latency_setting(first.examples, first.device, first.threads), seconds
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"these measurements are damaged ({type(error).__name__}: {error}); measure again") from error


def _measurement(row: dict[str, Any]) -> Measurement:
    from shaprune.deploy.measure import Latency, Measurement  # only here: most reports need no torch

    low, high = row["latency_spread_ms"]
    on = row["latency_on"]
    latency = Latency(
        float(row["latency_ms"]), float(low), float(high), on["threads"], on["device"], on["examples"], on["compiled"]
    )
    return Measurement(row["accuracy"], int(row["parameters"]), int(row["macs"]), latency, int(row["bytes"]))

"""Text of options -> values; a text that means nothing is wrong usage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import typer

from shaprune.cli.command import as_usage_error
from shaprune.cli.options.shared import STEPS, UNITS
from shaprune.errors import check_choice
from shaprune.planning.budget import BUDGET_NAMES, Budget
from shaprune.planning.limits import Limits
from shaprune.planning.resources import RESOURCES
from shaprune.values import aggregation, concepts, stopping
from shaprune.values.concepts import Concept, shapley
from shaprune.values.estimators.base import Method
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.stopping import Rule

_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_TYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")


def budget_of(texts: Sequence[str]) -> Budget:
    """``["macs=0.5", "bytes=2MB", "latency=0.8ms"]`` -> a budget."""
    limits: dict[str, Any] = {}
    with as_usage_error("--budget"):
        for text in texts:
            name, equals, number = text.partition("=")
            if not equals or not number:
                raise typer.BadParameter(
                    f"{text!r} is not of the form NAME=NUMBER, such as macs=0.5", param_hint="--budget"
                )
            check_choice("budget", name, BUDGET_NAMES)
            if name in limits:
                raise typer.BadParameter(f"{name} is given twice", param_hint="--budget")
            limits[name] = _limit_of(name, number, text)
        return Budget(**limits)


def _limit_of(name: str, number: str, text: str) -> float | str:
    """A limit; times and bytes may have a unit, and weighted sums their weights."""
    unit = re.search(r"[a-z]+$", number.lower())
    if name == "latency" and unit:
        return number
    if name in RESOURCES and RESOURCES[name].in_bytes and unit and unit[0] in _BYTES:
        return float(bytes_of(number, "--budget"))
    if name in RESOURCES and RESOURCES[name].parts and ":" in number:
        return number  # with weights
    try:
        return float(number)
    except ValueError:
        raise typer.BadParameter(f"{number!r} in {text!r} is not a number", param_hint="--budget") from None


def shares_of(texts: Sequence[str]) -> dict[str, float]:
    """``["0.5", "layer1*=0.25"]`` -> the largest share that leaves, per glob."""
    shares: dict[str, float] = {}
    for text in texts:
        glob, _, number = text.rpartition("=")
        if glob in shares:
            raise typer.BadParameter(f"{glob or 'a share for all groups'} is given twice", param_hint="--max-removed")
        try:
            shares[glob] = float(number)
        except ValueError:
            raise typer.BadParameter(
                f"{number!r} in {text!r} is no share, such as 0.5 or 'layer1*=0.25'", param_hint="--max-removed"
            ) from None
    found = {glob or "*": share for glob, share in shares.items()}
    with as_usage_error("--max-removed"):
        Limits(max_removed=found)
    return found


def unit_of(texts: Sequence[str] | None) -> str | list[str] | dict[str, list[str]]:
    """``["head", "ffn"]`` or ``["mine=conv2[0]", "mine=conv2[1]"]`` -> the unit of `find_players`."""
    if not texts:
        return "channel"
    named: dict[str, list[str]] = {}
    with as_usage_error("--unit"):
        for text in texts:
            name, equals, glob = text.partition("=")
            if not equals:
                check_choice("unit", name, UNITS)
            elif not name or not glob:
                raise typer.BadParameter(
                    f"{text!r} is not of the form NAME=GLOB, such as 'mine=conv2[1?]'", param_hint="--unit"
                )
            else:
                named.setdefault(name, []).append(glob)
    if not named:
        return texts[0] if len(texts) == 1 else list(texts)
    if len(texts) > sum(map(len, named.values())):
        raise typer.BadParameter("units by name (NAME=GLOB) go with no other unit", param_hint="--unit")
    return named


def bytes_of(text: str, option: str = "--max-memory") -> int:
    """``"2GiB"`` -> 2147483648."""
    found = re.fullmatch(r"([\d.]+(?:e\d+)?) ?([a-z]*)", text.strip().lower())
    try:
        number, unit = found.groups() if found else ("", "")
        size = int(float(number) * _BYTES[unit])
        if size < 1:
            raise ValueError
        return size
    except (ValueError, KeyError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no number of bytes above 0, such as 2GiB, 500MB or 1e9", param_hint=option
        ) from None


def shape_of(text: str) -> tuple[tuple[int, ...], str]:
    """``"3x224x224"`` -> ((3, 224, 224), "float32"); ``"16:int64"`` -> ((16,), "int64")."""
    sizes, colon, dtype = text.partition(":")
    parts = sizes.split("x")
    if not all(part.isdigit() and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r} is no shape, such as 3x224x224 or 16:int64", param_hint="--shape")
    with as_usage_error("--shape"):
        check_choice("type", dtype if colon else "float32", _TYPES)
    return tuple(map(int, parts)), dtype or "float32"


def sizes_of(text: str) -> tuple[float, float]:
    """``"0.5,1.0"`` -> (0.5, 1.0)."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not of the form LO,HI, such as 0.5,1.0", param_hint="--sizes") from None
    with as_usage_error("--sizes"):
        shapley((low, high))
    return low, high


def default_sizes(method: str, concept: str, mode: str) -> str:
    """The window where none is given: near the full network for Shapley values, none for what has its own sizes."""
    ours = concept == "shapley" and method in ("permutation", "exact") and not mode.startswith("greedy")
    return "0.5,1.0" if ours else "0,1"


def method_of(name: str, *, antithetic: bool) -> str | Method:
    """The estimator of a name, with its options."""
    if not antithetic:
        return name
    if name != "permutation":
        raise typer.BadParameter(f"only method permutation walks orders, not {name}", param_hint="--antithetic")
    return Permutation(antithetic=True)


def concept_of(text: str) -> Concept:
    """``"banzhaf:0.7"`` -> a concept."""
    with as_usage_error("--concept"):
        return concepts.concept_of(text)


def rule_of(text: str | None) -> Rule | None:
    """``"cut_settled(0.5) | seconds(60)"`` -> a stopping rule."""
    if text is None:
        return None
    with as_usage_error("--stop"):
        return stopping.rule_of(text)


def aggregate_of(text: str) -> str:
    """A known aggregation over examples."""
    with as_usage_error("--aggregate"):
        if text not in ("mean", "worst-group"):
            aggregation.aggregate_of(text)
    return text


def steps_of(text: str) -> tuple[str, ...]:
    """``"refit,finetune"`` -> ("refit", "finetune"); ``"none"`` -> ()."""
    if text.strip() == "none":
        return ()
    steps = tuple(part.strip() for part in text.split(","))
    with as_usage_error("--recover"):
        for step in steps:
            check_choice("recovery step", step, (*STEPS, "none"))
        if "none" in steps:
            raise typer.BadParameter("none stands alone", param_hint="--recover")
    return steps

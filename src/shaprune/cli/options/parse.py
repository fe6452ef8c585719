"""Text of options -> values; a text that means nothing is wrong usage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import typer

from shaprune.cli.usage import as_usage_error
from shaprune.errors import check_choice
from shaprune.options.groups import BYTES, STEPS, bytes_of
from shaprune.planning.budget import BUDGET_NAMES, Budget
from shaprune.planning.resources import RESOURCES
from shaprune.values import stopping
from shaprune.values.estimators.base import Method
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.stopping import Rule

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
    if name in RESOURCES and RESOURCES[name].in_bytes and unit and unit[0] in BYTES:
        return float(size_of(number, "--budget"))
    if name in RESOURCES and RESOURCES[name].parts and ":" in number:
        return number  # with weights
    try:
        return float(number)
    except ValueError:
        raise typer.BadParameter(f"{number!r} in {text!r} is not a number", param_hint="--budget") from None


def size_of(text: str, option: str = "--max-memory") -> int:
    """``"2GiB"`` -> 2147483648."""
    with as_usage_error(option):
        return bytes_of(text)


def shape_of(text: str) -> tuple[tuple[int, ...], str]:
    """``"3x224x224"`` -> ((3, 224, 224), "float32"); ``"16:int64"`` -> ((16,), "int64")."""
    sizes, colon, dtype = text.partition(":")
    parts = sizes.split("x")
    if not all(part.isdigit() and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r} is no shape, such as 3x224x224 or 16:int64", param_hint="--shape")
    with as_usage_error("--shape"):
        check_choice("type", dtype if colon else "float32", _TYPES)
    return tuple(map(int, parts)), dtype or "float32"


def method_of(name: str, *, antithetic: bool) -> str | Method:
    """The estimator of a name, with its options."""
    if not antithetic:
        return name
    if name != "permutation":
        raise typer.BadParameter(f"only method permutation walks orders, not {name}", param_hint="--antithetic")
    return Permutation(antithetic=True)


def rule_of(text: str | None) -> Rule | None:
    """``"cut_settled(0.5) | seconds(60)"`` -> a stopping rule."""
    if text is None:
        return None
    with as_usage_error("--stop"):
        return stopping.rule_of(text)


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

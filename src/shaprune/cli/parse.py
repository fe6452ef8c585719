"""Text of options -> values; a text that means nothing is wrong usage."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from shaprune.cli.command import usage
from shaprune.cli.options import STEPS
from shaprune.errors import check_choice
from shaprune.planning import Budget
from shaprune.values.window import window

_LIMITS = ("macs", "params", "players")


def budget_of(texts: Sequence[str]) -> Budget:
    """``["macs=0.5", "players=0.6"]`` -> a budget."""
    limits: dict[str, float] = {}
    with usage("--budget"):
        for text in texts:
            name, equals, number = text.partition("=")
            if not equals or not number:
                raise typer.BadParameter(
                    f"{text!r} is not of the form NAME=NUMBER, such as macs=0.5", param_hint="--budget"
                )
            check_choice("budget", name, _LIMITS)
            if name in limits:
                raise typer.BadParameter(f"{name} is given twice", param_hint="--budget")
            try:
                limits[name] = float(number)
            except ValueError:
                raise typer.BadParameter(f"{number!r} in {text!r} is not a number", param_hint="--budget") from None
        return Budget(**limits)


def sizes_of(text: str) -> tuple[float, float]:
    """``"0.5,1.0"`` -> (0.5, 1.0)."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not of the form LO,HI, such as 0.5,1.0", param_hint="--sizes") from None
    with usage("--sizes"):
        window(1_000_000, (low, high))
    return low, high


def steps_of(text: str) -> tuple[str, ...]:
    """``"refit,finetune"`` -> ("refit", "finetune"); ``"none"`` -> ()."""
    if text.strip() == "none":
        return ()
    steps = tuple(part.strip() for part in text.split(","))
    with usage("--recover"):
        for step in steps:
            check_choice("recovery step", step, (*STEPS, "none"))
        if "none" in steps:
            raise typer.BadParameter("none stands alone", param_hint="--recover")
    return steps

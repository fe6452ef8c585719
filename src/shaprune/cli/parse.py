"""Text of options -> values; a text that means nothing is wrong usage."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from shaprune.cli.command import usage
from shaprune.cli.options import STEPS
from shaprune.errors import check_choice
from shaprune.planning import Budget
from shaprune.values import aggregation, concepts, stopping
from shaprune.values.concepts import Concept, shapley
from shaprune.values.method import Method
from shaprune.values.permutation import Permutation
from shaprune.values.stopping import Rule

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
    with usage("--concept"):
        return concepts.concept_of(text)


def rule_of(text: str | None) -> Rule | None:
    """``"cut_settled(0.5) | seconds(60)"`` -> a stopping rule."""
    if text is None:
        return None
    with usage("--stop"):
        return stopping.rule_of(text)


def aggregate_of(text: str) -> str:
    """A known aggregation over examples."""
    with usage("--aggregate"):
        if text not in ("mean", "worst-group"):
            aggregation.aggregate_of(text)
    return text


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

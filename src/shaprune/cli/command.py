"""Behaviour that all commands share: results on stdout, everything else on stderr, exit codes.

0 = done, 1 = the work failed, 2 = wrong usage (an option or argument that cannot be used).
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import typer

from shaprune.cli.heartbeat import beating
from shaprune.cli.heartbeat import say as say
from shaprune.errors import InputError, ShapruneError

if TYPE_CHECKING:
    from rich.console import RenderableType

P = ParamSpec("P")
PIPE_WIDTH = 160  # columns where stdout is no terminal: nothing is cut off


@dataclass(frozen=True)
class Outcome:
    """What a command has to say: one JSON-ready object for machines, text and tables for people; its exit code."""

    data: dict[str, Any]
    shown: tuple[RenderableType, ...]
    code: int = 0


def command(function: Callable[P, Outcome]) -> Callable[P, None]:
    """Make a function that returns an `Outcome` a command; it must have the options ``as_json`` and ``debug``.

    While it works, whatever it or a user's factory prints goes to stderr.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with _failures(debug=bool(kwargs["debug"])), redirect_stdout(sys.stderr), beating():
            outcome = function(*args, **kwargs)
        if kwargs["as_json"]:
            print(json.dumps(outcome.data, allow_nan=False))
        else:
            _show(outcome)
        if outcome.code:
            raise typer.Exit(outcome.code)

    return run


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with words for what is kept and how to go on."""


@contextmanager
def as_usage_error(option: str) -> Iterator[None]:
    """An `InputError` inside the block is the fault of this option's value: wrong usage."""
    try:
        yield
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


@contextmanager
def _failures(*, debug: bool) -> Iterator[None]:
    """Turn failures into one line on stderr and exit code 1, and warnings into one line each."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
            yield
    except (typer.BadParameter, typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt as stop:
        say(f"interrupted; {stop if isinstance(stop, Interrupted) else 'nothing was written'}")
        raise typer.Exit(1) from None
    except ShapruneError as error:
        if debug:
            traceback.print_exc()
        say(f"error: {error}")
        raise typer.Exit(1) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        first = (str(error).strip().splitlines() or ["no message"])[0]
        say(f"error: {type(error).__name__}: {first}" + ("" if debug else " (--debug shows the traceback)"))
        raise typer.Exit(1) from None


def _show(outcome: Outcome) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    for part in outcome.shown:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))

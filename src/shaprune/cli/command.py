"""Behaviour that all commands share: results on stdout, everything else on stderr, exit codes.

0 = done, 1 = the work failed, 2 = wrong usage (an option or argument that cannot be used).
"""

from __future__ import annotations

import inspect
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shaprune.cli.heartbeat import beating
from shaprune.cli.heartbeat import say as say
from shaprune.cli.options.derived import regrouped, renamed_options, signature_of
from shaprune.cli.usage import as_usage_error as as_usage_error
from shaprune.errors import ShapruneError

if TYPE_CHECKING:
    from rich.console import RenderableType

_DEBUG = "Show the traceback of a failure."
PIPE_WIDTH = 160  # columns where stdout is no terminal: nothing is cut off


@dataclass(frozen=True)
class Outcome:
    """What a command has to say: one JSON-ready object for machines, text and tables for people; its exit code."""

    data: dict[str, Any]
    shown: tuple[RenderableType, ...]
    code: int = 0


def command(function: Callable[..., Outcome]) -> Callable[..., None]:
    """Make a function that returns an `Outcome` a command, with ``--json`` and ``--debug`` beside its own options.

    Parameters whose type is a dataclass become one option per field, see `shaprune.cli.options.derived`. While it
    works, whatever it or a user's factory prints goes to stderr.
    """
    return renaming({})(function)


def renaming(names: Mapping[str, str]) -> Callable[[Callable[..., Outcome]], Callable[..., None]]:
    """The same, for a command some of whose options have another name now: the old ones are refused with the new."""

    def decorate(function: Callable[..., Outcome]) -> Callable[..., None]:
        options = {**signature_of(function), **renamed_options(names)}
        for name, text in (("json", "Print one JSON object on stdout, and nothing else there."), ("debug", _DEBUG)):
            annotation = Annotated[bool, typer.Option(f"--{name}", help=text)]
            parameter = inspect.Parameter(f"as_{name}", inspect.Parameter.KEYWORD_ONLY, default=False)
            options[parameter.name] = parameter.replace(annotation=annotation)

        @wraps(function)
        def run(as_json: bool, as_debug: bool, **given: Any) -> None:
            with _failures(debug=as_debug), redirect_stdout(sys.stderr), beating():
                outcome = function(**regrouped(function, given))
            if as_json:
                print(json.dumps(outcome.data, allow_nan=False))
            else:
                _show(outcome)
            if outcome.code:
                raise typer.Exit(outcome.code)

        run.__signature__ = inspect.Signature([*options.values()])  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in options.items()}
        return run

    return decorate


def repeated(made: Callable[..., None], given: Mapping[str, Any]) -> Outcome:
    """Run a command again with options as they were given, by name; those of ``--json`` and ``--debug`` hold as now."""
    function = inspect.unwrap(made)
    outcome: Outcome = function(**regrouped(function, given))
    return outcome


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with words for what is kept and how to go on."""


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

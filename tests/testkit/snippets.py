"""What a Markdown page shows, run as written: its Python, its commands, the files and the outputs it names.

- ``python``: runs; all of a page share one namespace. With a title: a file of that name is written instead.
- ``yaml``: with a title, a file.
- ``sh``: `shaprune` commands, one per line (``\\`` continues), run in this process. ``# comments`` are skipped.
- ``text``: what the block before it prints; ``...`` stands for anything, runs of blanks are alike.
"""

import contextlib
import doctest
import io
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from shaprune.cli.app import app

_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ALIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``line`` is the number of its first line."""

    language: str
    title: str | None
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks; a fence that is indented or opened otherwise is refused, because it would not run."""
    text = page.read_text(encoding="utf-8")
    found = [Block(m[1], m[2], m[3], text.count("\n", 0, m.start()) + 2) for m in _FENCE.finditer(text)]
    assert text.count("```") == 2 * len(found), f"{page}: a fence is not at the margin, or has options of its own"
    return found


def run_page(page: Path, folder: Path) -> dict[str, object]:
    """Run the blocks in order in ``folder``, the current directory; returns the names that the Python defines."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    for block in blocks_of(page):
        where = f"{page.name}:{block.line}"
        if block.language in ("python", "yaml") and block.title is not None:
            (folder / block.title).write_text(block.text, encoding="utf-8")
            sys.modules.pop(Path(block.title).stem, None)  # another page, or a test, may have had a file of that name
        elif block.language == "python":
            printed = run_python(block, page, names)
        elif block.language == "sh":
            printed = "".join(_run_command(command, where) for command in commands_in(block.text))
        elif block.language == "text":
            assert doctest.OutputChecker().check_output(block.text, printed, _ALIKE), (
                f"{where} shows\n{block.text}\nbut it prints\n{printed}"
            )
        else:
            raise AssertionError(f"{where}: nobody runs a block of {block.language!r}; is it python, sh, yaml or text?")
    return names


def run_python(block: Block, page: Path, names: dict[str, object]) -> str:
    """Run a block in a namespace; tracebacks name the lines of the page. Returns what it printed."""
    code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue()


def commands_in(text: str) -> list[Sequence[str]]:
    """The commands of a shell block, split into arguments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip() and not line.startswith("#")]


def _run_command(command: Sequence[str], where: str) -> str:
    assert command[0] == "shaprune", f"{where}: nobody runs {command[0]!r}"
    done = CliRunner().invoke(app, list(command[1:]), prog_name="shaprune")
    assert done.exit_code == 0, f"{where}: {shlex.join(command)}: {done.stderr or done.exception}"
    return done.stdout

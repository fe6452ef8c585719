"""A page about a run while it goes on, served on 127.0.0.1 only; once the values are there, the report itself."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any

from shaprune.errors import InputError
from shaprune.logs.progress import PROGRESS_HEADER, progress_cells
from shaprune.logs.sinks import PROGRESS_FILE
from shaprune.report.markup import note, table
from shaprune.report.run_files import VALUES
from shaprune.runs.merge_shards import find_runs

HOST = "127.0.0.1"  # never another: the page is for this machine
ICON = "/favicon.ico"  # browsers ask for it unasked, and complain where it is missing
REFRESH_SECONDS = 2  # seconds after which a browser asks again


class Page:
    """What is to be seen of a run now.

    Args:
        folder: of the run.
        draw: makes the report once the values are there.
    """

    def __init__(self, folder: Path, draw: Callable[[], str]) -> None:
        self.folder, self.draw = folder, draw
        self._lock = Lock()
        self._drawn: tuple[int, str] | None = None

    def html(self) -> str:
        """The report, or how the run stands. What cannot be read is stated on the page."""
        values = self.folder / VALUES
        try:
            if not values.is_file():
                return status_page(self.folder)
            with self._lock:
                changed = values.stat().st_mtime_ns
                if self._drawn is None or self._drawn[0] != changed:
                    self._drawn = (changed, self.draw())
                return self._drawn[1]
        except (InputError, OSError) as error:
            return _framed(self.folder, note(f"{error}"))


def status_page(folder: Path) -> str:
    """How a run stands that has no values yet."""
    parts = find_runs(folder) if folder.is_dir() else []
    body = []
    for part in parts:
        state = "unreadable" if part.trouble else "finished" if part.finished else "not finished"
        name = part.journal.relative_to(folder)
        told = f"{name}: {state}, {part.answers:,} answers, {part.evaluations:,} evaluations"
        body.append(note(f"{told}, {part.seconds:,.1f} s of work. {part.trouble or ''}"))
        body += [note(f"{group}: {message}") for group, _, message in part.failures]
    rows = latest_progress(folder / PROGRESS_FILE)
    if rows:
        body.append(table([PROGRESS_HEADER, *map(progress_cells, rows)]))
    if not parts and not rows:
        body.append(note("Nothing has been computed yet."))
    return _framed(folder, "".join(body))


def latest_progress(path: Path) -> list[dict[str, Any]]:
    """The last that a run's ``progress.jsonl`` says of every game; a line that is being written is left out."""
    found: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
            found[str(row["group"])] = row
        except (ValueError, TypeError, KeyError):
            continue
    return list(found.values())


def _framed(folder: Path, body: str) -> str:
    style = files("shaprune.report").joinpath("style.css").read_text(encoding="utf-8")
    title = escape(f"{folder.resolve().name}: scoring")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def server(page: Page, port: int) -> ThreadingHTTPServer:
    """A server of one page on 127.0.0.1; ``port`` 0 = any that is free. ``serve_forever`` serves.

    Raises:
        InputError: the port is in use, or may not be used.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = (self.headers.get("Host") or "").rpartition(":")[0]
            known = name in (HOST, "localhost")  # another name: a page elsewhere that asks
            if not known or self.path not in ("/", ICON):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            if self.path == ICON:
                self.send_response(HTTPStatus.NO_CONTENT)
                self.end_headers()
                return
            body = page.html().encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        why = "is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else f"cannot be used ({error})"
        raise InputError(f"port {port} {why}; choose another, or 0 for any that is free") from error

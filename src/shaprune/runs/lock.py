"""One driver per run: a lock that the operating system releases when its holder ends, however it ends."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shaprune.errors import InputError
from shaprune.storage.atomic_files import check_replaceable, write_text


@contextmanager
def hold_run(folder: Path, name: str = "driver") -> Iterator[None]:
    """Hold the run in ``folder``.

    SQLite's own lock on an empty file: it works on every system that SQLite works on.

    Raises:
        InputError: another process holds it, which is named; the folder cannot be written, or holds another file of
            that name.
    """
    holder = folder / f"{name}.json"
    check_replaceable(holder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / f"{name}.lock", timeout=0, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"{folder} cannot be written: {error}; give run another folder") from error
    try:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            if "locked" not in str(error):
                raise InputError(f"{folder}/{name}.lock cannot be used: {error}; remove that file") from error
            raise InputError(f"{folder} is being computed by {_holder(holder)}; wait for it, or end it first") from None
        write_text(holder, json.dumps({"schema": 1, "kind": "driver", "pid": os.getpid(), "host": platform.node()}))
        yield
    finally:
        connection.close()


def _holder(holder: Path) -> str:
    try:
        found = json.loads(holder.read_text())
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

"""The SQLite file of a journal: created, opened, and validated before it is used."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shaprune.errors import InputError
from shaprune.storage.atomic_files import replacing_file

SCHEMA = 1
PATIENCE = 30.0  # seconds to wait for a lock that another process holds on the file
PAGE = 1 << 15  # bytes; an answer is tens of kilobytes to a megabyte
TABLES = {
    "about": "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "answers": "CREATE TABLE answers (game TEXT, question BLOB, kind TEXT NOT NULL, shape TEXT NOT NULL, "
    "worths BLOB NOT NULL, checksum INTEGER NOT NULL, evaluations INTEGER NOT NULL, seconds REAL NOT NULL, "
    "worker TEXT NOT NULL, PRIMARY KEY (game, question))",
    "failures": "CREATE TABLE failures (game TEXT, worker TEXT, message TEXT, at REAL)",
}
_ODD = {  # rows that no journal writes
    "answers": "typeof(game) <> 'text' OR typeof(question) <> 'blob' OR typeof(shape) <> 'text' OR "
    "typeof(worths) <> 'blob' OR typeof(checksum) <> 'integer' OR typeof(evaluations) <> 'integer' OR "
    "evaluations NOT BETWEEN 0 AND 1e18 OR typeof(seconds) NOT IN ('real', 'integer') OR "
    "seconds NOT BETWEEN 0 AND 1e12 OR typeof(worker) <> 'text' OR kind NOT IN ('<f4', '<f8')",
    "about": "typeof(name) <> 'text' OR typeof(value) <> 'text'",
    "failures": "typeof(message) <> 'text'",
}
_PASSING = ("locked", "busy", "unable to open", "readonly", "disk i/o", "out of memory", "full", "interrupted")


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a file that is there."""
    name = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    connection = sqlite3.connect(name, uri=True, timeout=PATIENCE, check_same_thread=False)
    if not read_only:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def create(path: Path, about: Mapping[str, str]) -> None:
    """A journal without answers, put in place at once: a file without these tables is damaged."""
    with replacing_file(path) as beside:
        connection = sqlite3.connect(beside)
        connection.execute(f"PRAGMA page_size = {PAGE}")
        connection.execute("PRAGMA synchronous = OFF")  # no other process knows the file yet; once, below, is enough
        connection.executescript(f"BEGIN; {'; '.join(TABLES.values())}; COMMIT;")
        with connection:
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
            connection.executemany("INSERT INTO about VALUES (?, ?)", about.items())
        connection.close()
        with beside.open("rb") as file:
            os.fsync(file.fileno())


def damage(path: Path, *, thorough: bool = True) -> str | None:
    """What is wrong with a file, or None.

    Raises:
        InputError: it is whole, and of a newer schema or another program's.
        sqlite3.Error, OSError: it cannot be opened just now, which says nothing about what is in it.
    """
    connection = None
    if not path.is_file():
        raise InputError(f"{path} is no file; give run another folder")
    with path.open("rb"):  # says why it cannot be opened, where SQLite does not
        pass
    try:
        connection = connect(path, read_only=True)
        schema = connection.execute("PRAGMA user_version").fetchone()[0]
        wrong = _other_tables(path, connection)
        if schema > SCHEMA and wrong is None:
            raise InputError(f"{path} has schema {schema}, newer than {SCHEMA}; update shaprune")
        return wrong or _odd_rows(connection) or (_broken(connection) if thorough else None)
    except sqlite3.OperationalError as error:
        if any(part in str(error).lower() for part in _PASSING):
            raise
        return str(error)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        return str(error)
    finally:
        if connection is not None:
            connection.close()


def _other_tables(path: Path, connection: sqlite3.Connection) -> str | None:
    """Whether there is anything else than the tables of a journal (a trigger would change what is written)."""
    query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    found = {str(name): " ".join(str(sql).split()) for name, sql in connection.execute(query)}
    if found and not set(found) & set(TABLES):
        raise InputError(f"{path} is another program's database; give run another folder")
    missing = [name for name in TABLES if name not in found]
    if missing:
        return "its tables are missing"
    odd = next((name for name, sql in found.items() if TABLES.get(name) != sql), None)
    return None if odd is None else f"{odd!r} in it is not as a journal has it"


def _odd_rows(connection: sqlite3.Connection) -> str | None:
    for table, odd in _ODD.items():
        if connection.execute(f"SELECT 1 FROM {table} WHERE {odd} LIMIT 1").fetchone() is not None:
            return f"its table {table!r} holds something of another type"
    try:
        for (value,) in connection.execute("SELECT value FROM about WHERE name LIKE 'note:%'"):
            json.loads(value)
    except (ValueError, RecursionError):
        return "one of its notes is no JSON"
    return None


def _broken(connection: sqlite3.Connection) -> str | None:
    """Look at every page, and at every answer."""
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        return next((line for line in str(found).splitlines() if not line.startswith("***")), str(found))
    for worths, checksum, kind, shape in connection.execute("SELECT worths, checksum, kind, shape FROM answers"):
        if zlib.crc32(worths) != checksum:
            return "an answer does not have its checksum"
        if not _fits(shape, len(worths) / int(kind[2:])):
            return "an answer does not have its shape"
    return None


def _fits(shape: str, entries: float) -> bool:
    try:
        sizes = json.loads(shape)
    except (ValueError, RecursionError):
        return False
    whole = isinstance(sizes, list) and all(type(size) is int and size >= 0 for size in sizes)
    return whole and math.prod(sizes) == entries


def set_aside(path: Path) -> Path:
    """Rename a file, with its write-ahead log, to the first free name."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    for ending in ("-wal", "-shm"):
        beside = path.with_name(path.name + ending)
        if beside.exists():
            beside.rename(aside.with_name(aside.name + ending))
    return aside


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the disk say which file, and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        reason = str(error)
        if "locked" in reason or "busy" in reason:
            step = "another program holds it; end that one, then resume the run"
        elif "full" in reason:
            step = "free some space, then resume the run; nothing that was committed is lost"
        else:
            step = "see that the folder can be written, then resume the run"
        raise InputError(f"{path}: {reason}; {step}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be used: {error.strerror or error}; give run another folder") from error

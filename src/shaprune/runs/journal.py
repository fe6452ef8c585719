"""The journal of a run: every answer of a game, committed before it counts (SQLite, write-ahead log).

    runs/name/journal.sqlite     answers, and what they are answers of
    runs/name/driver.lock        held by the process that computes

An answer is found by its content: the game's name and the digest of the question, which holds the random orders that
belong to (seed, chunk). What all of them depend on (weights, data, masks, metric, precision, seed, options) stands in
``about``; a run that differs there is refused by name. Answers are kept as the game gave them (in float32 where that
loses nothing), so whatever is summed from them has the same bits as without a journal.

A commit survives the end of the process (kill -9); the last ones before a power failure may be lost, never damaged.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError, ShapruneWarning
from shaprune.runs.journal_database import connect, create, damage, explained, set_aside
from shaprune.values.games.arrays import Worths
from shaprune.values.games.game import Question

JOURNAL_FILE = "journal.sqlite"


class Journal:
    """An open journal; may be used from several threads.

    Attributes:
        path: of the file.
        found: answers that were there when it was opened.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.Lock()
        self.found = len(self)

    @staticmethod
    def open(path: Path, about: Mapping[str, Any]) -> Journal:
        """Open the journal of a run to add to it, or start one.

        A damaged file is set aside under another name, with a `ShapruneWarning`, and a new one is started.

        Raises:
            InputError: the journal of a run that differs in something of ``about`` (compared as text), which is named;
                a newer schema; another program's database; a file that cannot be opened or written just now, or is held
                by another program.
        """
        about = {name: str(value) for name, value in about.items()}
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                wrong = damage(path)
                if wrong is not None:
                    warnings.warn(
                        f"{path} is damaged ({wrong}); it is set aside as {set_aside(path).name}, and its answers are "
                        "computed again",
                        ShapruneWarning,
                        stacklevel=3,
                    )
            if not path.exists():
                create(path, about)
            journal = Journal(path, connect(path))
        try:
            _check_same(path, journal.about(), about)
        except InputError:
            journal.close()
            raise
        return journal

    @staticmethod
    def read(path: Path) -> Journal:
        """Open a journal read-only, also while a run goes on.

        Raises:
            InputError: missing, damaged, or of a newer schema; nothing is changed on disk.
        """
        with explained(path):
            if not path.exists():
                raise InputError(f"{path} does not exist; name the folder of a run")
            wrong = damage(path, thorough=False)
            if wrong is not None:
                raise InputError(f"{path} is damaged ({wrong}); starting the run again sets it aside")
            return Journal(path, connect(path, read_only=True))

    def get(self, game: str, question: bytes) -> Worths | None:
        """The answer to a question, or None where it has not been answered."""
        row = self._one("SELECT kind, shape, worths FROM answers WHERE game = ? AND question = ?", (game, question))
        return None if row is None else np.frombuffer(row[2], row[0]).reshape(json.loads(row[1])).astype(np.float64)

    def put(
        self, game: str, question: bytes, worths: Worths, *, evaluations: int, seconds: float, worker: str = ""
    ) -> None:
        """Commit an answer.

        Raises:
            InputError: it cannot be written (a full disk, a lock that is not released); what is there is kept.
        """
        with np.errstate(over="ignore"):
            single = worths.astype(np.float32)
        kept: NDArray[Any] = single if np.array_equal(single, worths) else np.asarray(worths, dtype=np.float64)
        kept = kept.astype(kept.dtype.newbyteorder("<"), copy=False)
        blob = kept.tobytes()
        shape = json.dumps(list(worths.shape))
        row = (game, question, kept.dtype.str, shape, blob, zlib.crc32(blob), evaluations, seconds, worker)
        self._write("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def failed(self, game: str, worker: str, message: str) -> None:
        """Note what a worker or a user's function raised."""
        self._write("INSERT INTO failures VALUES (?, ?, ?, ?)", (game, worker, message, time.time()))

    def note(self, name: str, value: Any) -> None:
        """Note something about the run (JSON types) that does not decide what its answers are."""
        self._write("INSERT OR REPLACE INTO about VALUES (?, ?)", (f"note:{name}", json.dumps(value)))

    def noted(self, name: str) -> Any:
        """What was noted, or None."""
        row = self._one("SELECT value FROM about WHERE name = ?", (f"note:{name}",))
        return None if row is None else json.loads(row[0])

    def all_noted(self, beginning: str) -> dict[str, Any]:
        """All that was noted under names that begin so."""
        rows = self._all("SELECT name, value FROM about WHERE name LIKE 'note:%' ORDER BY name")
        names = {str(name).removeprefix("note:"): value for name, value in rows}
        return {name: json.loads(value) for name, value in names.items() if name.startswith(beginning)}

    def holds(self, game: str) -> bool:
        """Whether there is an answer of a game."""
        return self._one("SELECT 1 FROM answers WHERE game = ? LIMIT 1", (game,)) is not None

    def about(self) -> dict[str, str]:
        """What the answers depend on."""
        rows = self._all("SELECT name, value FROM about WHERE name NOT LIKE 'note:%'")
        return {str(name): str(value) for name, value in rows}

    def failures(self) -> list[tuple[str, str, str]]:
        """(game, worker, message) of everything that failed."""
        return [(str(g), str(w), str(m)) for g, w, m in self._all("SELECT game, worker, message FROM failures")]

    def paid(self) -> tuple[int, float]:
        """Evaluations of all answers, and the seconds that they took."""
        row = self._one("SELECT TOTAL(evaluations), TOTAL(seconds) FROM answers")
        return int(row[0]), float(row[1])

    def add_all(self, other: Journal) -> int:
        """Take over the answers of another journal of the same run; how many questions the two answer differently."""
        columns = "game, question, kind, shape, worths, checksum, evaluations, seconds, worker"
        differing = 0
        for row in other._all(f"SELECT {columns} FROM answers ORDER BY rowid"):
            known = self._one("SELECT worths FROM answers WHERE game = ? AND question = ?", row[:2])
            differing += known is not None and known[0] != row[4]
            self._write("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return differing

    def __len__(self) -> int:
        """Number of answers."""
        return int(self._one("SELECT COUNT(*) FROM answers")[0])

    def close(self) -> None:
        """Close the file; the journal cannot be used any more."""
        with self._lock:
            self._connection.close()

    def _one(self, query: str, values: tuple[Any, ...] = ()) -> Any:
        with explained(self.path), self._lock:
            return self._connection.execute(query, values).fetchone()

    def _all(self, query: str) -> list[Any]:
        with explained(self.path), self._lock:
            return self._connection.execute(query).fetchall()

    def _write(self, query: str, values: tuple[Any, ...]) -> None:
        with explained(self.path), self._lock, self._connection:
            self._connection.execute(query, values)


def digest(question: Question) -> bytes:
    """What finds a question again: 16 bytes of BLAKE2b over all that is asked."""
    kind = b"walks" if question.walks else b"derivatives" if question.derivatives else b"rows"
    found = hashlib.blake2b(kind, digest_size=16)
    rows = question.rows
    if question.walks and rows.size:
        rows = rows.astype(np.min_scalar_type(int(rows.max())))  # less to digest
    elif not question.walks:
        rows = np.packbits(rows, axis=1)
    for array in (np.array(question.rows.shape), rows, question.examples, question.start):
        found.update(b"-" if array is None else np.ascontiguousarray(array).tobytes() + b"|")
    return found.digest()


def differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """What two runs differ in, in words."""
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return [f"{name} ({_shortened(theirs.get(name))} there, {_shortened(ours.get(name))} here)" for name in names]


def _shortened(text: str | None) -> str:
    if text is None:
        return "unknown"
    return text[:12] if len(text) == 64 and " " not in text else text[:80]


def _check_same(path: Path, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    differing = differences(theirs, ours)
    if differing:
        raise InputError(
            f"{path.parent} holds another run, which differs in {'; '.join(differing)}; give run another folder, or "
            "take the same (data that are shuffled or augmented at random differ every time)"
        )

"""One log of coalition worths: what has been paid for once is not paid again, by whichever estimator.

    logged = LoggedGame(game)
    sp.estimate(logged, "permutation", max_evaluations=2_000)
    sp.estimate(logged, "regression", max_evaluations=2_000)   # coalitions that both drew cost nothing the second time
    logged.save("worths.npz")
    logged = LoggedGame.load("worths.npz", game)

Worths over all examples are logged. Worths of single examples (one random order per example) are passed through: a
second estimate hardly ever draws the same coalition for the same example.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import GameError, InputError
from shaprune.storage.atomic_files import check_replaceable, write_bytes
from shaprune.values.games.arrays import Coalitions, Examples, Orders, Start, Worths
from shaprune.values.games.checks import check_worths, describe_coalition
from shaprune.values.games.game import Game, GameWrapper, Question
from shaprune.values.games.repeatability import worths_agree
from shaprune.values.games.witness import WHOLE, differing, tolerance

SCHEMA = 1
MAX_MEMORY = 1 << 28
_ENTRY = 160  # bytes of one entry of the dictionary besides the coalition itself


class LoggedGame(GameWrapper):
    """A game with a log of the worths that it has been asked for.

    A game that is not known to repeat its answers is asked once more for the first worth that the log would answer; a
    `GameError` names the coalition where the answers differ. A log that comes from a file is compared with the game
    first, see `load`.

    Attributes:
        max_memory: bytes that the log may take; when it is full, further worths are paid and not kept.
    """

    def __init__(self, game: Game, *, max_memory: int = MAX_MEMORY) -> None:
        super().__init__(game)
        self._answered = 0
        self.max_memory = max_memory
        self._worths: dict[bytes, float] = {}
        self._checked = game.repeatable  # otherwise one worth is asked for again when the log first answers

    def __len__(self) -> int:
        """Number of coalitions in the log."""
        return len(self._worths)

    @property
    def answered(self) -> int:
        """(coalition, example) rows that the log has answered instead of the game."""
        return self._answered

    @property
    def coalitions(self) -> Coalitions:
        """(len, n_players) bool, in the order in which they were paid."""
        width = -(-self.n_players // 8)
        packed = np.frombuffer(b"".join(self._worths), dtype=np.uint8).reshape(len(self), width)
        return np.unpackbits(packed, axis=1, count=self.n_players).astype(bool)

    @property
    def worths(self) -> Worths:
        """(len,) float64, of `coalitions`."""
        return np.array(list(self._worths.values()), dtype=np.float64)

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        if examples is not None and self.n_examples > 1:
            return self.game(coalitions, examples)
        coalitions = np.asarray(coalitions, dtype=bool)
        keys = _keys(coalitions)
        new = {key: row for row, key in enumerate(keys) if key not in self._worths}  # each missing coalition once
        if not self._checked and (old := next((key for key in keys if key in self._worths), None)) is not None:
            wrong = self._check(old, coalitions[keys.index(old)])
            if wrong is not None:
                raise GameError(
                    f"the log does not fit: {wrong}; switch off what is random in the game, or fix its seed"
                )
            self._answered -= self.n_examples
        self._answered += (len(keys) - len(new)) * self.n_examples
        fresh: dict[bytes, float] = {}
        if new:
            asked = coalitions[list(new.values())]
            fresh = dict(zip(new, check_worths(self.game(asked), asked).tolist(), strict=True))
            room = self.max_memory // (_ENTRY + len(keys[0])) - len(self)
            self._worths.update(list(fresh.items())[: max(room, 0)])
        return np.array([fresh[key] if key in fresh else self._worths[key] for key in keys], dtype=np.float64)

    def walk(self, orders: Orders, examples: Examples | None = None, start: Start | None = None) -> Worths:
        if examples is not None and self.n_examples > 1:
            return self.game.walk(orders, examples, start)
        return Game.walk(self, orders, None, start)

    def _check(self, key: bytes, coalition: Start) -> str | None:
        """Ask the game for one logged worth again; what is wrong, or None."""
        known = self._worths[key]
        again = float(check_worths(self.game(coalition[None]), coalition[None])[0])
        self._checked = True
        if worths_agree(again, known):
            return None
        return f"{describe_coalition(coalition)} is worth {known} there and {again} here"

    def save(self, path: str | Path) -> None:
        """Write the log (npz: packed coalitions, worths, and what game they are of); replaces ``path`` at once.

        Raises:
            InputError: the folder is missing or cannot be written.
        """
        check_replaceable(path)
        about = {
            "schema": SCHEMA,
            "kind": "worths",
            "n_players": self.n_players,
            "n_examples": self.n_examples,
            "fingerprint": self.fingerprint,
            "dense": self.dense.tolist(),
        }
        file = io.BytesIO()
        np.savez_compressed(
            file, about=json.dumps(about), coalitions=np.packbits(self.coalitions, axis=1), worths=self.worths
        )
        write_bytes(path, file.getvalue())

    @staticmethod
    def load(path: str | Path, game: Game, *, max_memory: int = MAX_MEMORY) -> LoggedGame:
        """A game with the log that `save` wrote.

        What is logged is used only if the game still is the one that was asked: a few logged worths, of coalitions that
        lack a player, are asked for again and compared, and so is how the whole network answers.

        Raises:
            InputError: a file that is missing, damaged or no log; a log of another game: other players or examples,
                another fingerprint (weights, data, metric), or a worth that the game does not repeat.
        """
        about, coalitions, worths, dense = _read(path, game.n_players)
        for what, ours in (("n_players", game.n_players), ("n_examples", game.n_examples)):
            if about.get(what) != ours:
                raise InputError(f"{path} is a log of a game with {what}={about.get(what)}, this one has {ours}")
        theirs = about.get("fingerprint")
        if theirs != game.fingerprint and theirs is not None and game.fingerprint is not None:
            raise InputError(
                f"{path} is a log of another game: the model, the data, the metric or the precision differ "
                f"(fingerprint {theirs[:12]}, this game's is {game.fingerprint[:12]}); give the log its own file"
            )
        logged = LoggedGame(game, max_memory=max_memory)
        if len(worths):
            wrong = _changed(game, coalitions, worths, dense)
            if wrong is not None:
                raise InputError(f"{path} is a log of another game: {wrong}; give the log its own file")
            logged._checked = True
        logged._worths = dict(zip(_keys(coalitions), worths.tolist(), strict=True))
        return logged


def _changed(game: Game, coalitions: Coalitions, worths: Worths, dense: NDArray[np.float64]) -> str | None:
    """Ask a game for a few logged worths again; what has changed, or None."""
    rows = np.unique(np.linspace(0, len(worths) - 1, WHOLE).astype(np.int64))
    lacking = np.flatnonzero(~coalitions.all(1))
    if len(lacking):
        rows = np.unique(lacking[np.linspace(0, len(lacking) - 1, WHOLE).astype(np.int64)])
    question = Question(coalitions[rows])
    now = check_worths(question.of(game), question.rows)
    if len(dense) and len(game.dense) and len(differing(dense, game.dense, rough=game.rough)):
        return (
            "the network answers otherwise on the same inputs with the same weights (its code, an attribute, a hook or "
            "an option of a layer has changed)"
        )
    limit = tolerance(worths, rough=game.rough)
    wrong = np.flatnonzero(~(np.abs(now - worths[rows]) <= limit))
    if not len(wrong):
        return None
    row = wrong[0]
    return f"{describe_coalition(question.rows[row])} is worth {worths[rows[row]]} there and {now[row]} here"


def _keys(coalitions: Coalitions) -> list[bytes]:
    packed = np.packbits(coalitions, axis=1)
    flat, width = packed.tobytes(), packed.shape[1]
    return [flat[i : i + width] for i in range(0, len(flat), width)]


def _read(path: str | Path, n_players: int) -> tuple[dict[str, Any], Coalitions, Worths, NDArray[np.float64]]:
    try:
        content = io.BytesIO(Path(path).read_bytes())  # np.load leaves a damaged file open
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; LoggedGame(game) starts a new log") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        with np.load(content, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            packed, worths = file["coalitions"], file["worths"]
        if about["kind"] != "worths":
            raise ValueError(f"it holds {about['kind']}")
        if about["schema"] > SCHEMA:
            raise ValueError(f"its schema {about['schema']} is newer than {SCHEMA}; update shaprune")
        if not isinstance(about.get("fingerprint"), (str, type(None))):
            raise ValueError("its fingerprint is no text")
        if packed.ndim != 2 or packed.dtype != np.uint8 or worths.dtype.kind not in "fiu":
            raise ValueError(f"it holds arrays of {packed.dtype} and {worths.dtype}")
        if worths.shape != (len(packed),) or not np.isfinite(worths).all():
            raise ValueError("coalitions and worths do not fit each other, or a worth is not finite")
        if about["n_players"] == n_players and packed.shape[1] != -(-n_players // 8):
            raise ValueError(f"its coalitions are not of {n_players} players")
        dense = np.asarray(about.get("dense", []), dtype=np.float64)
        wide = np.unpackbits(packed, axis=1, count=min(n_players, 8 * packed.shape[1])).astype(bool)
    except Exception as error:  # a damaged file fails in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is no complete log of worths written by shaprune: {reason}") from error
    return about, wide, worths.astype(np.float64), dense

"""Games that are answered by an executor, in pieces that do not depend on how many workers there are."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import chain as joined
from itertools import islice

import numpy as np

from shaprune.errors import InputError
from shaprune.runs.executor import Answer, Executor
from shaprune.values.games.arrays import Worths
from shaprune.values.games.game import Game, Question, StreamedGame

PIECE_EVALUATIONS = 1 << 18  # evaluations of a piece of work


class GameInPieces(StreamedGame):
    """Asks large questions in pieces of so many evaluations; always the same pieces, so always the same bits.

    Walks of single examples come in chunks already and stay whole.
    """

    def __init__(self, game: Game, piece: int = PIECE_EVALUATIONS) -> None:
        super().__init__(game)
        self.piece = piece

    def stream(self, questions: Iterable[Question]) -> Iterator[Worths]:
        numbers: deque[int] = deque()

        def pieces() -> Iterator[Question]:
            for question in questions:
                parts = self._pieces(question)
                numbers.append(len(parts))
                yield from parts

        answers = self.game.stream(pieces())
        for first in answers:
            others = list(islice(answers, numbers.popleft() - 1))
            yield np.concatenate([first, *others]) if others else first

    def _pieces(self, question: Question) -> list[Question]:
        rows, examples = question.rows, question.examples
        if not len(rows) or (question.walks and examples is not None):
            return [question]
        size = max(1, self.piece // (question.price(self.n_examples) // len(rows)))
        size = 1 << size.bit_length() - 1  # an enumeration is run faster in blocks of a power of two
        return [
            replace(question, rows=rows[i : i + size], examples=None if examples is None else examples[i : i + size])
            for i in range(0, len(rows), size)
        ]


class ExecutedGame(StreamedGame):
    """A game whose questions an executor answers; ``game`` itself only says how many players and examples there are."""

    def __init__(self, game: Game, name: str, executor: Executor) -> None:
        super().__init__(game)
        self.name, self.executor = name, executor

    def stream(self, questions: Iterable[Question]) -> Iterator[Worths]:
        under_way: deque[Future[Answer]] = deque()
        try:
            for question in questions:
                under_way.append(self.executor.submit(self.name, question))
                if len(under_way) >= self.executor.width:
                    yield under_way.popleft().result().worths
            while under_way:
                yield under_way.popleft().result().worths
        finally:
            for future in under_way:
                future.cancel()


class ComputedElsewhere(Exception):
    """The rest of a game is computed by other shards."""


@dataclass(frozen=True)
class Shard:
    """Part ``index`` (1..of) of the work of a run."""

    index: int
    of: int

    @staticmethod
    def parse(text: str) -> Shard:
        """Read ``"2/4"``.

        Raises:
            InputError: not two whole numbers i/n with 1 <= i <= n.
        """
        index, _, of = text.partition("/")
        if not (index.isdecimal() and of.isdecimal() and 1 <= int(index) <= int(of)):
            raise InputError(f"shard is {text!r}; write i/n, such as 1/4 to 4/4")
        return Shard(int(index), int(of))

    @property
    def name(self) -> str:
        """As it stands in names of files."""
        return f"{self.index}-of-{self.of}"


class ShardedGame(ExecutedGame):
    """Computes every n-th of the questions that are known in advance, and says `ComputedElsewhere` at the others.

    A question that stands alone is answered by every shard: it is small, or what follows depends on it.
    """

    def __init__(self, game: Game, name: str, executor: Executor, shard: Shard) -> None:
        super().__init__(game, name, executor)
        self.shard = shard

    def stream(self, questions: Iterable[Question]) -> Iterator[Worths]:
        ahead = iter(questions)
        first = list(islice(ahead, 2))
        if len(first) < 2:
            yield from super().stream(first)
            return
        begin = (self.shard.index - 1 + zlib.crc32(self.name.encode())) % self.shard.of
        for _ in super().stream(islice(joined(first, ahead), begin, None, self.shard.of)):
            pass
        raise ComputedElsewhere(self.name)

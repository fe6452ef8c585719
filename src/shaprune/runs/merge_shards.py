"""Merge the journals of shards into the journal of the run, and list runs."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from shaprune.errors import InputError, ShapruneWarning
from shaprune.runs.executed_games import Shard
from shaprune.runs.journal import JOURNAL_FILE, Journal, differences
from shaprune.runs.journal_witness import join_witnesses
from shaprune.runs.lock import hold_run
from shaprune.runs.session import journal_file


def merge(folder: str | Path) -> int:
    """Put the journals of all shards in ``folder`` into the journal of the run; it can then be resumed at no cost.

    What depends on other answers (the later steps of some estimators) no shard could know; resuming computes it.

    Returns:
        The number of answers in the journal of the run.

    Raises:
        InputError: no shards; one that is missing, has not finished, or belongs to another run or
            was computed with another network or worth.
    """
    folder = Path(folder)
    found = sorted(p for p in folder.glob("journal-*-of-*.sqlite") if re.fullmatch(r"journal-\d+-of-\d+", p.stem))
    if not found:
        raise InputError(f"{folder} holds no journal of a shard; run `shaprune score --run {folder} --shard i/n` first")
    numbers = {int(p.stem.rsplit("-", 1)[1]) for p in found}
    if len(numbers) > 1:
        raise InputError(f"{folder} holds shards of {sorted(numbers)}; remove those of all numbers but one")
    shards = [Shard(index + 1, of) for of in numbers for index in range(of)]
    with hold_run(folder):
        parts: list[Journal] = []
        try:
            for shard in shards:
                path = journal_file(folder, shard)
                if not path.exists():
                    raise InputError(f"shard {shard.index}/{shard.of} of {folder} is missing; run it with --shard")
                parts.append(Journal.read(path))
                if not parts[-1].noted("finished"):
                    raise InputError(f"shard {shard.index}/{shard.of} of {folder} has not finished; run it again")
                differing = differences(parts[0].about(), parts[-1].about())
                if differing:
                    raise InputError(f"shards 1 and {shard.index} of {folder} differ in {'; '.join(differing)}")
            whole = Journal.open(folder / JOURNAL_FILE, parts[0].about())
            try:
                for part in parts:
                    join_witnesses(whole, part)
                differing_bits = sum(whole.add_all(part) for part in parts)
                if differing_bits:
                    warnings.warn(
                        f"{differing_bits} questions were answered by several shards with other last bits: their "
                        "machines differ; the first answer is kept",
                        ShapruneWarning,
                        stacklevel=2,
                    )
                return len(whole)
            finally:
                whole.close()
        finally:
            for part in parts:
                part.close()


@dataclass(frozen=True)
class FoundRun:
    """A run on disk, or a shard of one.

    Attributes:
        journal: its file.
        answers: in its journal, with the ``evaluations`` and the ``seconds`` of work behind them.
        finished: whether all values are known.
        failures: (game, worker, message) of what failed.
        trouble: why the journal cannot be read, or None.
    """

    journal: Path
    answers: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    finished: bool = False
    failures: tuple[tuple[str, str, str], ...] = ()
    trouble: str | None = None


def find_runs(folder: str | Path) -> list[FoundRun]:
    """The runs in ``folder`` and in the folders right below it; read-only, also while they go on.

    Raises:
        InputError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name one that holds runs")
    candidates = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    return [_inspect_run(file) for path in candidates for file in sorted(path.glob("journal*.sqlite"))]


def _inspect_run(file: Path) -> FoundRun:
    try:
        journal = Journal.read(file)
    except InputError as error:
        return FoundRun(file, trouble=str(error))
    try:
        finished = bool(journal.noted("finished"))
        return FoundRun(file, len(journal), *journal.paid(), finished, tuple(journal.failures()))
    finally:
        journal.close()

"""Messages after Ctrl-C: what a run or a log of worths has kept, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shaprune.cli.command import Interrupted


@contextmanager
def keeping(run: Path | None, shard: str | None, worths: Path | None) -> Iterator[None]:
    """Raise `Interrupted` where the block is interrupted, with what is kept and how to go on.

    Args:
        run: the folder of a run, or None.
        shard: the part of it that is computed, or None for all.
        worths: the folder of a log of worths, or None.
    """
    try:
        yield
    except KeyboardInterrupt:
        told = [_kept_in_run(run, shard)] if run is not None else []
        if worths is not None and any(worths.glob("*.npz")):
            told.append(f"worths that were paid are kept in {worths}; the same command goes on with them")
        raise Interrupted("; ".join(told) or "nothing was written") from None


def _kept_in_run(run: Path, shard: str | None) -> str:
    from shaprune.runs.executed_games import Shard
    from shaprune.runs.merge_shards import find_runs
    from shaprune.runs.session import journal_file

    journal = journal_file(run, None if shard is None else Shard.parse(shard))
    found = [known for known in (find_runs(run) if run.is_dir() else []) if known.journal == journal]
    how = "the same command goes on there" if shard is not None else f"`shaprune resume {run}` goes on there"
    if found and found[0].trouble is None and found[0].answers:
        return f"{found[0].answers:,} answers ({found[0].evaluations:,} evaluations) are kept in {run}; {how}"
    return f"nothing was computed yet for {run}; the same command begins again"

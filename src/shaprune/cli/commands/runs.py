"""``shaprune resume | merge | runs | export-values``: runs that keep a journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from shaprune.cli.command import Outcome, as_usage_error, command, repeated, say
from shaprune.cli.commands.score import COMMAND, score
from shaprune.cli.options.runs import RayAddress, RunFolder, RunsFolder, ValuesOut, WorkersOrOwn
from shaprune.cli.options.shared import Overwrite
from shaprune.cli.outputs import check_out_file
from shaprune.cli.tables import text_table
from shaprune.errors import InputError
from shaprune.storage.atomic_files import read_json, write_bytes


@command
def resume(
    folder: RunFolder,
    workers: WorkersOrOwn = None,
    ray_address: RayAddress = None,
) -> Outcome:
    """Go on with a run where it ended, however it ended; the values have the same bits.

    Example: shaprune resume runs/digits --workers 2
    """
    return _resumed(folder, workers, ray_address)


@command
def merge(folder: RunFolder) -> Outcome:
    """Join the shards of a run that `shaprune score --run DIR --shard I/N` computed, and write DIR/values.json.

    Example: shaprune merge runs/digits
    """
    from shaprune.runs.merge_shards import merge as merged

    say(f"{merged(folder):,} answers in {folder}")
    return _resumed(folder, None, None)


@command
def runs(folder: RunsFolder = Path("runs")) -> Outcome:
    """List runs and how far they are; nothing is changed, also while they go on.

    Example: shaprune runs
    """
    from shaprune.runs.merge_shards import find_runs

    found = find_runs(folder)
    rows = [
        {
            "run": str(run.journal.parent),
            "part": run.journal.stem.removeprefix("journal").strip("-"),
            "state": "unreadable" if run.trouble else "finished" if run.finished else "not finished",
            "answers": run.answers,
            "evaluations": run.evaluations,
            "seconds": run.seconds,
            "failures": [f"{game}: {message}" for game, _, message in run.failures],
            "trouble": run.trouble,
        }
        for run in found
    ]
    return Outcome({"runs": rows}, (_shown(rows) if rows else f"no runs in {folder}",))


@command
def export_values(folder: RunFolder, out: ValuesOut, overwrite: Overwrite = False) -> Outcome:
    """Write the values of a finished run as JSON (what plan reads) or CSV.

    Example: shaprune export-values runs/digits --out digits.csv
    """
    with as_usage_error("--out"):
        if out.suffix not in (".json", ".csv"):
            raise InputError(f"{out.name!r} has no known ending; name it *.json or *.csv")
    check_out_file(out, overwrite=overwrite)
    from shaprune.planning.scores import Scores

    source = folder / "values.json"
    if not source.exists():
        if not any(folder.glob("journal*.sqlite")):
            raise InputError(f"{folder} is no folder of a run; name the one that `shaprune score --run` was given")
        raise InputError(f"{folder} holds no values.json: the run has not finished; `shaprune resume {folder}` goes on")
    scores = Scores.load(source)
    if out.suffix == ".json":
        write_bytes(out, source.read_bytes())
    else:
        scores.to_csv(out)
    return Outcome({"players": scores.players.n, "artifacts": {"values": str(out)}}, (f"values -> {out}",))


def _resumed(folder: Path, workers: int | None, ray_address: str | None) -> Outcome:
    """Score again with the options that the run began with."""
    if not (folder / COMMAND).exists():
        raise InputError(
            f"{folder} was not begun by `shaprune score --run`; if sp.score(..., run=...) began it, make the same call"
        )
    options: dict[str, Any] = read_json(folder / COMMAND)
    for name in options["paths"]:
        options["options"][name] = Path(options["options"][name])
    chosen = options["options"] | {"folder": folder, "overwrite": True}
    if workers is not None:
        chosen["workers"] = workers
    if ray_address is not None:
        chosen["ray_address"] = ray_address
    return repeated(score, chosen)


def _shown(rows: list[dict[str, Any]]) -> Table:
    lines = [
        (
            f"{row['run']} {row['part']}".strip(),
            str(row["state"]),
            f"{row['answers']:,}",
            f"{row['evaluations']:,}",
            f"{row['seconds']:.1f}",
            row["trouble"] or "; ".join(row["failures"]),
        )
        for row in rows
    ]
    return text_table(("run", "state", "answers", "evaluations", "seconds of work", "failures"), lines)

"""``shaprune score``: values of every player."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shaprune.cli.command import Outcome, as_usage_error, renaming, say
from shaprune.cli.interruption import keeping
from shaprune.cli.options.groups import Source, Written
from shaprune.cli.options.parse import method_of, rule_of
from shaprune.cli.options.shared import FOLDERS, Antithetic, MaxEvaluations, Method, Stop, Worth
from shaprune.cli.outputs import check_out
from shaprune.cli.progress import observed_progress
from shaprune.logs.sinks import check_sink
from shaprune.options.fields import changed
from shaprune.options.groups import CRITERIA, NO_GAME, Scoring, Units
from shaprune.runs.session import RunOptions
from shaprune.storage.atomic_files import check_replaceable, write_text
from shaprune.storage.schema import head
from shaprune.values.concepts import concept_of

if TYPE_CHECKING:
    from shaprune.pipeline.cost_estimate import ScoringCost
    from shaprune.planning.scores import Scores

COMMAND = "command.json"  # in the folder of a run: what `shaprune resume` repeats
NOT_REPEATED = ("folder", "shard", "dry_run", "overwrite", "out")  # options of one call only
FILES = ("values.json",)


@renaming({"sizes": "window", "step": "per-round"})
def score(
    *,
    source: Source,
    written: Written,
    worth: Worth = "fidelity",
    method: Method = "permutation",
    max_evaluations: MaxEvaluations = None,
    stop: Stop = None,
    antithetic: Antithetic = False,
    scoring: Scoring,
    run: RunOptions,
    units: Units,
    given: dict[str, Any],
) -> Outcome:
    """Score every channel, neuron or other unit of a trained network; writes values.json into --out or --run.

    Without --window, Shapley values look at coalitions that keep at least half of a group.

    Example: shaprune score --model digits --weights demo/dense.safetensors --data digits --out scores
    """
    _check(written, scoring, run, method, {"--max-evaluations": max_evaluations, "--stop": stop})
    rule = rule_of(stop)
    with as_usage_error("--run, --shard or --workers"):
        run.check(
            layers=scoring.layers, mode=scoring.mode, stop=rule, log=written.worth_log, precision=scoring.precision
        )
    estimator = method_of(method, antithetic=antithetic)
    if written.out is not None:
        check_out(written.out, FILES, overwrite=written.overwrite)

    import shaprune as sp
    from shaprune.cli.inputs import device_of, read_data, read_model
    from shaprune.network.discovery.few_examples import FOLLOWED_EXAMPLES
    from shaprune.network.layers.open_attention import opened_where_same
    from shaprune.storage.atomic_files import replacing_directory

    where = device_of(source.device)
    network = read_model(source.model, source.weights, where, source.seed)
    part = read_data(source.data, source.cache, source.preprocessing).held_out.take(source.examples)
    inputs = part.inputs[:FOLLOWED_EXAMPLES].to(where)
    network = opened_where_same(network, inputs)
    players = sp.find_players(network, inputs, **vars(units))
    asked: tuple[Any, ...] = (network, players, part.batches(), worth, estimator)
    until: dict[str, Any] = {"max_evaluations": max_evaluations, "stop": rule}
    if written.dry_run or run.path is not None:
        cost = sp.metrics.expected_cost(*asked, **until, workers=run.workers, options=scoring)
        priced = _cost_outcome(cost, run.workers)
        if written.dry_run:
            return priced
        say(f"expected: {priced.shown[-1]}")
    if run.path is not None:
        _note(run.path, given)
    say(f"scoring {players.n:,} players in {len(players.groups)} groups on {len(part):,} held-out examples ...")
    with keeping(run.path, run.shard, written.worth_log), _watching(written, run, scoring, method) as board:
        scores = sp.score(
            *asked,
            **until,
            seed=source.seed,
            run=run,
            log=written.worth_log,
            progress=None if board is None else False,
            options=replace(scoring, watch=board),
        )
    if run.shard is not None:
        told = (
            f"shard {run.shard} of {run.folder} is done; once all are, `shaprune merge {run.folder}` writes the values"
        )
        return Outcome({"shard": run.shard, "run": str(run.folder)}, (told,))
    if written.out is not None:
        with replacing_directory(written.out, files=FILES, overwrite=written.overwrite) as folder:
            scores.save(folder / "values.json")
    place = written.out or run.path
    assert place is not None
    return _scored(scores, {"method": method, "mode": scoring.mode, "examples": len(part)}, place / "values.json")


def _check(written: Written, scoring: Scoring, run: RunOptions, method: str, plain: dict[str, Any]) -> None:
    """Refuse what cannot be used, before any work."""
    if written.out is None and run.path is None and not written.dry_run:
        raise typer.BadParameter("name a folder for the values", param_hint="--out or --run")
    if method in CRITERIA:
        idle = [leaf.flag for leaf in changed(scoring, run, but=NO_GAME)]
        watched = {"--worth-log": written.worth_log, "--log": written.log, "--dry-run": written.dry_run or None}
        idle += [flag for flag, value in {**plain, **watched}.items() if value is not None and value != []]
        if idle:
            raise typer.BadParameter(f"{method} plays no game; drop {', '.join(idle)}", param_hint=idle[0])
    with as_usage_error("--log"):
        for place in written.places:
            check_sink(place)


def _watching(written: Written, run: RunOptions, scoring: Scoring, method: str) -> Any:
    """Who looks on while values are computed; None for a criterion, which is done at once."""
    if method in CRITERIA:
        return nullcontext(None)
    walked = method == "permutation" and scoring.mode == "one-shot"
    follow = walked and concept_of(scoring.concept).label == "shapley"
    return observed_progress(written.places, None if run.shard else run.path, follow=follow)


def _scored(scores: Scores, about: dict[str, Any], written: Path) -> Outcome:
    """What has been found."""
    from shaprune.cli.tables import rich_table, score_rows, skipped_rows, skipped_text

    summary = {
        "worth": scores.worth,
        **about,
        "concept": next(iter(scores.values())).concept,
        "players": scores.players.n,
        "n_evaluations": scores.n_evaluations,
        "seconds": scores.seconds,
        "groups": score_rows(scores),
        "skipped": skipped_rows(scores.players),
        "notes": list(scores.notes),
        "artifacts": {"values": str(written)},
    }
    told = (
        f"{scores.n_evaluations:,} evaluations in {scores.seconds:.1f} s on {about['examples']:,} examples -> {written}"
    )
    return Outcome(summary, (rich_table(scores.table()), skipped_text(scores.players), *scores.notes, told))


def _note(run: Path, given: dict[str, Any]) -> None:
    """Note the command of a run, unless its journal has begun: then it is the first command that counts."""
    if any(run.glob("journal*.sqlite")):
        return
    options = {name: given[name] for name in sorted(given.keys() - NOT_REPEATED) if given[name] is not None}
    kind, _, rest = str(options["data"]).partition(":")
    if kind in FOLDERS and rest:
        options["data"] = f"{kind}:{Path(rest).expanduser().absolute()}"
    paths = [name for name, option in options.items() if isinstance(option, Path)]
    options |= {name: str(options[name].absolute()) for name in paths}
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{run} cannot be made: {error.strerror}", param_hint="--run") from error
    check_replaceable(run / COMMAND)
    write_text(run / COMMAND, json.dumps({**head("command"), "paths": paths, "options": options}, indent=1))


def _cost_outcome(cost: ScoringCost, workers: int) -> Outcome:
    """What a run would cost."""
    from shaprune.cli.tables import rich_table

    rows = [
        {"name": name, "players": c.players, "evaluations": c.evaluations, "seconds": c.seconds, "memory": c.memory}
        for name, c in cost.by_game.items()
    ]
    data = {"evaluations": cost.evaluations, "seconds": cost.seconds, "memory": cost.memory, "groups": rows}
    if cost.evaluations is None or cost.seconds is None:
        told = "the stopping rule decides how many evaluations; give --max-evaluations to know"
    else:
        told = f"{cost.evaluations:,} evaluations, about {cost.seconds:.1f} s"
    told += f", about {cost.memory / 2**20:,.0f} MiB beside what torch itself takes"
    return Outcome(data, (rich_table(cost.table()), told + (f", with {workers} workers" if workers > 1 else "")))

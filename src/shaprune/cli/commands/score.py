"""``shaprune score``: values of every player."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from shaprune.cli.command import Outcome, as_usage_error, command, say
from shaprune.cli.interruption import keeping
from shaprune.cli.options.parse import (
    aggregate_of,
    bytes_of,
    concept_of,
    default_sizes,
    method_of,
    rule_of,
    sizes_of,
    unit_of,
)
from shaprune.cli.options.runs import DryRun, Log, RayAddress, Run, ShardOf, Workers
from shaprune.cli.options.shared import (
    CRITERIA,
    FOLDERS,
    Aggregate,
    Antithetic,
    Cache,
    Concept,
    Data,
    Debug,
    Device,
    Exclude,
    Include,
    Json,
    Layers,
    MaxEvaluations,
    MaxMemory,
    Method,
    Mode,
    Model,
    NegativeFirst,
    OptionalOut,
    Overwrite,
    Precision,
    ScoreExamples,
    Seed,
    Sizes,
    Step,
    Stop,
    Together,
    Unit,
    Weights,
    Worth,
    WorthLog,
)
from shaprune.cli.outputs import check_out
from shaprune.cli.progress import observed_progress
from shaprune.logs.sinks import check_sink
from shaprune.storage.atomic_files import check_replaceable, write_text
from shaprune.storage.schema import head

if TYPE_CHECKING:
    from shaprune.pipeline.cost_estimate import ScoringCost

OPTIONS_WITHOUT_GAME = {  # options of games, as they are where they are not given
    "concept": "shapley",
    "mode": "one-shot",
    "layers": "independent",
    "max_evaluations": None,
    "stop": None,
    "sizes": None,
    "aggregate": "mean",
    "together": False,
    "precision": "float32",
    "worth_log": None,
    "log": None,
    "run": None,
    "workers": 1,
    "ray_address": None,
    "shard": None,
    "dry_run": False,
}
COMMAND = "command.json"  # in the folder of a run: what `shaprune resume` repeats
FILES = ("values.json",)


@command
def score(
    model: Model,
    data: Data,
    out: OptionalOut = None,
    weights: Weights = None,
    worth: Worth = "fidelity",
    method: Method = "permutation",
    concept: Concept = "shapley",
    mode: Mode = "one-shot",
    step: Step = 1,
    negative_first: NegativeFirst = False,
    layers: Layers = "independent",
    max_evaluations: MaxEvaluations = None,
    stop: Stop = None,
    sizes: Sizes = None,
    aggregate: Aggregate = "mean",
    antithetic: Antithetic = False,
    together: Together = False,
    precision: Precision = "float32",
    max_memory: MaxMemory = "1GiB",
    worth_log: WorthLog = None,
    log: Log = None,
    run: Run = None,
    workers: Workers = 1,
    ray_address: RayAddress = None,
    shard: ShardOf = None,
    dry_run: DryRun = False,
    examples: ScoreExamples = 1_000,
    unit: Unit = None,
    include: Include = None,
    exclude: Exclude = None,
    cache: Cache = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> Outcome:
    """Score every channel, neuron or other unit of a trained network; writes values.json into --out or --run.

    Without --sizes, Shapley values look at coalitions that keep at least half of a group.

    Example: shaprune score --model digits --weights demo/dense.safetensors --data digits --out scores
    """
    given = dict(locals())
    if out is None and run is None and not dry_run:
        raise typer.BadParameter("name a folder for the values", param_hint="--out or --run")
    if method in CRITERIA:
        _check_game_options(method, given)
    if shard is not None:
        from shaprune.runs.executed_games import Shard

        with as_usage_error("--shard"):
            Shard.parse(shard)
        if run is None:
            raise typer.BadParameter("a shard leaves its answers in a run; name its folder", param_hint="--run")
    if run is not None or workers > 1 or ray_address is not None:
        from shaprune.runs.session import RunOptions

        with as_usage_error("--run, --shard or --workers"):
            run_options = RunOptions.of(run, workers, ray_address, shard)
            run_options.check(layers=layers, mode=mode, stop=stop, log=worth_log, precision=precision)
    estimator = method_of(method, antithetic=antithetic)
    value = concept_of(concept)
    window = sizes_of(sizes or default_sizes(method, concept, mode))
    units = unit_of(unit)
    how_over_examples = aggregate_of(aggregate)
    rule = rule_of(stop)
    memory = bytes_of(max_memory)
    with as_usage_error("--log"):
        for place in log or []:
            check_sink(place)
    if out is not None:
        check_out(out, FILES, overwrite=overwrite)

    import shaprune as sp
    from shaprune.cli.inputs import device_of, read_data, read_model
    from shaprune.cli.tables import rich_table, score_rows, skipped_rows, skipped_text
    from shaprune.storage.atomic_files import replacing_directory

    where = device_of(device)
    network = read_model(model, weights, where, seed)
    part = read_data(data, cache).held_out.take(examples)
    players = sp.find_players(network, part.inputs[:2].to(where), units, include or None, exclude or None)
    if dry_run or run is not None:
        played: dict[str, Any] = {"mode": mode, "step": step, "max_evaluations": max_evaluations, "stop": rule}
        played |= {"concept": value, "sizes": window, "together": together, "workers": workers}
        played |= {"precision": precision, "max_memory": memory}
        priced = _cost_outcome(
            sp.metrics.expected_cost(network, players, part.batches(), worth, estimator, **played), workers
        )
        if dry_run:
            return priced
        say(f"expected: {priced.shown[-1]}")
    if run is not None:
        _note(run, given)
    say(f"scoring {players.n:,} players in {len(players.groups)} groups on {len(part):,} held-out examples ...")
    follow = value.label == "shapley" and mode == "one-shot" and method == "permutation"
    looking = (
        nullcontext(None) if method in CRITERIA else observed_progress(log or [], None if shard else run, follow=follow)
    )
    with keeping(run, shard, None if worth_log is None else Path(worth_log)), looking as board:
        scores = sp.score(
            network,
            players,
            part.batches(),
            worth,
            estimator,
            mode=mode,
            step=step,
            negative_first=negative_first,
            layers=layers,
            max_evaluations=max_evaluations,
            stop=rule,
            seed=seed,
            concept=value,
            sizes=window,
            aggregate=how_over_examples,
            together=together,
            max_memory=memory,
            precision=cast(Any, precision),
            log=worth_log,
            run=run,
            workers=workers,
            ray_address=ray_address,
            shard=shard,
            progress=None if board is None else False,
            watch=board,
        )
    if shard is not None:
        told = f"shard {shard} of {run} is done; once all are, `shaprune merge {run}` writes the values"
        return Outcome({"shard": shard, "run": str(run)}, (told,))
    if out is not None:
        with replacing_directory(out, files=FILES, overwrite=overwrite) as folder:
            scores.save(folder / "values.json")
    where_to = out if out is not None else run
    assert where_to is not None
    written = where_to / "values.json"
    summary = {
        "worth": scores.worth,
        "method": method,
        "concept": next(iter(scores.values())).concept,
        "mode": mode,
        "examples": len(part),
        "players": players.n,
        "n_evaluations": scores.n_evaluations,
        "seconds": scores.seconds,
        "groups": score_rows(scores),
        "skipped": skipped_rows(players),
        "notes": list(scores.notes),
        "artifacts": {"values": str(written)},
    }
    told = f"{scores.n_evaluations:,} evaluations in {scores.seconds:.1f} s on {len(part):,} examples -> {written}"
    return Outcome(summary, (rich_table(scores.table()), skipped_text(players), *scores.notes, told))


def _check_game_options(criterion: str, given: dict[str, Any]) -> None:
    """Refuse options of games for a criterion, before any work."""
    for name, idle in OPTIONS_WITHOUT_GAME.items():
        if given[name] not in (idle, []):
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(f"{criterion} plays no game; drop {option}", param_hint=option)


def _note(run: Path, given: dict[str, Any]) -> None:
    """Note the command of a run, unless its journal has begun: then it is the first command that counts."""
    if any(run.glob("journal*.sqlite")):
        return
    names = set(given) - {"run", "shard", "dry_run", "as_json", "debug", "overwrite", "out"}
    options = {name: given[name] for name in sorted(names)}
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

"""``shaprune compress``: score, plan, prune, recover and measure in one run that a YAML file describes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shaprune.cli.command import Outcome, as_usage_error, command, say
from shaprune.cli.options.parse import budget_of, shares_of, sizes_of, unit_of
from shaprune.cli.options.shared import (
    UNSET,
    Allocation,
    BatchSize,
    Cache,
    ConfigFile,
    Data,
    Debug,
    Device,
    Exclude,
    HfUniform,
    Include,
    Json,
    Limits,
    MaxEvaluations,
    MaxMemory,
    MaxRemoved,
    Method,
    Metric,
    MinPlayers,
    MinWidth,
    Model,
    OutOfRun,
    Overwrite,
    Precision,
    RecoverOrOwn,
    Rounds,
    RoundTo,
    Schedule,
    ScoreExamples,
    Seed,
    Sizes,
    Unit,
    Weights,
    Worth,
)
from shaprune.cli.outputs import MODEL_FILES, check_out

if TYPE_CHECKING:
    from shaprune.builtin.splits import Split
    from shaprune.planning.budget import Budget

FILES = ("config.yaml", "measurements.json", "plan.json", "values.json", *(f"model/{name}" for name in MODEL_FILES))


@command
def compress(
    config: ConfigFile = None,
    model: Model = UNSET,
    weights: Weights = None,
    data: Data = UNSET,
    limits: Limits = UNSET,
    out: OutOfRun = UNSET,
    worth: Worth = UNSET,
    method: Method = UNSET,
    recover: RecoverOrOwn = UNSET,
    unit: Unit = None,
    include: Include = None,
    exclude: Exclude = None,
    allocation: Allocation = UNSET,
    min_players: MinPlayers = UNSET,
    min_width: MinWidth = UNSET,
    round_to: RoundTo = UNSET,
    max_removed: MaxRemoved = None,
    hf_uniform: HfUniform = UNSET,
    rounds: Rounds = UNSET,
    schedule: Schedule = UNSET,
    metric: Metric = UNSET,
    sizes: Sizes = None,
    max_evaluations: MaxEvaluations = None,
    max_memory: MaxMemory = UNSET,
    precision: Precision = UNSET,
    examples: ScoreExamples = UNSET,
    batch_size: BatchSize = UNSET,
    cache: Cache = None,
    as_json: Json = False,
    seed: Seed = UNSET,
    device: Device = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> Outcome:
    """Make a network smaller in one run: score, plan, prune, recover, measure; all of it from one YAML file.

    Options override the file. Scores and the refit take held-out data (for a floor, half of them: the rest measures
    it), fine-tuning the training part, accuracy the test part. Writes the network (model/), plan.json, values.json,
    measurements.json and config.yaml, the run as it was.

    Example: shaprune compress --config run.yaml --budget macs=0.3 --out small
    """
    given: dict[str, Any] = {
        "model": model,
        "weights": None if weights is None else str(weights),
        "data": data,
        "cache": None if cache is None else str(cache),
        "examples": examples,
        "batch_size": batch_size,
        "out": None if out is None else str(out),
        "device": device,
        "seed": seed,
        "budget": _limits(limits),
        "worth": worth,
        "method": method,
        "recover": _steps(recover),
        "unit": unit_of(unit) if unit else None,
        "include": include or None,
        "exclude": exclude or None,
        "allocation": allocation,
        "min_players": min_players,
        "min_width": min_width,
        "round_to": round_to,
        "max_removed": shares_of(max_removed) if max_removed else None,
        "hf_uniform": hf_uniform or None,
        "rounds": rounds,
        "schedule": schedule,
        "metric": metric,
        "sizes": None if sizes is None else sizes_of(sizes),
        "max_evaluations": max_evaluations,
        "max_memory": max_memory,
        "precision": precision,
    }
    options = {key: value for key, value in given.items() if value is not None}

    from shaprune.pipeline.run_config import RunConfig, read_keys

    with as_usage_error("--config, or an option in its place"):
        run = RunConfig.of({**({} if config is None else read_keys(config)), **options}, str(config or "the options"))
    check_out(Path(run.out), FILES, overwrite=overwrite)

    import shaprune as sp
    from shaprune.builtin.factories import find_function
    from shaprune.cli.inputs import device_of, read_data, read_model, setting_of
    from shaprune.cli.tables import comparison_table
    from shaprune.report.comparison import to_json
    from shaprune.storage.atomic_files import replacing_directory, write_text
    from shaprune.storage.schema import head

    where = device_of(run.device)
    with as_usage_error("recover"):
        steps = run.steps(lambda spec: find_function(spec, what="recovery step"))
    dense = read_model(run.model, None if run.weights is None else Path(run.weights), where, run.seed)
    dataset = read_data(run.data, None if run.cache is None else Path(run.cache))
    part, checks = _parts(dataset.held_out, run.examples, run.budget_limits())
    inputs = dataset.held_out.inputs[: run.batch_size].to(where)
    say(
        f"scoring and recovering on {len(part):,} held-out examples, measuring on {len(dataset.test):,} of the test ..."
    )
    done = sp.compress(
        dense,
        part.batches(),
        run.budget_limits(),
        example_inputs=inputs,
        worth=run.worth,
        method=run.method,
        recover=steps,
        unit=run.unit,
        include=run.include,
        exclude=run.exclude,
        allocation=run.allocation,
        min_players=run.min_players,
        min_width=run.min_width,
        round_to=run.round_to,
        max_removed=run.max_removed,
        hf_uniform=run.hf_uniform,
        rounds=run.rounds,
        schedule=run.schedule,
        metric=run.metric,
        validation=None if checks is None else checks.batches(),
        sizes=run.sizes,
        max_evaluations=run.max_evaluations,
        train=dataset.train.batches(),
        test=dataset.test.batches(),
        max_memory=run.max_memory,
        precision=run.precision,
        seed=run.seed,
    )
    measured = {name: to_json(m) for name, m in done.measurements.items()}
    folder = Path(run.out)
    with replacing_directory(folder, files=FILES, overwrite=overwrite) as beside:
        sp.save(done.model, done.plan, beside / "model")
        done.plan.save(beside / "plan.json")
        done.values.save(beside / "values.json")
        write_text(
            beside / "measurements.json", json.dumps({**head("measurements"), **measured, "seconds": done.seconds})
        )
        write_text(beside / "config.yaml", run.to_yaml())
    artifacts = {name.partition("/")[0].partition(".")[0]: str(folder / name.partition("/")[0]) for name in FILES}
    summary = {
        **measured,
        "budget": done.plan.budget,
        "cost": done.plan.cost,
        "seconds": done.seconds,
        "notes": list(done.values.notes),
        "artifacts": artifacts,
    }
    told = f"All of it took {sum(done.seconds.values()):.1f} s -> {folder}"
    table = comparison_table(done.measurements, setting_of(inputs))
    return Outcome(summary, (done.plan.summary(), table, *done.values.notes, told))


def _parts(held_out: Split, examples: int, budget: Budget) -> tuple[Split, Split | None]:
    """What is scored and recovered on; and for a floor, what it is measured on: at least half of what is held out."""
    if budget.floor is None and budget.drop is None:
        return held_out.take(examples), None
    n = max(1, min(examples, len(held_out) // 2))
    return held_out.take(n), type(held_out)(held_out.inputs[n:], held_out.targets[n:])


def _limits(texts: list[str] | None) -> dict[str, Any] | None:
    if not texts:
        return None
    return {name: limit for name, limit in asdict(budget_of(texts)).items() if limit is not None}


def _steps(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [] if text.strip() == "none" else [step.strip() for step in text.split(",")]

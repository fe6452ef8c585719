"""``shaprune compress``: score, plan, prune, recover and measure in one run that a YAML file describes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from shaprune.cli.command import Outcome, as_usage_error, renaming, say
from shaprune.cli.options.derived import Unset
from shaprune.cli.options.parse import budget_of
from shaprune.cli.options.shared import ConfigFile, Overwrite
from shaprune.cli.outputs import MODEL_FILES, check_out
from shaprune.pipeline.run_config import RunConfig, read_keys

if TYPE_CHECKING:
    from shaprune.pipeline.compress import Compressed

FILES = ("config.yaml", "measurements.json", "plan.json", "values.json", *(f"model/{name}" for name in MODEL_FILES))


@renaming({"sizes": "window", "rounds": "cycles"})
def compress(
    *, config: ConfigFile = None, options: Annotated[dict[str, Any], Unset(RunConfig)], overwrite: Overwrite = False
) -> Outcome:
    """Make a network smaller in one run: score, plan, prune, recover, measure; all of it from one YAML file.

    Options override the file. Scores and the refit take held-out data (for a floor, half of them: the rest measures
    it), fine-tuning the training part, accuracy the test part. Writes the network (model/), plan.json, values.json,
    measurements.json and config.yaml, the run as it was.

    Example: shaprune compress --config run.yaml --budget macs=0.3 --out small
    """
    if "budget" in options:
        limits = asdict(budget_of(options["budget"]))
        options["budget"] = {name: limit for name, limit in limits.items() if limit is not None}
    options = {name: value for name, value in options.items() if value is not False}  # a flag that was not given
    with as_usage_error("--config, or an option in its place"):
        run = RunConfig.of({**({} if config is None else read_keys(config)), **options}, str(config or "the options"))
    check_out(Path(run.out), FILES, overwrite=overwrite)

    import shaprune as sp
    from shaprune.builtin.factories import find_function
    from shaprune.cli.inputs import device_of, parts_of, read_data, read_model, setting_of
    from shaprune.cli.tables import comparison_table
    from shaprune.report.comparison import to_json

    where = device_of(run.device)
    with as_usage_error("recover"):
        steps = run.steps(lambda spec: find_function(spec, what="recovery step"))
    dense = read_model(run.model, None if run.weights is None else Path(run.weights), where, run.seed)
    dataset = read_data(run.data, None if run.cache is None else Path(run.cache), run.preprocessing)
    part, checks = parts_of(dataset.held_out, run.examples, floored=run.budget_limits().floored)
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
        effort=run.effort,
        test=dataset.test.batches(),
        seed=run.seed,
        options=replace(
            run.options,
            train=dataset.train.batches(),
            validation=None if checks is None else checks.batches(),
        ),
    )
    _write(done, run, overwrite=overwrite)
    folder = Path(run.out)
    artifacts = {name.partition("/")[0].partition(".")[0]: str(folder / name.partition("/")[0]) for name in FILES}
    summary = {
        **{name: to_json(m) for name, m in done.measurements.items()},
        "budget": done.plan.budget,
        "cost": done.plan.cost,
        "seconds": done.seconds,
        "recipe": list(done.told()),
        "notes": list(done.values.notes),
        "artifacts": artifacts,
    }
    told = f"All of it took {sum(done.seconds.values()):.1f} s -> {folder}"
    table = comparison_table(done.measurements, setting_of(inputs))
    return Outcome(summary, (done.plan.summary(), table, *done.values.notes, *done.told(), told))


def _write(done: Compressed, run: RunConfig, *, overwrite: bool) -> None:
    """Write what a run has made, and its config."""
    import shaprune as sp
    from shaprune.report.comparison import to_json
    from shaprune.storage.atomic_files import replacing_directory, write_text
    from shaprune.storage.schema import head

    measured = {name: to_json(m) for name, m in done.measurements.items()}
    with replacing_directory(Path(run.out), files=FILES, overwrite=overwrite) as beside:
        sp.save(done.model, done.plan, beside / "model")
        done.plan.save(beside / "plan.json")
        done.values.save(beside / "values.json")
        write_text(
            beside / "measurements.json", json.dumps({**head("measurements"), **measured, "seconds": done.seconds})
        )
        write_text(beside / "config.yaml", run.to_yaml())

"""``shaprune prune``: apply a plan, recover, save."""

from __future__ import annotations

import time

from shaprune.cli.command import Outcome, command, say
from shaprune.cli.options.groups import Machine
from shaprune.cli.options.parse import steps_of
from shaprune.cli.options.shared import (
    BatchSize,
    Cache,
    Data,
    Model,
    Out,
    Overwrite,
    PlanFile,
    Recover,
    RecoverExamples,
    Weights,
)
from shaprune.cli.outputs import MODEL_FILES, check_out
from shaprune.options.groups import TRAINED_STEPS
from shaprune.options.preprocessing import Preprocessing


@command
def prune(
    model: Model,
    plan: PlanFile,
    data: Data,
    out: Out,
    machine: Machine,
    preprocessing: Preprocessing,
    weights: Weights = None,
    recover: Recover = "refit",
    examples: RecoverExamples = 1_000,
    batch_size: BatchSize = 128,
    cache: Cache = None,
    overwrite: Overwrite = False,
) -> Outcome:
    """Cut a network by a plan, win accuracy back, and save it into --out (safetensors and JSON).

    The refit takes held-out data, as `shaprune score` does, fine-tuning the training part.

    Example: shaprune prune --model digits --weights demo/dense.safetensors --plan plan/plan.json --data digits
    --recover refit,finetune --out small
    """
    steps = steps_of(recover)
    check_out(out, MODEL_FILES, overwrite=overwrite)

    import shaprune as sp
    from shaprune.cli.inputs import device_of, parts_of, read_data, read_model, setting_of
    from shaprune.cli.tables import comparison_table
    from shaprune.deploy.measure import compare
    from shaprune.network.layers.open_attention import opened_for
    from shaprune.report.comparison import to_json

    where = device_of(machine.device)
    decided = sp.Plan.load(plan)
    dense = opened_for(read_model(model, weights, where, machine.seed), decided.players.layers)
    dataset = read_data(data, cache, preprocessing)
    inputs = dataset.test.inputs[:batch_size].to(where)
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    raw = small = sp.prune(dense, decided, inputs)
    seconds["prune"] = time.perf_counter() - start
    part, _ = parts_of(dataset.held_out, examples, floored=False)
    for step in steps:
        say(f"recovering: {step} on {len(dataset.train if step in TRAINED_STEPS else part):,} examples ...")
        start = time.perf_counter()
        train = dataset.train.batches()
        small = sp.recover(small, dense, decided, part.batches(), (step,), train=train, seed=machine.seed)
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start
    say(f"measuring on {len(dataset.test):,} test examples ...")
    networks = {"dense": dense, "raw": raw, "pruned": small} if steps else {"dense": dense, "pruned": small}
    measurements = compare(networks, inputs, dataset.test.batches())
    sp.save(small, decided, out, overwrite=overwrite)
    summary = {
        **{name: to_json(m) for name, m in measurements.items()},
        "recovered_by": list(steps),
        "seconds": seconds,
        "artifacts": {"model": str(out)},
    }
    return Outcome(summary, (comparison_table(measurements, setting_of(inputs)), f"-> {out}"))

"""``shaprune evaluate``: accuracy, size and latency, side by side."""

from __future__ import annotations

import json

from shaprune.cli.command import Outcome, command, say
from shaprune.cli.options.groups import Machine
from shaprune.cli.options.shared import (
    BatchSize,
    Cache,
    Compiled,
    Data,
    Model,
    OptionalOut,
    Overwrite,
    Pruned,
    Threads,
    Weights,
)
from shaprune.cli.outputs import check_out
from shaprune.options.preprocessing import Preprocessing

FILES = ("evaluation.json",)


@command
def evaluate(
    model: Model,
    data: Data,
    machine: Machine,
    preprocessing: Preprocessing,
    weights: Weights = None,
    pruned: Pruned = None,
    batch_size: BatchSize = 128,
    threads: Threads = None,
    compiled: Compiled = None,
    cache: Cache = None,
    out: OptionalOut = None,
    overwrite: Overwrite = False,
) -> Outcome:
    """Measure a network, and a pruned one beside it, on the test part of the data; --out keeps evaluation.json.

    Example: shaprune evaluate --model digits --weights demo/dense.safetensors --pruned demo/model --data digits
    """
    if out is not None:
        check_out(out, FILES, overwrite=overwrite)

    import shaprune as sp
    from shaprune.cli.inputs import builder, device_of, read_data, read_model, setting_of
    from shaprune.cli.tables import comparison_table
    from shaprune.deploy.measure import compare
    from shaprune.report.comparison import to_json
    from shaprune.storage.atomic_files import replacing_directory, write_text
    from shaprune.storage.schema import head

    where = device_of(machine.device)
    networks = {"dense": read_model(model, weights, where, machine.seed)}
    if pruned is not None:
        networks["pruned"] = sp.load(pruned, build=builder(model), device=where)
    test = read_data(data, cache, preprocessing).test
    inputs = test.inputs[:batch_size].to(where)
    say(f"measuring on {len(test):,} test examples ...")
    measurements = compare(networks, inputs, test.batches(), threads=threads, compiled=compiled)
    summary = {**{name: to_json(m) for name, m in measurements.items()}, "examples": len(test)}
    shown = [comparison_table(measurements, setting_of(inputs, threads, compiled))]
    if out is None:
        return Outcome(summary, tuple(shown))
    with replacing_directory(out, files=FILES, overwrite=overwrite) as folder:
        write_text(folder / "evaluation.json", json.dumps({**head("evaluation"), **summary}))
    summary["artifacts"] = {"evaluation": str(out / "evaluation.json")}
    return Outcome(summary, (*shown, f"-> {out / 'evaluation.json'}"))

"""``shaprune players``: list what can leave a network and what cannot, without scoring."""

from __future__ import annotations

import json
import time

import typer

from shaprune.cli.command import Outcome, command, say
from shaprune.cli.options.groups import Machine
from shaprune.cli.options.parse import shape_of, size_of
from shaprune.cli.options.shared import (
    Cache,
    MaxMemory,
    MaxSeconds,
    Model,
    OptionalData,
    Overwrite,
    PlayersOut,
    Shape,
    Weights,
)
from shaprune.cli.outputs import check_out, check_out_file
from shaprune.options.groups import Units
from shaprune.options.preprocessing import Preprocessing
from shaprune.storage.atomic_files import replacing_directory, write_text
from shaprune.storage.schema import head

FILES = ("players.json",)


@command
def players(
    model: Model,
    units: Units,
    machine: Machine,
    preprocessing: Preprocessing,
    weights: Weights = None,
    data: OptionalData = None,
    shape: Shape = None,
    max_seconds: MaxSeconds = 60,
    max_memory: MaxMemory = "2GiB",
    out: PlayersOut = None,
    cache: Cache = None,
    overwrite: Overwrite = False,
) -> Outcome:
    """Say what can leave a network, what leaves with it, what it costs, and what must stay and why.

    A dry run: nothing is scored or cut. The network is run on a few examples of the data, or on drawn ones of a shape.

    Example: shaprune players --model digits --shape 1x8x8
    """
    if bool(data) == bool(shape):
        raise typer.BadParameter("give the data, or else the shape of one example", param_hint="--data or --shape")
    memory = size_of(max_memory)
    for text in shape or []:
        shape_of(text)
    if out is not None and out.suffix == ".json":
        check_out_file(out, overwrite=overwrite)
    elif out is not None:
        check_out(out, FILES, overwrite=overwrite)

    import shaprune as sp
    from shaprune.cli.inputs import device_of, drawn_inputs, read_data, read_model
    from shaprune.cli.tables import group_rows, skipped_rows
    from shaprune.network.discovery.few_examples import FOLLOWED_EXAMPLES
    from shaprune.network.layers.open_attention import opened_where_same

    where = device_of(machine.device)
    network = read_model(model, weights, where, machine.seed, untrained=True)
    drawn = drawn_inputs(shape or [], where, machine.seed, FOLLOWED_EXAMPLES)
    inputs = (
        drawn
        if data is None
        else (read_data(data, cache, preprocessing).held_out.inputs[:FOLLOWED_EXAMPLES].to(where),)
    )
    say("following every channel through the network ...")
    start = time.perf_counter()
    network = opened_where_same(network, inputs)
    found = sp.find_players(network, inputs, **vars(units), max_seconds=max_seconds, max_memory=memory)
    seconds = time.perf_counter() - start
    summary = {
        **head("players"),
        "players": found.n,
        "dense": {"macs": found.model_macs, "params": found.model_params},
        "groups": group_rows(found),
        "skipped": skipped_rows(found),
        "seconds": seconds,
    }
    told = f"found in {seconds:.1f} s"
    if out is None:
        return Outcome(summary, (found.summary(), told))
    file = out if out.suffix == ".json" else out / "players.json"
    text = json.dumps(summary)
    if file is out:
        write_text(out, text)
    else:
        with replacing_directory(out, files=FILES, overwrite=overwrite) as folder:
            write_text(folder / "players.json", text)
    summary["artifacts"] = {"players": str(file)}
    return Outcome(summary, (found.summary(), f"{told} -> {file}"))

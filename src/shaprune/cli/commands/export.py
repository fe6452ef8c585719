"""``shaprune export``: a network as a file for other runtimes, compared with the network."""

from __future__ import annotations

import typer

from shaprune.cli.command import Outcome, as_usage_error, command
from shaprune.cli.options.parse import shape_of
from shaprune.cli.options.shared import (
    Device,
    ExportOut,
    FixedBatch,
    Model,
    OptionalData,
    Overwrite,
    Pruned,
    Seed,
    Shape,
    Weights,
)
from shaprune.cli.outputs import check_out_file
from shaprune.errors import InputError
from shaprune.options.preprocessing import Preprocessing


@command
def export(
    model: Model,
    out: ExportOut,
    preprocessing: Preprocessing,
    weights: Weights = None,
    pruned: Pruned = None,
    data: OptionalData = None,
    shape: Shape = None,
    fixed_batch: FixedBatch = False,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> Outcome:
    """Write a pruned network (--pruned), or a dense one (--weights), as ONNX or for torch.export.

    The file is read back, and its outputs are compared with the network's (for ONNX this needs onnxruntime).

    Example: shaprune export --model digits --pruned small/model --shape 1x8x8 --out small.onnx
    """
    if bool(data) == bool(shape):
        raise typer.BadParameter("give the data, or else the shape of one example", param_hint="--data or --shape")
    if pruned is not None and weights is not None:
        raise typer.BadParameter("the pruned network has its own; leave --weights out", param_hint="--weights")
    for text in shape or []:
        shape_of(text)
    with as_usage_error("--out"):
        if out.suffix not in (".onnx", ".pt2"):
            raise InputError(f"{out.name!r} has no known ending; name it *.onnx or *.pt2")
    check_out_file(out, overwrite=overwrite)

    import shaprune as sp
    from shaprune.cli.inputs import builder, device_of, drawn_inputs, read_data, read_model

    where = device_of(device)
    if pruned is None:
        network = read_model(model, weights, where, seed)
    else:
        network = sp.load(pruned, build=builder(model), device=where)
    inputs = (
        drawn_inputs(shape or [], where, seed)
        if data is None
        else read_data(data, preprocessing=preprocessing).held_out.inputs[:2].to(where)
    )
    done = sp.export(network, inputs, out, fixed_batch=fixed_batch, overwrite=overwrite)
    agreed = "not compared" if done.difference is None else f"outputs agree to {done.difference:.1e} (relative)"
    summary = {"bytes": done.bytes, "difference": done.difference, "artifacts": {"exported": str(out)}}
    return Outcome(summary, (f"{done.bytes:,} bytes, {agreed} -> {out}",))

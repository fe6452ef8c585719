"""``shaprune report``: one HTML file from saved values."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from shaprune.atomic import new_directory, write_text
from shaprune.cli.command import Outcome, command, say
from shaprune.cli.options import (
    BatchSize,
    Cache,
    CurveExamples,
    Debug,
    Device,
    Json,
    OptionalData,
    OptionalModel,
    OptionalPlanFile,
    Overwrite,
    Pruned,
    ReportOut,
    Seed,
    ValuesFile,
    Weights,
)
from shaprune.cli.outputs import check_out, check_out_file

if TYPE_CHECKING:
    from torch import nn

    from shaprune.bench.splits import Split
    from shaprune.report.page import Content


@command
def report(
    values: ValuesFile,
    out: ReportOut,
    plan: OptionalPlanFile = None,
    model: OptionalModel = None,
    weights: Weights = None,
    data: OptionalData = None,
    pruned: Pruned = None,
    examples: CurveExamples = 1_000,
    batch_size: BatchSize = 128,
    cache: Cache = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> Outcome:
    """Draw saved values as one HTML file; with a plan, the cut; with the network and data, removal curves.

    Example: shaprune report scores/values.json --plan plan/plan.json --out report.html
    """
    file = out if out.suffix == ".html" else out / "report.html"
    if file is out:
        check_out_file(out, overwrite=overwrite)
    else:
        check_out(out, ["report.html"], overwrite=overwrite)
    if (model is None) != (data is None):
        raise typer.BadParameter("removal curves need both --model and --data", param_hint="--model")
    for option, given in (("--weights", weights), ("--pruned", pruned)):
        if given is not None and model is None:
            raise typer.BadParameter("only together with --model and --data", param_hint=option)

    from shaprune.planning import Plan
    from shaprune.report.page import Content, page
    from shaprune.scores import Scores

    title = "Pruning report" if model is None or data is None else f"{model} on {data.partition(':')[0]}"
    content = Content(title, Scores.load(values), None if plan is None else Plan.load(plan))
    if model is not None and data is not None:
        from shaprune.cli.inputs import builder, device_of, read_data, read_model

        where = device_of(device)
        networks = {"dense": read_model(model, weights, where, seed)}
        if pruned is not None:
            import shaprune as sp

            networks["pruned"] = sp.load(pruned, build=builder(model), device=where)
        content = _measured(content, networks, read_data(data, cache).test, examples, batch_size, seed)
    html = page(content)
    if file is out:
        write_text(out, html)
    else:
        with new_directory(out, overwrite=overwrite) as folder:
            write_text(folder / "report.html", html)
    return Outcome({"artifacts": {"report": str(file)}, "curves": content.curves is not None}, (f"-> {file}",))


def _measured(
    content: Content, networks: dict[str, nn.Module], test: Split, examples: int, batch_size: int, seed: int
) -> Content:
    """The content with removal curves, and with a measured comparison where there is a pruned network."""
    from shaprune.cli.inputs import setting_of
    from shaprune.measure import compare
    from shaprune.network.borrow import device_of
    from shaprune.report.curves import removal_curves

    players, dense = content.scores.players, networks["dense"]
    say(f"measuring removal curves on {min(examples, len(test)):,} test examples ...")
    curves = removal_curves(dense, players, content.scores, test.take(examples).batches(), seed=seed)
    if len(networks) == 1:
        return replace(content, curves=curves)
    inputs = test.inputs[:batch_size].to(device_of(dense))
    measurements = compare(networks, inputs, test.batches())
    return replace(content, curves=curves, measurements=measurements, setting=setting_of(inputs))

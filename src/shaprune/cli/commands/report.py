"""``shaprune report``: one HTML file from saved values."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from shaprune.cli.command import Outcome, as_usage_error, command, say
from shaprune.cli.options.parse import shares_of
from shaprune.cli.options.report import (
    Frontiers,
    Images,
    OptionalReportOut,
    Port,
    RedundancyOf,
    RunOrValues,
    Static,
    Watch,
)
from shaprune.cli.options.shared import (
    BatchSize,
    Cache,
    CurveExamples,
    CurvesFile,
    Debug,
    Device,
    HfUniform,
    Json,
    MaxRemoved,
    MinPlayers,
    MinWidth,
    OptionalData,
    OptionalModel,
    OptionalPlanFile,
    Overwrite,
    Pruned,
    RoundTo,
    Seed,
    Spared,
    Weights,
)
from shaprune.cli.outputs import check_out, check_out_file
from shaprune.storage.atomic_files import replacing_directory, write_text

if TYPE_CHECKING:
    from torch import nn

    from shaprune.builtin.splits import Split
    from shaprune.report.content import Content

FILES = ("report.html",)


@command
def report(
    run: RunOrValues,
    out: OptionalReportOut = None,
    watch: Watch = False,
    port: Port = 8711,
    plan: OptionalPlanFile = None,
    curves: CurvesFile = None,
    frontiers: Frontiers = None,
    model: OptionalModel = None,
    weights: Weights = None,
    data: OptionalData = None,
    pruned: Pruned = None,
    images: Images = None,
    redundancy: RedundancyOf = None,
    min_players: MinPlayers = 1,
    min_width: MinWidth = 1,
    round_to: RoundTo = 1,
    max_removed: MaxRemoved = None,
    exclude: Spared = None,
    hf_uniform: HfUniform = False,
    static: Static = False,
    examples: CurveExamples = 1_000,
    batch_size: BatchSize = 128,
    cache: Cache = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> Outcome:
    """Draw a run as one HTML file, in which a slider shows what a budget removes, and saves its plan.json.

    With a plan: where it cuts. With --curves: the predicted quality of every budget. With the network and data: how
    accuracy falls as players leave, and what the network sees. The limits (--min-width, ...) are those of the slider's
    plans.

    Example: shaprune report scores/values.json --plan plan/plan.json --out report.html
    """
    if watch:
        given = {"--plan": plan, "--curves": curves, "--frontier": frontiers, "--model": model, "--data": data}
        given |= {"--out": out, "--images": images, "--redundancy": redundancy, "--pruned": pruned}
        refused = [option for option, argument in given.items() if argument is not None]
        if refused:
            why = "--watch serves what the folder of the run holds, and writes no file"
            raise typer.BadParameter(why, param_hint=refused[0])
        return _served(run, port, static=static)
    if out is None:
        raise typer.BadParameter("name a folder or a file ending in .html", param_hint="--out")
    file = out if out.suffix == ".html" else out / "report.html"
    if file is out:
        check_out_file(out, overwrite=overwrite)
    else:
        check_out(out, FILES, overwrite=overwrite)
    if (model is None) != (data is None):
        raise typer.BadParameter("removal curves need both --model and --data", param_hint="--model")
    for option, argument in (
        ("--weights", weights),
        ("--pruned", pruned),
        ("--images", images),
        ("--redundancy", redundancy or None),
    ):
        if argument is not None and model is None:
            raise typer.BadParameter("only together with --model and --data", param_hint=option)

    from shaprune.planning.limits import Limits
    from shaprune.planning.plan import Plan
    from shaprune.planning.sensitivity_curves import Sensitivity
    from shaprune.report.content import Content, Evidence
    from shaprune.report.plotly_bundle import has_plotly
    from shaprune.report.render import render_report
    from shaprune.report.run_files import read_named, read_run

    shares = 1.0 if not max_removed else shares_of(max_removed)
    within = Limits(min_players, min_width, round_to, shares, exclude or (), hf_uniform)
    only = [
        name
        for name, argument in (
            ("--curves", curves),
            ("--frontier", frontiers),
            ("--images", images),
            ("--redundancy", redundancy),
            ("a limit on the slider's plans", None if within == Limits() else within),
        )
        if argument
    ]
    if only and (static or not has_plotly()):
        why = "--static has no place for it" if static else "it needs plotly: pip install 'shaprune[plotly]'"
        raise typer.BadParameter(why, param_hint=only[0])

    read = read_run(run)
    title = "Pruning report" if model is None or data is None else f"{model} on {data.partition(':')[0]}"
    decided = read.plan if plan is None else read_named(plan, Plan.load)
    content = Content(title, read.scores, decided, None, read.measurements, read.setting, read.seconds)
    sensitivity = read.sensitivity if curves is None else read_named(curves, Sensitivity.load)
    found = {} if read.frontier is None else {"this run": read.frontier}
    evidence = Evidence(sensitivity, {**found, **_frontiers(frontiers or [])}, within=within)
    if model is not None and data is not None:
        from shaprune.cli.inputs import builder, device_of, read_data, read_model

        where = device_of(device)
        networks = {"dense": read_model(model, weights, where, seed)}
        if pruned is not None:
            import shaprune as sp

            networks["pruned"] = sp.load(pruned, build=builder(model), device=where)
        dataset = read_data(data, cache)
        if images is not None or redundancy:
            from shaprune.cli.evidence import gather_evidence

            evidence = gather_evidence(
                evidence, read.scores, networks["dense"], data, dataset, images, redundancy or [], examples, seed
            )
        content = _measured(content, networks, dataset.test, examples, batch_size, seed)
    html = render_report(content, evidence, static=static, say=say)
    if file is out:
        write_text(out, html)
    else:
        with replacing_directory(out, files=FILES, overwrite=overwrite) as folder:
            write_text(folder / "report.html", html)
    return Outcome({"artifacts": {"report": str(file)}, "curves": content.curves is not None}, (f"-> {file}",))


def _served(run: Path, port: int, *, static: bool) -> Outcome:
    """Serve a page about a run until Ctrl-C."""
    from shaprune.report.content import Content, Evidence
    from shaprune.report.live_page import HOST, Page, server
    from shaprune.report.render import render_report
    from shaprune.report.run_files import read_run

    if not run.is_dir():
        raise typer.BadParameter("--watch needs the folder of a run", param_hint="RUN")

    def drawn() -> str:
        read = read_run(run)
        content = Content("Pruning report", read.scores, read.plan, None, read.measurements, read.setting, read.seconds)
        frontiers = {} if read.frontier is None else {"this run": read.frontier}
        return render_report(content, Evidence(read.sensitivity, frontiers), static=static, say=say)

    with as_usage_error("--port"):
        serving = server(Page(run, drawn), port)
    url = f"http://{HOST}:{serving.server_address[1]}/"
    say(f"{url} (Ctrl-C ends)")
    with serving, suppress(KeyboardInterrupt):
        serving.serve_forever()
    return Outcome({"url": url}, ())


def _frontiers(texts: list[str]) -> dict[str, dict[str, object]]:
    """Frontiers by name; one without a name is called after its folder."""
    from shaprune.report.run_files import read_frontier

    found = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        path = Path(rest if equals else text)
        name = name if equals else path.resolve().parent.name
        with as_usage_error("--frontier"):
            if name in found:
                raise typer.BadParameter(f"two are called {name!r}; name them: NAME=FILE", param_hint="--frontier")
            found[name] = read_frontier(path)
    return found


def _measured(
    content: Content, networks: dict[str, nn.Module], test: Split, examples: int, batch_size: int, seed: int
) -> Content:
    """The content with removal curves, and with a measured comparison where there is a pruned network."""
    from shaprune.cli.inputs import setting_of
    from shaprune.deploy.measure import compare
    from shaprune.network.borrow import device_of
    from shaprune.report.removal_curves import removal_curves

    players, dense = content.scores.players, networks["dense"]
    say(f"measuring removal curves on {min(examples, len(test)):,} test examples ...")
    curves = removal_curves(dense, players, content.scores, test.take(examples).batches(), seed=seed)
    if len(networks) == 1:
        return replace(content, curves=curves)
    inputs = test.inputs[:batch_size].to(device_of(dense))
    measurements = compare(networks, inputs, test.batches())
    return replace(content, curves=curves, measurements=measurements, setting=setting_of(inputs))

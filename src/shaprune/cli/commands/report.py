"""``shaprune report``: one HTML file from saved values."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shaprune.cli.command import Outcome, as_usage_error, renaming, say
from shaprune.cli.options.groups import Page, Shown
from shaprune.cli.options.report import Frontiers, Images, OptionalReportOut, RedundancyOf, RunOrValues
from shaprune.cli.options.shared import CurvesFile, OptionalPlanFile, Overwrite
from shaprune.cli.outputs import check_out, check_out_file
from shaprune.planning.limits import Limits
from shaprune.storage.atomic_files import replacing_directory, write_text

if TYPE_CHECKING:
    from shaprune.report.content import Content, Evidence

FILES = ("report.html",)


@renaming({"exclude": "keep"})
def report(
    run: RunOrValues,
    page: Page,
    limits: Limits,
    network: Shown,
    out: OptionalReportOut = None,
    plan: OptionalPlanFile = None,
    curves: CurvesFile = None,
    frontiers: Frontiers = None,
    images: Images = None,
    redundancy: RedundancyOf = None,
    overwrite: Overwrite = False,
) -> Outcome:
    """Draw a run as one HTML file, in which a slider shows what a budget removes, and saves its plan.json.

    With a plan: where it cuts. With --curves: the predicted quality of every budget. With the network and data: how
    accuracy falls as players leave, and what the network sees. The limits (--min-width, ...) are those of the slider's
    plans.

    Example: shaprune report scores/values.json --plan plan/plan.json --out report.html
    """
    seen = {"--images": images, "--redundancy": redundancy or None}
    drawn = {"--curves": curves, "--frontier": frontiers or None, **seen}
    if page.watch:
        given = {"--plan": plan, "--model": network.model, "--data": network.data, "--out": out, **drawn}
        refused = [option for option, argument in {**given, "--pruned": network.pruned}.items() if argument is not None]
        if refused:
            why = "--watch serves what the folder of the run holds, and writes no file"
            raise typer.BadParameter(why, param_hint=refused[0])
        return _served(run, page.port, static=page.static)
    file = _file_of(out, overwrite=overwrite)
    _check(network, seen, {**drawn, "a limit on the slider's plans": None if limits == Limits() else limits}, page)

    from shaprune.report.render import render_report

    content, evidence = _gathered(run, plan, curves, frontiers or [], network, limits)
    if network.model is not None:
        content, evidence = _measured(content, evidence, network, images, redundancy or [])
    html = render_report(content, evidence, static=page.static, say=say)
    if file == out:
        write_text(file, html)
    else:
        with replacing_directory(file.parent, files=FILES, overwrite=overwrite) as folder:
            write_text(folder / file.name, html)
    return Outcome({"artifacts": {"report": str(file)}, "curves": content.curves is not None}, (f"-> {file}",))


def _file_of(out: Path | None, *, overwrite: bool) -> Path:
    """The file to write, refused where it may not be."""
    if out is None:
        raise typer.BadParameter("name a folder or a file ending in .html", param_hint="--out")
    if out.suffix == ".html":
        check_out_file(out, overwrite=overwrite)
        return out
    check_out(out, FILES, overwrite=overwrite)
    return out / FILES[0]


def _check(network: Shown, seen: dict[str, Any], drawn: dict[str, Any], page: Page) -> None:
    """Refuse what does not go together."""
    from shaprune.report.plotly_bundle import has_plotly

    if (network.model is None) != (network.data is None):
        raise typer.BadParameter("removal curves need both --model and --data", param_hint="--model")
    for option, argument in {"--weights": network.weights, "--pruned": network.pruned, **seen}.items():
        if argument is not None and network.model is None:
            raise typer.BadParameter("only together with --model and --data", param_hint=option)
    only = [name for name, argument in drawn.items() if argument is not None]
    if only and (page.static or not has_plotly()):
        why = "--static has no place for it" if page.static else "it needs plotly: pip install 'shaprune[plotly]'"
        raise typer.BadParameter(why, param_hint=only[0])


def _gathered(
    run: Path, plan: Path | None, curves: Path | None, frontiers: list[str], network: Shown, limits: Limits
) -> tuple[Content, Evidence]:
    """What the files say."""
    from shaprune.planning.plan import Plan
    from shaprune.planning.sensitivity_curves import Sensitivity
    from shaprune.report.content import Content, Evidence
    from shaprune.report.run_files import read_named, read_run

    read, data = read_run(run), network.data
    title = "Pruning report" if data is None else f"{network.model} on {data.partition(':')[0]}"
    decided = read.plan if plan is None else read_named(plan, Plan.load)
    content = Content(title, read.scores, decided, None, read.measurements, read.setting, read.seconds)
    sensitivity = read.sensitivity if curves is None else read_named(curves, Sensitivity.load)
    found = {} if read.frontier is None else {"this run": read.frontier}
    return content, Evidence(sensitivity, {**found, **_frontiers(frontiers)}, within=limits)


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
    content: Content, evidence: Evidence, options: Shown, images: str | None, redundancy: list[str]
) -> tuple[Content, Evidence]:
    """The content with removal curves, and a measured comparison where there is a pruned network; what it sees."""
    import shaprune as sp
    from shaprune.cli.inputs import builder, device_of, read_data, read_model, setting_of
    from shaprune.deploy.measure import compare
    from shaprune.network.layers.open_attention import opened_for
    from shaprune.report.removal_curves import removal_curves

    assert options.model is not None
    assert options.data is not None
    where, seed = device_of(options.device), options.seed
    dense = opened_for(read_model(options.model, options.weights, where, seed), content.scores.players.layers)
    networks = {"dense": dense}
    if options.pruned is not None:
        networks["pruned"] = sp.load(options.pruned, build=builder(options.model), device=where)
    dataset = read_data(options.data, options.cache, options.preprocessing)
    test, examples = dataset.test, options.examples
    if images is not None or redundancy:
        from shaprune.cli.evidence import gather_evidence

        scores = content.scores
        evidence = gather_evidence(evidence, scores, dense, dataset, images, redundancy, examples, seed)
    say(f"measuring removal curves on {min(examples, len(test)):,} test examples ...")
    curves = removal_curves(dense, content.scores.players, content.scores, test.take(examples).batches(), seed=seed)
    content = replace(content, curves=curves)
    if len(networks) > 1:
        inputs = test.inputs[: options.batch_size].to(where)
        measurements = compare(networks, inputs, test.batches())
        content = replace(content, measurements=measurements, setting=setting_of(inputs))
    return content, evidence

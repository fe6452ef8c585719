"""``shaprune sensitivity``: measured loss of each group along its ranking."""

from __future__ import annotations

from shaprune.cli.command import Outcome, command, say
from shaprune.cli.options.groups import Source
from shaprune.cli.options.shared import Out, Overwrite, Points, Refitted, ValuesFile, Worth
from shaprune.cli.outputs import check_out

FILES = ("curves.json", "curves.svg")


@command
def sensitivity(
    values: ValuesFile,
    source: Source,
    out: Out,
    worth: Worth = "fidelity",
    points: Points = 16,
    refit: Refitted = False,
    overwrite: Overwrite = False,
) -> Outcome:
    """Measure what each group loses as its players leave, the least valuable first; writes curves.json into --out.

    The curves decide a plan with `shaprune plan --allocation curves --curves curves.json`.

    Example: shaprune sensitivity scores/values.json --model digits --weights demo/dense.safetensors --data digits
    --out curves
    """
    check_out(out, FILES, overwrite=overwrite)

    import shaprune as sp
    from shaprune.cli.inputs import device_of, read_data, read_model
    from shaprune.network.layers.open_attention import opened_for
    from shaprune.report.figures.sweep import sensitivity_figure
    from shaprune.storage.atomic_files import replacing_directory, write_text

    where = device_of(source.device)
    scores = sp.Scores.load(values)
    network = read_model(source.model, source.weights, where, source.seed)
    network = opened_for(network, scores.players.layers)
    part = read_data(source.data, source.cache, source.preprocessing).held_out.take(source.examples)
    say(f"measuring {len(scores.players.groups)} groups on {len(part):,} held-out examples ...")
    found = sp.sensitivity(network, scores.players, scores, part.batches(), worth, points=points, refit=refit)
    with replacing_directory(out, files=FILES, overwrite=overwrite) as folder:
        found.save(folder / "curves.json")
        write_text(folder / "curves.svg", sensitivity_figure(found, standalone=True))
    written = {"curves": str(out / "curves.json"), "figure": str(out / "curves.svg")}
    return Outcome({**found.to_json(), "artifacts": written}, (found.summary(), f"-> {written['curves']}"))

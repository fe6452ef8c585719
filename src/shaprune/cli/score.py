"""``shaprune score``: what every player contributes."""

from __future__ import annotations

from shaprune.cli.command import Outcome, command, say
from shaprune.cli.options import (
    Aggregate,
    Antithetic,
    Cache,
    Concept,
    Data,
    Debug,
    Device,
    Exclude,
    Include,
    Json,
    Layers,
    Log,
    MaxEvaluations,
    Method,
    Mode,
    Model,
    NegativeFirst,
    Out,
    Overwrite,
    ScoreExamples,
    Seed,
    Sizes,
    Step,
    Stop,
    Together,
    Unit,
    Weights,
    Worth,
)
from shaprune.cli.outputs import check_out
from shaprune.cli.parse import aggregate_of, concept_of, default_sizes, method_of, rule_of, sizes_of, unit_of


@command
def score(
    model: Model,
    data: Data,
    out: Out,
    weights: Weights = None,
    worth: Worth = "fidelity",
    method: Method = "permutation",
    concept: Concept = "shapley",
    mode: Mode = "one-shot",
    step: Step = 1,
    negative_first: NegativeFirst = False,
    layers: Layers = "independent",
    max_evaluations: MaxEvaluations = None,
    stop: Stop = None,
    sizes: Sizes = None,
    aggregate: Aggregate = "mean",
    antithetic: Antithetic = False,
    together: Together = False,
    log: Log = None,
    examples: ScoreExamples = 1_000,
    unit: Unit = None,
    include: Include = None,
    exclude: Exclude = None,
    cache: Cache = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> Outcome:
    """Score every channel, neuron or other unit of a trained network; writes values.json into --out.

    Without --sizes, Shapley values look at coalitions that keep at least half of a group.

    Example: shaprune score --model digits --weights demo/dense.safetensors --data digits --out scores
    """
    estimator = method_of(method, antithetic=antithetic)
    value = concept_of(concept)
    window = sizes_of(sizes or default_sizes(method, concept, mode))
    units = unit_of(unit)
    how_over_examples = aggregate_of(aggregate)
    rule = rule_of(stop)
    check_out(out, ["values.json"], overwrite=overwrite)

    import shaprune as sp
    from shaprune.atomic import new_directory
    from shaprune.cli.inputs import device_of, read_data, read_model
    from shaprune.cli.tables import score_rows, scores_table, skipped_rows, skipped_text

    where = device_of(device)
    network = read_model(model, weights, where, seed)
    part = read_data(data, cache).held_out.take(examples)
    players = sp.find_players(network, part.inputs[:2].to(where), units, include or None, exclude or None)
    say(f"scoring {players.n:,} players in {len(players.groups)} groups on {len(part):,} held-out examples ...")
    scores = sp.score(
        network,
        players,
        part.batches(),
        worth,
        estimator,
        mode=mode,
        step=step,
        negative_first=negative_first,
        layers=layers,
        max_evaluations=max_evaluations,
        stop=rule,
        seed=seed,
        concept=value,
        sizes=window,
        aggregate=how_over_examples,
        together=together,
        log=log,
    )
    with new_directory(out, overwrite=overwrite) as folder:
        scores.save(folder / "values.json")
    written = out / "values.json"
    summary = {
        "worth": scores.worth,
        "method": method,
        "concept": next(iter(scores.values())).concept,
        "mode": mode,
        "examples": len(part),
        "players": players.n,
        "n_evaluations": scores.n_evaluations,
        "seconds": scores.seconds,
        "groups": score_rows(scores),
        "skipped": skipped_rows(players),
        "notes": list(scores.notes),
        "artifacts": {"values": str(written)},
    }
    told = f"{scores.n_evaluations:,} evaluations in {scores.seconds:.1f} s on {len(part):,} examples -> {written}"
    return Outcome(summary, (scores_table(scores), skipped_text(players), told))

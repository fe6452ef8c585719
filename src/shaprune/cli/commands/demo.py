"""``shaprune demo``: everything at once, on real data."""

from __future__ import annotations

from pathlib import Path

from shaprune.builtin.demo_recipes import choose_architecture
from shaprune.cli.command import Outcome, as_usage_error, command, say
from shaprune.cli.options.parse import budget_of
from shaprune.cli.options.shared import Architecture, Budgets, DemoData, DemoOut, Device, Seed


@command
def demo(
    data: DemoData = "digits",
    architecture: Architecture = None,
    budget: Budgets = ["macs=0.5"],  # noqa: B006  # typer copies it
    out: DemoOut = Path("demo"),
    seed: Seed = 0,
    device: Device = None,
) -> Outcome:
    """Train a small CNN on handwritten digits, prune half of it, and show what was gained and lost.

    Writes report.html, plan.json, values.json, curves.json, dense.safetensors and the pruned network into --out. An
    earlier demo in that folder is replaced; a folder with anything else in it is refused.

    Example: shaprune demo --data mnist:data/mnist --arch lenet5 --out demo-mnist
    """
    wanted = budget_of(budget)
    with as_usage_error("--data"):
        choose_architecture(data, None)
    with as_usage_error("--arch"):
        choose_architecture(data, architecture)

    from shaprune.cli.demo_run import check_replaceable, run_demo
    from shaprune.cli.inputs import device_of
    from shaprune.cli.tables import comparison_table

    with as_usage_error("--out"):
        check_replaceable(out)
    done = run_demo(data, architecture, out, budget=wanted, seed=seed, device=device_of(device), say=say)
    shown = {name: done.measurements[name] for name in ("dense", "pruned")}
    raw = done.measurements["raw"].accuracy
    return Outcome(
        done.to_json(),
        (
            comparison_table(shown, done.setting),
            f"Right after surgery, before the refit, the accuracy was {raw:.2%}. "
            f"All of it took {sum(done.seconds.values()):.1f} s.",
            f"Open {done.artifacts['report']}",
        ),
    )

"""The command line: the demo end to end, the follow-up commands, wrong usage, failures, interruptions."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from shaprune import Plan, Scores
from shaprune.builtin.models import build_model
from shaprune.cli.app import app
from shaprune.cli.demo_run import ARTIFACTS, check_replaceable
from shaprune.cli.options import shared
from shaprune.criteria.registry import CRITERIA
from shaprune.deploy.save import MANIFEST, WEIGHTS
from shaprune.errors import InputError
from shaprune.network.discovery.unit_filters import CHANNEL_UNITS
from shaprune.network.game.worths import WORTHS
from shaprune.network.precision import RowPrecision
from shaprune.network.removal.player_kinds import KINDS
from shaprune.options import groups as options
from shaprune.options.fields import help_of, leaves
from shaprune.pipeline.run_config import RunConfig
from shaprune.planning.limits import Limits
from shaprune.planning.resources import RESOURCES
from shaprune.planning.sensitivity_curves import Sensitivity
from shaprune.recovery.steps import STEPS
from shaprune.report.plotly_bundle import has_plotly
from shaprune.runs.session import RunOptions
from shaprune.storage.own_files import GENERATOR
from shaprune.storage.schema import head
from shaprune.values.aggregation import AGGREGATES
from shaprune.values.concepts import CONCEPTS
from shaprune.values.estimate import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

COMMANDS = ["demo", "compress", "players", "score", "sensitivity", "plan", "prune", "evaluate", "export", "report"]
COMMANDS += ["resume", "runs", "merge", "export-values"]
SHAPRUNE = [sys.executable, "-c", "from shaprune.cli import main; main()"]
# One thread: tests share the machine. The handler: a shell may start pytest with Ctrl-C ignored.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
INTERRUPTIBLE = """
import signal, sys
from dataclasses import replace
from shaprune.builtin.demo_recipes import RECIPES
from shaprune.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
if int(sys.argv.pop(1)):  # no epoch more than it takes to come to the scoring
    RECIPES["digits"] = replace(RECIPES["digits"], epochs=1)
main()
"""


def run(*arguments: object, code: int = 0) -> Result:
    """Run a command in this process."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="shaprune")
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def told(result: Result) -> str:
    """What stderr says, without boxes and line breaks."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", result.stderr)


def loaded(*arguments: object) -> Any:
    """The one JSON object that a command prints."""
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One real run of the demo: its folder and its JSON object."""
    folder = tmp_path_factory.mktemp("work")
    done = subprocess.run(
        [*SHAPRUNE, "demo", "--json"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return folder / "demo", json.loads(done.stdout)


@pytest.fixture(scope="module")
def trained(demo: tuple[Path, dict[str, Any]]) -> list[str]:
    """The options that name the demo's dense network and its data."""
    return ["--model", "digits", "--weights", str(demo[0] / "dense.safetensors"), "--data", "digits"]


# --- help ---


def test_help_imports_little_and_no_torch() -> None:
    """How long it takes is a question of how much is imported: some 600 modules, and 1,900 with torch."""
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); " + SHAPRUNE[2]
    done = subprocess.run(
        [SHAPRUNE[0], "-c", code, "--help"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert all(name in done.stdout for name in COMMANDS)
    imported = done.stderr.split()
    assert not {"torch", "matplotlib", "lightning", "scipy", "sklearn"} & set(imported)
    assert "shaprune.cli.app" in imported
    assert len(imported) < 700


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_common_options_and_an_example(command: str) -> None:
    text = run(command, "--help").stdout
    assert f"Example: shaprune {command}" in re.sub(r"\s+", " ", text)
    of_a_run = command in ("resume", "runs", "merge", "export-values")  # the run has its own seed and device
    for option in ("--json", "--debug") if of_a_run else ("--json", "--seed", "--device", "--out", "--debug"):
        assert option in text


def test_python_runs_the_package_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "shaprune", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").stdout


def test_version() -> None:
    assert re.fullmatch(r"shaprune \d+\.\d+\.\d+\n", run("--version").stdout)


def test_the_names_in_the_options_are_those_of_the_registries() -> None:
    assert set(options.WORTHS) == set(WORTHS)
    assert set(options.METHODS) == set(METHODS)
    assert set(options.PRECISIONS) == {"auto", *get_args(RowPrecision)}
    assert set(options.CRITERIA) == set(CRITERIA)
    assert set(options.UNITS) == {*CHANNEL_UNITS, *KINDS}
    assert set(options.STEPS) == set(STEPS)
    assert shared.RESOURCES is RESOURCES
    assert all(f"{name}" in help_of(options.Scoring, "concept") for name in CONCEPTS)
    assert all(f"{name}" in help_of(options.Scoring, "aggregate") for name in AGGREGATES)


def test_an_option_is_declared_once_for_python_and_the_command_line() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, groups in {
        "score": (options.Scoring, options.Units, RunOptions),
        "plan": (Limits,),
        "report": (Limits,),
        "players": (options.Units,),
        "compress": (RunConfig,),
    }.items():
        told = {p.name: p.help for p in commands[name].params}
        for group in groups:
            for leaf in leaves(group):
                assert told.get(leaf.name) == (leaf.about.help if leaf.about else None), (name, leaf.name)


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("score", "--sizes", "--window"),
        ("score", "--step", "--per-round"),
        ("compress", "--rounds", "--cycles"),
        ("plan", "--exclude", "--keep"),
        ("report", "--exclude", "--keep"),
    ],
)
def test_an_option_that_has_another_name_now_says_so(command: str, old: str, new: str, tmp_path: Path) -> None:
    (tmp_path / "values.json").touch()
    needed = {
        "score": ["--model", "digits", "--data", "digits"],
        "compress": [],
        "plan": [tmp_path / "values.json", "--out", "x"],
        "report": [tmp_path],
    }[command]
    assert f"it is {new} now" in told(run(command, *needed, old, "1", code=2))
    assert not re.search(rf"{old}\b", run(command, "--help").stdout)


# --- the demo ---


@pytest.mark.slow
def test_the_demo_halves_the_network_and_keeps_the_accuracy(demo: tuple[Path, dict[str, Any]]) -> None:
    _, found = demo
    dense, pruned = found["dense"], found["pruned"]
    assert set(dense) == set(pruned) >= {"accuracy", "parameters", "macs", "latency_ms", "bytes"}
    assert pruned["macs"] <= 0.5 * dense["macs"]
    assert pruned["parameters"] < dense["parameters"]
    assert dense["accuracy"] > 0.97
    assert pruned["accuracy"] >= dense["accuracy"] - 0.01
    assert found["raw_accuracy"] <= 1
    for network in (dense, pruned):
        low, high = network["latency_spread_ms"]
        assert 0 < low <= network["latency_ms"] <= high
    assert {"train", "score", "plan", "prune", "recover", "measure", "report"} <= set(found["seconds"])
    values = json.loads((demo[0] / ARTIFACTS["values"]).read_text())["values"]
    assert sum(v["n_evaluations"] for v in values.values()) < 700_000  # how long it takes stands in benchmarks


def test_the_demo_writes_what_it_says(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, found = demo
    assert {name: folder.parent / path for name, path in found["artifacts"].items()} == {
        name: folder / file for name, file in ARTIFACTS.items()
    }
    assert sorted(p.name for p in folder.iterdir()) == sorted(ARTIFACTS.values())
    assert sorted(p.name for p in folder.parent.iterdir()) == ["demo"]
    assert (folder / "dense.safetensors").stat().st_size == found["dense"]["bytes"]
    assert (folder / "model" / WEIGHTS).stat().st_size == found["pruned"]["bytes"]
    plan, scores = Plan.load(folder / "plan.json"), Scores.load(folder / "values.json")
    assert plan.cost["macs"] == found["pruned"]["macs"]
    assert plan.cost["params"] == found["pruned"]["parameters"]
    assert set(scores) == {"conv1", "conv2", "conv3", "fc1"}
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "<svg" in report
    assert ('id="budget"' in report) == has_plotly()
    assert Sensitivity.load(folder / "curves.json").worth == "accuracy after the refit"


def test_the_demo_replaces_only_a_demo(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    check_replaceable(demo[0])
    check_replaceable(tmp_path / "new")
    (tmp_path / "out").mkdir()
    check_replaceable(tmp_path / "out")
    (tmp_path / "out" / "plan.json").touch()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"thesis\.tex"):
        check_replaceable(tmp_path / "out")
    assert "thesis.tex" in told(run("demo", "--out", tmp_path / "out", code=2))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["plan.json", "thesis.tex"]


def _begun(folder: Path, stage: str) -> subprocess.Popen[str]:
    """A demo that has come to the training or the scoring."""
    command = [sys.executable, "-c", INTERRUPTIBLE, str(int(stage == "scoring")), "demo", "--out", "out", "--json"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)
    _until(process, stage)
    return process


def _until(process: subprocess.Popen[str], word: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return
    pytest.fail(f"the demo never said {word!r}")


@pytest.mark.slow
def test_a_killed_demo_leaves_nothing(tmp_path: Path) -> None:
    with _begun(tmp_path, "scoring") as process:
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["training", "scoring"])
def test_an_interrupted_demo_says_so_and_leaves_what_was_there(tmp_path: Path, stage: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text(f"an earlier demo {GENERATOR}")
    with _begun(tmp_path, stage) as process:
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr.endswith("interrupted; nothing was written\n")
    assert stdout == ""
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "report.html"]
    assert (tmp_path / "out" / "report.html").read_text() == f"an earlier demo {GENERATOR}"


# --- players: a dry run ---


def test_players_says_what_can_leave_and_what_not(trained: list[str], tmp_path: Path) -> None:
    found = loaded("players", *trained, "--exclude", "conv2", "--out", tmp_path / "found.json")
    assert {g["name"]: g["players"] for g in found["groups"]} == {"conv1": 32, "conv3": 64, "fc1": 64}
    first = found["groups"][0]
    assert first["params_per_player"] == [9 + 1 + 2 + 64 * 9] * 2  # filter, bias, batch-norm, the reader's weights
    assert first["macs_per_player"] == [64 * (9 + 64 * 9)] * 2  # at 8 x 8 positions
    assert [(m["name"], m["role"]) for m in first["layers"]] == [("conv1", "out"), ("bn1", "both"), ("conv2", "in")]
    assert found["groups"][1]["layers"][-1] == {"name": "fc1", "role": "in", "channels_per_player": [4, 4]}
    assert found["players"] == 160
    assert {s["name"]: s["reason"] for s in found["skipped"]} == {
        "conv2": "excluded by 'conv2'",
        "fc2": "it feeds the network's output",
    }
    written = json.loads((tmp_path / "found.json").read_text())
    assert found == {**written, "artifacts": {"players": str(tmp_path / "found.json")}}


def test_players_needs_neither_weights_nor_data(tmp_path: Path) -> None:
    shown = run("players", "--model", "digits", "--shape", "1x8x8", "--unit", "neuron", "--out", tmp_path / "found")
    assert re.search(r"fc1 +64 +267 +266  fc1:out, fc2:in", shown.stdout)
    assert "conv1 (32 channels): it is no 'neuron'" in shown.stdout
    assert "fc2 (10 channels): it feeds the network's output" in shown.stdout
    assert [p.name for p in (tmp_path / "found").iterdir()] == ["players.json"]
    units = ["--unit", "neuron", "--unit", "channel"]
    assert loaded("players", "--model", "digits", "--shape", "1x8x8", *units)["players"] == 224


def test_players_of_every_kind_of_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mixed.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Mixed(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.layers = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))\n"
        "        self.gate = nn.Linear(6, 3)\n"
        "        self.experts = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))\n\n"
        "    def forward(self, x):\n        x = torch.relu(self.layers(x))\n"
        "        share = torch.softmax(self.gate(x), -1)\n"
        "        return sum(share[:, i, None] * expert(x) for i, expert in enumerate(self.experts))\n"
    )
    monkeypatch.chdir(tmp_path)

    def found(*arguments: str) -> dict[str, int]:
        units = [part for unit in arguments for part in ("--unit", unit)]
        groups = loaded("players", "--model", "mixed:Mixed", "--shape", "6", *units)["groups"]
        return {g["name"]: g["players"] for g in groups}

    assert found("block") == {"blocks": 3}
    assert found("weight") == {"layers.0": 36, "layers.1": 36, "layers.2": 36, "gate": 18} | {
        f"experts.{i}": 12 for i in range(3)
    }
    assert found("mine=layers.0[0]", "mine=layers.0[1]", "rest=layers.1[2]") == {"named": 2}
    assert found("neuron", "head").keys() >= {"layers.0", "layers.1"}


def test_players_draws_inputs_of_any_number_and_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Words(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.table = nn.Embedding(9, 6)\n"
        "        self.hidden, self.end = nn.Linear(6, 8), nn.Linear(8, 2)\n\n"
        "    def forward(self, ids, scale):\n"
        "        return self.end(torch.relu(self.hidden(self.table(ids).mean(1) * scale)))\n"
    )
    monkeypatch.chdir(tmp_path)
    found = loaded("players", "--model", "words:Words", "--shape", "5:int64", "--shape", "1")
    assert {g["name"]: g["players"] for g in found["groups"]} == {"table": 6, "hidden": 8}


def test_players_stops_where_there_is_no_end(tmp_path: Path) -> None:
    network = ["players", "--model", "digits", "--shape", "1x8x8"]
    assert "takes more than 0 seconds" in failing(tmp_path, *network, "--max-seconds", 0)
    assert "take more than 20,000 bytes" in failing(tmp_path, *network, "--max-memory", "20kB")
    assert "nothing in this model can be pruned" in failing(tmp_path, *network, "--unit", "head")


# --- score, plan, prune, evaluate, report ---


def test_score_plan_prune_evaluate(trained: list[str], tmp_path: Path) -> None:
    scores, plans, small = (tmp_path / name for name in ("scores", "plans", "small"))
    scored = loaded("score", *trained, "--examples", 100, "--exclude", "fc*", "--seed", 3, "--out", scores)
    assert [g["name"] for g in scored["groups"]] == ["conv1", "conv2", "conv3"]
    assert {s["name"] for s in scored["skipped"]} == {"fc1", "fc2"}
    assert scored["examples"] == 100
    values = Scores.load(scored["artifacts"]["values"])
    assert values["conv2"].options["seed"] == 3
    assert values["conv2"].concept == scored["concept"] == "shapley:0.5,1"

    limits = ["--budget", "macs=0.6", "--budget", "players=0.9"]
    limits += ["--min-players", "5", "--round-to", "4", "--min-width", "20", "--max-removed", "0.6"]
    limits += ["--max-removed", "conv3=0.25", "--keep", "conv1"]
    planned = loaded("plan", scored["artifacts"]["values"], *limits, "--out", plans)
    assert planned["cost"]["macs"] <= 0.6 * planned["dense"]["macs"]
    assert planned["cost"]["players"] <= 0.9 * planned["dense"]["players"]
    kept = {g["name"]: g["kept"] for g in planned["groups"]}
    assert kept["conv1"] == 32
    assert kept["conv2"] >= 28  # at most 0.6 of 64 leave: 26 stay, and the next multiple of 4
    assert kept["conv3"] >= 48
    assert all(n % 4 == 0 for n in kept.values())

    arguments = ["--plan", planned["artifacts"]["plan"], "--recover", "refit,batchnorm", "--examples", 200]
    pruned = loaded("prune", *trained, *arguments, "--out", small)
    assert pruned["pruned"]["macs"] == planned["cost"]["macs"]
    assert pruned["pruned"]["parameters"] == planned["cost"]["params"]
    assert pruned["pruned"]["bytes"] == (small / WEIGHTS).stat().st_size
    assert pruned["recovered_by"] == ["refit", "batchnorm"]
    assert pruned["pruned"]["accuracy"] > pruned["raw"]["accuracy"]

    measured = loaded("evaluate", *trained, "--pruned", small, "--batch-size", 8, "--out", tmp_path / "measured")
    for key in ("accuracy", "parameters", "macs", "bytes"):
        assert measured["pruned"][key] == pruned["pruned"][key]
        assert measured["dense"][key] == pruned["dense"][key]
    assert json.loads((tmp_path / "measured" / "evaluation.json").read_text())["pruned"] == measured["pruned"]


@pytest.mark.parametrize(
    ("chosen", "concept", "method"),
    [
        (["--method", "partial"], "partial:3,full", "partial"),
        (["--concept", "banzhaf:0.7", "--method", "msr"], "banzhaf:0.7", "msr"),
        (["--concept", "beta:1,16", "--antithetic"], "beta:1,16", "permutation"),
        (["--aggregate", "mean+2std", "--window", "0,1"], "shapley", "permutation"),
        (["--mode", "iterated", "--per-round", "0.5"], "shapley:0.5,1", "permutation"),
        (["--mode", "greedy-backward", "--per-round", "8"], "leave-one-out", "leave-one-out"),
        (["--layers", "output-to-input"], "shapley:0.5,1", "permutation"),
        (["--stop", "cut_settled(0.5) | evaluations(3000)"], "shapley:0.5,1", "permutation"),
        (["--method", "bn_scale"], "bn_scale", "bn_scale"),
    ],
)
def test_every_kind_of_value_can_be_asked_for(
    trained: list[str], tmp_path: Path, chosen: list[str], concept: str, method: str
) -> None:
    which = ["--examples", 5, "--include", "conv1", "--out", tmp_path / "s"]
    which += ["--include", "conv2"] if "--layers" in chosen else []
    scored = loaded("score", *trained, *which, *chosen)
    values = Scores.load(scored["artifacts"]["values"])["conv1"]
    assert (values.concept, values.method) == (concept, method)
    assert len(set(values.value.tolist())) > 16  # of 32 players


def test_a_second_score_starts_from_the_log(trained: list[str], tmp_path: Path) -> None:
    which = ["--examples", 20, "--include", "conv1", "--worth-log", tmp_path / "log"]
    first = loaded("score", *trained, *which, "--method", "leave-one-out", "--out", tmp_path / "a")
    again = loaded("score", *trained, *which, "--method", "leave-one-out", "--out", tmp_path / "b")
    assert first["n_evaluations"] == 20 * 33
    assert again["n_evaluations"] == 0
    other = failing(tmp_path, "score", *trained, *which, "--worth", "accuracy", "--method", "leave-one-out")
    assert "is a log of another game" in other


def test_evaluate_agrees_with_the_demo(demo: tuple[Path, dict[str, Any]], trained: list[str]) -> None:
    folder, found = demo
    measured = loaded("evaluate", *trained, "--pruned", folder / "model", "--batch-size", 8)
    for network in ("dense", "pruned"):
        for key in ("accuracy", "parameters", "macs", "bytes"):
            assert measured[network][key] == found[network][key]


def test_people_get_tables_and_reasons(demo: tuple[Path, dict[str, Any]], trained: list[str], tmp_path: Path) -> None:
    scored = run("score", *trained, "--examples", 20, "--include", "conv2", "--window", "0,1", "--out", tmp_path / "s")
    assert "conv2" in scored.stdout
    assert "fc2 (10 channels): it feeds the network's output" in scored.stdout
    assert "conv1 (32 channels), conv3 (64 channels), fc1 (64 channels): not in include" in scored.stdout
    planned = run("plan", demo[0] / "values.json", "--budget", "params=40000", "--out", tmp_path / "p")
    assert "(budget 40,000)" in planned.stdout
    measured = run("evaluate", *trained, "--pruned", demo[0] / "model", "--batch-size", 1)
    assert "latency, 1 image, 1 thread" in measured.stdout
    assert re.search(r"test accuracy .*%.*%.*points", measured.stdout)


def test_planning_needs_no_torch(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom shaprune.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\nprint('torch' in sys.modules)"
    )
    arguments = ["plan", demo[0] / "values.json", "--budget", "macs=0.5", "--out", tmp_path / "plan"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    again = Plan.load(tmp_path / "plan" / "plan.json")
    assert (again.kept == Plan.load(demo[0] / "plan.json").kept).all()


def test_report_from_saved_values(demo: tuple[Path, dict[str, Any]], trained: list[str], tmp_path: Path) -> None:
    values, plan = demo[0] / "values.json", demo[0] / "plan.json"
    first = loaded("report", values, "--out", tmp_path / "values.html")
    assert first == {"artifacts": {"report": str(tmp_path / "values.html")}, "curves": False}
    measured = ["--pruned", demo[0] / "model", "--examples", 50, "--batch-size", 4]
    second = loaded("report", values, "--plan", plan, *trained, *measured, "--out", tmp_path / "full")
    assert second["curves"] is True
    text = Path(second["artifacts"]["report"]).read_text(encoding="utf-8")
    assert "Accuracy as players leave" in text
    assert f"{demo[1]['pruned']['macs']:,}" in text


def test_a_users_own_network_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def network():\n    print('building')\n"
        "    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))\n\n"
        "def data():\n    x = torch.randn(60, 6)\n    return (x, x.abs().argmax(1) % 3), (x, x.abs().argmax(1) % 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    weights = {"0.weight": torch.randn(8, 6), "0.bias": torch.zeros(8), "2.weight": torch.randn(3, 8)}
    torch.save({"state_dict": {**weights, "2.bias": torch.zeros(3)}, "epoch": 3}, "mine.pt")
    names = ["--model", "mine:network", "--weights", "mine.pt", "--data", "mine:data"]
    scored = loaded("score", *names, "--worth", "accuracy", "--method", "exact", "--window", "0,1", "--out", "s")
    assert scored["players"] == 8
    assert scored["groups"][0]["stopped_by"] == "enumerated"
    assert abs(scored["groups"][0]["efficiency_gap"]) < 1e-9


# --- wrong usage: exit code 2, the nearest name, nothing on stdout, no work ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scre"], "Did you mean 'score'"),
        (["score", "--modle", "x"], "--model"),
        (["plan", "VALUES", "--budget", "macs", "--out", "OUT"], "'macs' is not of the form NAME=NUMBER"),
        (["plan", "VALUES", "--budget", "macs=x", "--out", "OUT"], "'x' in 'macs=x' is not a number"),
        (["plan", "VALUES", "--budget", "mac=0.5", "--out", "OUT"], "did you mean 'macs'?"),
        (["plan", "VALUES", "--budget", "macs=2.5", "--out", "OUT"], "is no budget"),
        (["plan", "VALUES", "--budget", "macs=.5", "--budget", "macs=.6", "--out", "OUT"], "macs is given twice"),
        (["plan", "VALUES", "--out", "OUT"], "give --budget, or else --sweep"),
        (["plan", "nowhere.json", "--budget", "macs=0.5", "--out", "OUT"], "'nowhere.json' does not exist"),
        (["plan", "VALUES", "--budget", "macs=0.5", "--allocation", "globl", "--out", "OUT"], "did you mean 'global'?"),
        (["plan", "VALUES", "--budget", "macs=.5", "--round-to", "0", "--out", "OUT"], "'--round-to'"),
        (["plan", "VALUES", "--budget", "macs=.5", "--max-removed", "half", "--out", "OUT"], "'half' is no share"),
        (["plan", "VALUES", "--budget", "macs=.5", "--max-removed", "a=2", "--out", "OUT"], "between 0 and 1"),
        (["players", "NET", "--unit", "heads", "--out", "OUT"], "did you mean 'head'?"),
        (["players", "NET", "--unit", "mine=", "--out", "OUT"], "'mine=' is not of the form NAME=GLOB"),
        (["players", "NET", "--unit", "mine=conv1", "--unit", "head", "--out", "OUT"], "go with no other unit"),
        (["score", "NET", "--unit", "blok", "--out", "OUT"], "did you mean 'block'?"),
        (["players", "NET", "--shape", "1x8x8", "--out", "OUT"], "give the data, or else the shape"),
        (["players", "--model", "digits", "--out", "OUT"], "give the data, or else the shape"),
        (["players", "--model", "digits", "--shape", "3x-1", "--out", "OUT"], "'3x-1' is no shape"),
        (["players", "--model", "digits", "--shape", "3:int", "--out", "OUT"], "unknown type 'int'"),
        (["players", "NET", "--max-memory", "2GiG", "--out", "OUT"], "'2GiG' is no number of bytes"),
        (["players", "NET", "--max-memory", "0.5", "--out", "OUT"], "'0.5' is no number of bytes above 0"),
        (["score", "NET", "--worth", "accurcy", "--out", "OUT"], "did you mean 'accuracy'?"),
        (["score", "NET", "--method", "permutations", "--out", "OUT"], "did you mean 'permutation'?"),
        (["score", "NET", "--window", "half", "--out", "OUT"], "'half' is not of the form LO,HI"),
        (["score", "NET", "--window", "0.5,2", "--out", "OUT"], "0 <= lo < hi <= 1"),
        (["score", "NET", "--concept", "banzaf", "--out", "OUT"], "did you mean 'banzhaf'?"),
        (["score", "NET", "--concept", "banzhaf:1", "--out", "OUT"], "strictly between 0 and 1"),
        (["score", "NET", "--mode", "iterative", "--out", "OUT"], "did you mean 'iterated'?"),
        (["score", "NET", "--aggregate", "mena", "--out", "OUT"], "did you mean 'mean'?"),
        (["score", "NET", "--stop", "second(3)", "--out", "OUT"], "did you mean 'seconds'?"),
        (["score", "NET", "--stop", "seconds", "--out", "OUT"], "write NAME(NUMBER)"),
        (["score", "NET", "--stop", "seconds(3) & seconds(4)", "--out", "OUT"], "conflict"),
        (["score", "NET", "--antithetic", "--method", "exact", "--out", "OUT"], "--antithetic"),
        (["score", "NET", "--seed", "-1", "--out", "OUT"], "'--seed'"),
        (["score", "NET", "--device", "gpu", "--out", "OUT"], "'gpu' cannot be used"),
        (["score", "--model", "lenet", "--data", "digits", "--out", "OUT"], "did you mean 'lenet"),
        (["score", "--model", "lenet5", "--data", "digits", "--out", "OUT"], "'lenet5' comes untrained"),
        (["score", "--model", "nowhere:make", "--data", "digits", "--out", "OUT"], "cannot be imported"),
        (["score", "--model", "math:sqr", "--data", "digits", "--out", "OUT"], "did you mean 'sqrt'?"),
        (["score", "NET", "--data", "digit", "--out", "OUT"], "did you mean 'digits'?"),
        (["score", "NET", "--data", "mnist:nowhere", "--out", "OUT"], "nowhere is not a directory"),
        (["prune", "NET", "--plan", "PLAN", "--recover", "refitt", "--out", "OUT"], "did you mean 'refit'?"),
        (["prune", "NET", "--plan", "PLAN", "--recover", "refit,none", "--out", "OUT"], "none stands alone"),
        (["prune", "NET", "--plan", "PLAN", "--weights", "setup.py", "--out", "OUT"], "'setup.py' does not exist"),
        (["report", "VALUES", "--model", "digits", "--out", "OUT"], "both --model and --data"),
        (["report", "VALUES", "--weights", "WEIGHTS", "--out", "OUT"], "only together with --model"),
        (["report", "VALUES", "--out", "nowhere/report.html"], "nowhere is no folder"),
        (["demo", "--data", "cifar10:.", "--out", "OUT"], "the demo runs on digits or mnist:DIR"),
        (["demo", "--arch", "lenet", "--out", "OUT"], "did you mean 'lenet"),
        (["demo", "--arch", "lenet5", "--out", "OUT"], "lenet5 is not for digits"),
        (["demo", "--budget", "macs=0", "--out", "OUT"], "is no budget"),
    ],
    ids=lambda part: " ".join(part)[:60] if isinstance(part, list) else "",
)
def test_wrong_usage(arguments: list[str], message: str, demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = demo
    places = {"VALUES": folder / "values.json", "PLAN": folder / "plan.json", "OUT": tmp_path / "out"}
    places["WEIGHTS"] = folder / "dense.safetensors"
    network = ["--model", "digits", "--weights", str(places["WEIGHTS"])]
    network += [] if "--data" in arguments else ["--data", "digits"]
    filled = [str(p) for a in arguments for p in (network if a == "NET" else [places.get(a, a)])]
    result = run(*filled, code=2)
    assert message in told(result)
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_any_work(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    arguments = ["plan", demo[0] / "values.json", "--budget", "macs=0.5", "--out", tmp_path / "plan"]
    run(*arguments)
    first = (tmp_path / "plan" / "plan.json").read_text()
    arguments[3] = "macs=0.4"
    assert "add --overwrite" in told(run(*arguments, code=2))
    assert (tmp_path / "plan" / "plan.json").read_text() == first
    run(*arguments, "--overwrite")
    assert (tmp_path / "plan" / "plan.json").read_text() != first
    (tmp_path / "plan" / "notes.txt").touch()
    assert "holds 'notes.txt', not recognised as written there by shaprune" in told(
        run(*arguments, "--overwrite", code=2)
    )
    assert sorted(p.name for p in (tmp_path / "plan").iterdir()) == ["notes.txt", "plan.json"]
    (tmp_path / "file").touch()
    assert "is a file" in told(run(*arguments[:-1], tmp_path / "file", code=2))
    run("report", demo[0] / "values.json", "--out", tmp_path / "r.html")
    assert "add --overwrite" in told(run("report", demo[0] / "values.json", "--out", tmp_path / "r.html", code=2))
    run("report", demo[0] / "values.json", "--out", tmp_path / "r.html", "--overwrite")


def test_overwriting_a_model_folder(demo: tuple[Path, dict[str, Any]], trained: list[str], tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / WEIGHTS).write_text("old")
    (tmp_path / "small" / MANIFEST).write_text(json.dumps(head("manifest")))
    arguments = ["prune", *trained, "--plan", demo[0] / "plan.json", "--recover", "none", "--out", tmp_path / "small"]
    run(*arguments, code=2)
    assert (tmp_path / "small" / WEIGHTS).read_text() == "old"
    pruned = loaded(*arguments, "--batch-size", 2, "--overwrite")
    assert "raw" not in pruned
    assert pruned["pruned"]["accuracy"] == demo[1]["raw_accuracy"]


# --- the work fails: exit code 1, one line, nothing written ---


def failing(tmp_path: Path, *arguments: object) -> str:
    """The message of a command that fails at its work and writes nothing."""
    before = sorted(tmp_path.rglob("*"))
    result = run(*arguments, "--out", tmp_path / "out", code=1)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before
    return result.stderr


def test_budgets_that_cannot_be_met_or_are_met(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    values = demo[0] / "values.json"
    assert "the budget cannot be met" in failing(tmp_path, "plan", values, "--budget", "macs=0.0001")
    assert "already meets the budget" in failing(tmp_path, "plan", values, "--budget", "macs=100000000")


def test_a_file_of_another_kind_is_named_with_what_it_holds(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    plan = demo[0] / "plan.json"
    said = failing(tmp_path, "plan", plan, "--budget", "macs=0.5")
    assert f"{plan}: this is no values written by shaprune, but plan; give what `shaprune score` writes" in said
    for load in (Scores.load, Plan.load):
        with pytest.raises(InputError, match=r"^nowhere.json cannot be read: No such file or directory$"):
            load("nowhere.json")


EXPERTS = """import torch
from torch import nn


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(3, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in range(3))

    def forward(self, x):
        chosen = x.argmax(1)
        out = x.new_zeros(len(x), 2)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]))
        return out + self.router(x)[:, :2]


def data():
    inputs = torch.eye(3).repeat_interleave(20, 0)[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    inputs[:2] = torch.eye(3)[:1]
    part = inputs, torch.zeros(60, dtype=torch.long)
    return {"train": part, "held_out": part, "test": part}
"""


def test_experts_that_few_examples_choose_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "routed.py").write_text(EXPERTS)
    monkeypatch.chdir(tmp_path)
    source = ["--model", "routed:Experts", "--data", "routed:data"]
    for found in (
        loaded("players", *source),
        loaded("players", "--model", "routed:Experts", "--shape", "3"),
        loaded("score", *source, "--method", "weight_norm", "--out", "scores"),
    ):
        assert [group["name"] for group in found["groups"]] == [f"experts.{i}.0" for i in range(3)]


@pytest.mark.slow
def test_the_demo_holds_a_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = loaded("demo", "--budget", "drop=0.2")
    assert found["pruned"]["macs"] < 0.5 * found["dense"]["macs"]


def test_damaged_files(demo: tuple[Path, dict[str, Any]], trained: list[str], tmp_path: Path) -> None:
    half = tmp_path / "half.json"
    half.write_text((demo[0] / "values.json").read_text()[:1000])
    assert "half.json is no complete JSON file" in failing(tmp_path, "plan", half, "--budget", "macs=0.5")
    assert "this is no plan" in failing(tmp_path, "prune", *trained, "--plan", demo[0] / "values.json")
    weights = tmp_path / "half.safetensors"
    weights.write_bytes((demo[0] / "dense.safetensors").read_bytes()[:5000])
    network = ["--model", "digits", "--weights", weights, "--data", "digits"]
    assert "half.safetensors cannot be read" in failing(tmp_path, "score", *network)
    pickled = tmp_path / "pickled.pt"
    torch.save(build_model("mlp"), pickled)
    network[3] = pickled
    assert "pickled.pt cannot be read as weights" in failing(tmp_path, "evaluate", *network)


def test_weights_of_another_network(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    network = ["--model", "digits", "--data", "digits", "--weights", tmp_path / "other.safetensors"]
    save_file({"fc1.weight": torch.zeros(2, 2)}, network[-1])
    message = failing(tmp_path, "score", *network)
    assert "'conv1.weight' and" in message
    assert "missing in the file" in message
    state = load_file(demo[0] / "dense.safetensors")
    save_file({**state, "head.weight": torch.zeros(2)}, network[-1])
    assert "'head.weight' is unknown to the model" in failing(tmp_path, "score", *network)
    save_file({**state, "fc1.bias": torch.zeros(2)}, network[-1])
    message = failing(tmp_path, "score", *network)
    assert "'fc1.bias' has shape (2,) in the file and (64,) in the model" in message


def test_a_plan_of_another_network(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    save_file(build_model("mlp").state_dict(), tmp_path / "mlp.safetensors")
    network = ["--model", "mlp", "--weights", tmp_path / "mlp.safetensors", "--data", "digits"]
    message = failing(tmp_path, "prune", *network, "--plan", demo[0] / "plan.json")
    assert "belongs to another model" in message


def test_unexpected_errors_are_one_line_unless_debugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("def network():\n    raise OSError('no disk')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    arguments = ["evaluate", "--model", "broken:network", "--data", "digits"]
    assert failing(tmp_path, *arguments) == "error: OSError: no disk (--debug shows the traceback)\n"
    assert "Traceback" in run(*arguments, "--debug", code=1).stderr

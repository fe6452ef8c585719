"""A whole run from a YAML file: every keyword of `compress` is a key, files round-trip, and finished runs are kept."""

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import shaprune as sp
from shaprune.builtin.models import build_model
from shaprune.cli.app import app
from shaprune.options.fields import leaves, spread
from shaprune.options.groups import Compression
from shaprune.options.preprocessing import Preprocessing
from shaprune.pipeline.run_config import RunConfig, read_keys
from shaprune.recovery.steps import Finetune

pytestmark = pytest.mark.usefixtures("one_thread")

NEEDED: dict[str, Any] = {"model": "digits", "data": "digits", "budget": {"macs": 0.5}}
OF_A_CALL = {"example_inputs", "test", "progress"}  # what only a call is given
OF_A_FILE = {"weights", "cache", "examples", "batch_size", "out", "device"} | {f.name for f in fields(Preprocessing)}
KEYS = {leaf.name: leaf.field.default for leaf in leaves(RunConfig) if leaf.about is not None}


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["compress", *map(str, arguments)], prog_name="shaprune")
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def told(result: Any) -> str:
    return re.sub(r"[\s│╭╮╰╯─]+", " ", result.stderr)


# --- the keys are those of compress ---


def test_every_keyword_of_compress_is_a_key_with_the_same_default() -> None:
    keywords = inspect.signature(sp.compress).parameters
    grouped = {leaf.name: leaf.field.default for leaf in leaves(Compression) if leaf.about is not None}
    assert set(KEYS) == (set(keywords) - OF_A_CALL - {"options"}) | set(grouped) | OF_A_FILE
    plain = {name: keyword.default for name, keyword in keywords.items() if keyword.default is not inspect._empty}
    for name, default in {**plain, **grouped}.items():
        assert KEYS.get(name, default) == default, name


def test_every_key_is_an_option_of_the_command() -> None:
    command = typer.main.get_command(app).commands["compress"]  # type: ignore[attr-defined]
    own = {"config", "as_json", "overwrite", "as_debug", "help"}
    assert {p.name for p in command.params if not p.hidden} - own == set(KEYS)


# --- files ---


FULL: dict[str, Any] = {
    **NEEDED,
    "weights": "dense.safetensors",
    "budget": {"macs": 0.5, "params": 50_000, "latency": "0.8 ms"},
    "worth": "accuracy",
    "recover": ["refit", {"finetune": {"epochs": 2, "lr": 1e-5}}, "my.module:finetune"],
    "include": ["conv*"],
    "exclude": "fc1",
    "max_removed": {"conv*": 0.25},
    "window": [0.0, 1.0],
    "max_memory": "2GiB",
    "precision": "auto",
    "seed": 3,
}


@pytest.mark.parametrize("keys", [NEEDED, FULL])
def test_a_config_comes_back_from_its_yaml(keys: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig.of(keys)
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    again = RunConfig.of(read_keys(tmp_path / "run.yaml"))
    assert again == config
    assert again.to_yaml() == config.to_yaml()
    assert set(yaml.safe_load(config.to_yaml())) == set(KEYS)  # every key is written out


def test_values_are_of_their_kind() -> None:
    config = RunConfig.of(FULL)
    assert config.options.scoring.max_memory == 2 << 30
    assert config.budget_limits() == sp.Budget(macs=0.5, params=50_000, latency="0.8 ms")
    assert config.options.scoring.window == (0.0, 1.0)
    own = object()
    assert config.steps(lambda spec: (own, spec)) == ("refit", Finetune(epochs=2, lr=1e-5), (own, "my.module:finetune"))


def test_a_function_that_augments_is_named_and_found() -> None:
    step = {"finetune": {"epochs": 2, "augment": "my.module:shift"}}
    config = RunConfig.of({**NEEDED, "recover": ["refit", step]})
    assert config.recover == ("refit", step)
    assert RunConfig.of(yaml.safe_load(config.to_yaml())) == config
    assert config.steps(lambda spec: {"my.module:shift": abs}[spec]) == ("refit", Finetune(epochs=2, augment=abs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recover": [{"finetune": {"augment": 3}}]}, "finetune: augment is 3; name a function"),
        ({"sizes": [0.5, 1]}, "unknown key 'sizes'; it is 'window' now"),
        ({"round_too": 8}, r"unknown key 'round_too'; did you mean 'round_to'\?"),
        ({"budget": {"mac": 0.5}}, r"unknown budget 'mac'; did you mean 'macs'\?"),
        ({"budget": {"macs": 2.5}}, r"macs=2.5 is no budget"),
        ({"budget": {}}, "the budget is empty"),
        ({"worth": "fidelty"}, r"did you mean 'fidelity'\?"),
        ({"metric": "acuracy"}, r"did you mean 'accuracy'\?"),
        ({"allocation": "globl"}, r"did you mean 'global'\?"),
        ({"schedule": "linera"}, r"did you mean 'linear'\?"),
        ({"recover": ["refitt"]}, r"did you mean 'refit'\?"),
        ({"recover": "refit"}, r"recover: it is 'refit'; give a list of steps"),
        ({"recover": [{"finetune": {"epoch": 5}}]}, r"unknown option of finetune 'epoch'; did you mean 'epochs'\?"),
        ({"recover": [{"finetune": {"epochs": "many"}}]}, "finetune: epochs: Input should be a valid integer"),
        ({"recover": [{"finetune": {"optimizer": "adam"}}]}, "unknown option of finetune 'optimizer'"),
        ({"recover": [{"finetune": {"patience": 0}}]}, "patience is 0"),
        ({"recover": [{"finetune": {"epochs": 0}}]}, "epochs is 0"),
        ({"recover": [{"finetune": {"lr": -1}}]}, "lr is -1"),
        ({"recover": [{"finetune": {"precision": "bfloat"}}]}, "finetune: precision: Input should be 'float32' or"),
        ({"recover": [{"finetune": 3}]}, "the options of finetune are 3"),
        ({"recover": [{"refit": None, "finetune": None}]}, "is no step"),
        ({"min_width": "wide"}, r"min_width: .*valid integer.*\(given: 'wide'\)"),
        ({"max_memory": "lots"}, "max_memory: 'lots' is no number of bytes"),
        ({"examples": 0}, "examples: .*greater than or equal to 1"),
    ],
)
def test_what_means_nothing_is_refused_with_the_nearest(change: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        RunConfig.of({**NEEDED, **change})


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(sp.InputError, match=f"'{key}' is missing"):
        RunConfig.of({k: v for k, v in NEEDED.items() if k != key})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\nmodel: b\n", "the key 'model' comes twice.*line 1"),
        ("model: [a\n", "is no YAML"),
        ("- model\n", "holds no keys"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else '*a'] * 9)}]\n" for i in range(9)),
            "entries, aliases counted",
        ),
        (
            "m: &m {k: 1}\n"
            + "".join(f"n{i}: &n{i} {{<<: [{', '.join([f'*n{i - 1}' if i else '*m'] * 9)}]}}\n" for i in range(9)),
            "entries, aliases counted",
        ),
        ("a: &a [*a]\n", "an alias stands inside what it names"),
        ("".join(f"key{i}: 1\n" for i in range(40_000)), "is longer than 32,768 bytes"),
        ("a: " + "[" * 10_000, "more than 50 levels"),
        ("- " * 10_000, "more than 50 levels"),
        ("? [a]\n: 1\n", "a key is a list"),
        ("", "holds no keys"),
        ("model: !!python/object/apply:os.getcwd []\n", "is no YAML.*could not determine a constructor"),
    ],
)
def test_files_that_are_no_config_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(sp.InputError, match=message):
        read_keys(tmp_path / "run.yaml")
    with pytest.raises(sp.InputError, match="cannot be read"):
        read_keys(tmp_path / "nowhere.yaml")


# --- the command ---

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())

def data():
    torch.manual_seed(1)
    x = torch.randn(400, 6)
    y = x[:, :3].argmax(1)
    return (x[:300], y[:300]), (x[300:], y[300:])

def finetune(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    open("called", "w").close()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of the user's and a config, and the shell in it."""
    name = f"users_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    keys = {"model": f"{name}:Net", "data": f"{name}:data", "budget": {"players": 0.5}, "out": "small"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_writes_everything_and_its_config_runs_again(here: Path) -> None:
    name = next(here.glob("users_*.py")).stem
    out = json.loads(run("--config", "run.yaml", "--recover", f"refit,{name}:finetune", "--json").stdout)
    written = files(here / "small")
    assert set(written) == {
        "config.yaml",
        "measurements.json",
        "model/manifest.json",
        "model/model.safetensors",
        "plan.json",
        "values.json",
    }
    assert (here / "called").exists()
    assert {"dense", "raw", "pruned", "seconds"} <= set(json.loads(written["measurements.json"]))
    assert out["pruned"]["parameters"] == 6 * 6 + 6 + 6 * 3 + 3
    assert out["pruned"]["latency_on"]["threads"] == 1
    assert all(Path(path).exists() for path in out["artifacts"].values())
    small = sp.load(here / "small" / "model", build=__import__(name).Net)
    assert sum(p.numel() for p in small.parameters()) == out["pruned"]["parameters"]
    assert sp.Plan.load(here / "small" / "plan.json").kept.sum() == 6
    run("--config", "small/config.yaml", "--out", "again")
    again = files(here / "again")
    assert again["plan.json"] == written["plan.json"]
    assert again["model/model.safetensors"] == written["model/model.safetensors"]
    assert again["config.yaml"] == written["config.yaml"].replace(b"out: small", b"out: again")


def test_options_override_the_file_and_are_written_into_the_config_of_the_run(here: Path) -> None:
    run(
        *("--config", "run.yaml", "--budget", "params=0.8", "--out", "other", "--round-to", 2, "--recover", "none"),
        *("--max-removed", "0.5", "--window", "0,1", "--seed", 4, "--examples", 20, "--max-memory", "1MiB"),
    )
    assert not (here / "small").exists()
    keys = yaml.safe_load((here / "other" / "config.yaml").read_text())
    expected = {
        "budget": {"params": 0.8},
        "round_to": 2,
        "recover": [],
        "max_removed": {"*": 0.5},
        "window": [0.0, 1.0],
        "seed": 4,
        "examples": 20,
        "max_memory": 1 << 20,
        "out": "other",
    }
    assert {key: keys[key] for key in expected} == expected


def test_a_run_needs_no_file(here: Path) -> None:
    keys = yaml.safe_load((here / "run.yaml").read_text())
    run("--model", keys["model"], "--data", keys["data"], "--budget", "players=0.5")
    assert (here / "compressed" / "plan.json").exists()
    assert "'budget' is missing" in told(run("--model", keys["model"], "--data", keys["data"], code=2))


def test_a_floor_is_measured_on_examples_that_are_not_recovered_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def noted(model: nn.Module, data: Any, budget: sp.Budget, **keywords: Any) -> None:
        seen.update(keywords, data=data)
        raise sp.InputError("that is enough")

    monkeypatch.setattr(sp, "compress", noted)
    run("--config", "run.yaml", "--budget", "drop=0.01", code=1)
    scored, checked, trained, tested = (
        {tuple(row) for x, _ in batches for row in x.tolist()}
        for batches in (seen["data"], seen["options"].validation, seen["options"].train, seen["test"])
    )
    assert len(scored) == len(checked) == 15  # a tenth of 300 is held out
    assert (len(trained), len(tested)) == (270, 100)
    assert len(scored | checked | trained | tested) == 400


def test_every_key_reaches_compress(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def noted(model: nn.Module, data: Any, budget: sp.Budget, **keywords: Any) -> None:
        seen.update(keywords, budget=budget)
        raise sp.InputError("that is enough")

    monkeypatch.setattr(sp, "compress", noted)
    keys = yaml.safe_load((here / "run.yaml").read_text())
    wanted = {
        "worth": "accuracy",
        "method": "reconstruction",
        "unit": ("channel", "head"),
        "norm": "compensated",
        "recover": ("batchnorm",),
        "effort": "hour",
        "include": ("fc*",),
        "exclude": "fc2",
        "allocation": "uniform",
        "min_players": 2,
        "min_width": 3,
        "round_to": 4,
        "max_removed": 0.75,
        "hf_uniform": True,
        "keep": ("fc2",),
        "cycles": 5,
        "schedule": "linear",
        "metric": "margin",
        "concept": "banzhaf:0.7",
        "window": (0.25, 1.0),
        "aggregate": "mean+2std",
        "together": True,
        "mode": "iterated",
        "per_round": 3.0,
        "negative_first": True,
        "layers": "output-to-input",
        "max_evaluations": 6,
        "max_memory": 7,
        "precision": "bfloat16",
        "seed": 8,
    }
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in wanted.items()}
    (here / "full.yaml").write_text(yaml.safe_dump({**keys, **plain}))
    run("--config", "full.yaml", code=1)
    seen |= spread(seen["options"])
    assert {key: seen[key] for key in wanted} == wanted
    assert seen["budget"] == sp.Budget(players=0.5)
    assert set(wanted) == set(KEYS) - OF_A_FILE - set(NEEDED)  # none is forgotten here, either


def test_a_finished_run_is_not_overwritten_unasked(here: Path) -> None:
    run("--config", "run.yaml")
    before = files(here / "small")
    assert "exists and is not empty" in told(run("--config", "run.yaml", "--budget", "players=0.7", code=2))
    assert files(here / "small") == before
    (here / "small" / "notes.txt").write_text("mine")
    assert "holds 'notes.txt'" in told(run("--config", "run.yaml", "--overwrite", code=2))
    (here / "small" / "notes.txt").unlink()
    run("--config", "run.yaml", "--budget", "players=0.7", "--overwrite")
    assert files(here / "small")["plan.json"] != before["plan.json"]


def test_a_full_disk_leaves_nothing_and_loses_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("--config", "run.yaml")
    before, listing = files(here / "small"), sorted(p.name for p in here.iterdir())

    def full(self: object, path: Path) -> None:
        path.write_text("ha")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sp.Scores, "save", full)
    assert "No space left on device" in told(run("--config", "run.yaml", "--overwrite", code=1))
    run("--config", "run.yaml", "--out", "new", code=1)
    assert files(here / "small") == before
    assert sorted(p.name for p in here.iterdir()) == listing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.yaml"], "does not exist"),
        (["--config", "run.yaml", "--worth", "fidelty"], "did you mean 'fidelity'"),
        (["--config", "run.yaml", "--recover", "refitt"], "did you mean 'refit'"),
        (["--config", "run.yaml", "--recover", "nowhere:finetune"], "module 'nowhere' cannot be imported"),
        (["--config", "run.yaml", "--budget", "mac=0.5"], "did you mean 'macs'"),
        (["--config", "wrong.yaml"], "unknown key 'bugdet'; did you mean 'budget'"),
    ],
)
def test_wrong_usage_is_told_before_any_work(here: Path, arguments: list[str], message: str) -> None:
    (here / "wrong.yaml").write_text("model: digits\ndata: digits\nbugdet: {macs: 0.5}\n")
    assert message in told(run(*arguments, code=2))
    assert not (here / "small").exists()


def test_a_built_in_network_takes_its_weights_from_the_config(here: Path) -> None:
    torch.manual_seed(0)
    save_file(build_model("digits").state_dict(), "dense.safetensors")
    keys = {"model": "digits", "data": "digits", "budget": {"players": 0.8}, "weights": "dense.safetensors"}
    (here / "digits.yaml").write_text(yaml.safe_dump({**keys, "examples": 8, "batch_size": 2, "recover": []}))
    run("--config", "digits.yaml", "--out", "digits")
    assert sp.Plan.load(here / "digits" / "plan.json").players.n == 224

"""Real models at random weights: what shaprune finds in each, whether masks are removal, and what is left at 70 %.

Each model (`zoo_models.py`) runs in a process of its own with a limit of seconds and of memory, one after the other:

- players, the share of the parameters that goes when all go that can, the reasons of what stays;
- masked = removed: worths of `NetworkGame` (fidelity) of random coalitions beside the distances of the networks after
  surgery, and the outputs themselves;
- 70 % of every group kept: the share of parameters that left, forward, backward, saved and loaded in another process,
  ONNX; beside it the parameters that torch-pruning removes at the same ratio;
- seconds to find the players over seconds of one forward pass.

``python benchmarks/bench_zoo.py [PATTERN ...]`` asks the models that neither `results/zoo.json` nor `.cache/zoo.jsonl`
(one line each) hold yet, and those that took longer than a smaller limit (``ZOO_SECONDS``); ``--again`` asks once more;
then it writes `results/zoo.json` of all.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CACHE, ROOT, SEED, write
from torch import Tensor, nn
from zoo_models import made, names

import shaprune as sp
from shaprune.network.batches import call, listed, main_output, tensors
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import remove_players

SECONDS = float(os.environ.get("ZOO_SECONDS", "300"))  # of one model
MEMORY = 10 << 30  # bytes of one model
RESULT = ROOT / "benchmarks" / "results" / "zoo.json"
KEPT = 0.7  # of every group
COALITIONS = 3
TOLERANCE = 1e-4  # relative to the largest output; of worths, relative to the worth
LINES = CACHE / "zoo.jsonl"


def one(name: str, report: Callable[[str, Any], None]) -> None:
    """Ask one model; report each finding at once, so that what was found stays when a later step ends the process."""
    model, inputs = made(name)
    params = sum(p.numel() for p in model.parameters())
    report("parameters", params)
    forward = min(_seconds(lambda: outputs_of(model, inputs)) for _ in range(3))
    report("forward_seconds", round(forward, 4))
    clock = time.perf_counter()
    players = sp.find_players(model, inputs)
    seconds = time.perf_counter() - clock
    report("seconds", round(seconds, 2))
    report("ratio", round(seconds / forward, 1))
    report("players", players.n)
    report("groups", len(players.groups))
    report("can_leave", _share(players, coalition(players, 0.0), params))
    report("stays", {s.name: s.reason for s in players.skipped})
    kept = coalition(players, KEPT)
    rows = [coalition(players, share, seed) for seed, share in enumerate((0.9, 0.7, 0.4)[:COALITIONS])]
    asked: dict[str, Callable[[], Any]] = {
        "equal": lambda: surgery_differs(model, players, inputs, rows),
        "game": lambda: game_differs(model, players, inputs, rows),
        "pruned": lambda: _share(players, kept, params),
        "forward": lambda: all(bool(t.isfinite().all()) for t in outputs_of(cut(model, players, kept), inputs)),
        "backward": lambda: backward(cut(model, players, kept).train(), inputs),
        "reloaded": lambda: reloaded(name, model, players, kept, inputs),
        "onnx": lambda: exported(cut(model, players, kept), inputs),
        "torch_pruning": lambda: halved_by_torch_pruning(model, inputs, params),
    }
    for step, ask in asked.items():
        try:
            report(step, ask())
        except Exception as error:  # the finding of this step
            report(step, f"{type(error).__name__}: {' '.join(_plain(str(error)).split())[:300]}")


def _plain(text: str) -> str:
    """Without the colours that exporters put into their errors."""
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def _seconds(action: Callable[[], Any]) -> float:
    clock = time.perf_counter()
    action()
    return time.perf_counter() - clock


def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return [t for t in tensors(call(model, copy.deepcopy(inputs))) if t.is_floating_point()]


def coalition(players: sp.Players, share: float, seed: int = SEED) -> np.ndarray:
    """About this share of every group, of whatever each layer needs at least one."""
    rng = np.random.default_rng(seed)
    kept = np.zeros(players.n, dtype=bool)
    kept[list(players.needed())] = True
    for group in players.groups:
        order = rng.permutation(group.indices)
        kept[order[: max(1, round(share * len(order)))]] = True
        for member in group.members:
            owning = group.indices[member.widths > 0]
            if not kept[owning].any():
                kept[owning[0]] = True
    return kept


def _share(players: sp.Players, kept: np.ndarray, params: int) -> float:
    return round(1 - players.cost(kept)[0] / params, 4)


def cut(model: nn.Module, players: sp.Players, kept: np.ndarray) -> nn.Module:
    return remove_players(copy.deepcopy(model), players, kept)


def surgery_differs(model: nn.Module, players: sp.Players, inputs: Any, rows: list[np.ndarray]) -> float:
    """The largest distance of the masked from the smaller network's outputs, relative to the largest output."""
    sites = mask_sites(players, players.groups, torch.device("cpu"))
    gaps = [0.0]
    for kept in rows:
        with masked(model, sites, torch.from_numpy(kept[None]).float()):
            by_mask = outputs_of(model, inputs)
        for a, b in zip(by_mask, outputs_of(cut(model, players, kept), inputs), strict=True):
            if a.shape != b.shape:
                raise ValueError(f"outputs of shapes {tuple(a.shape)} and {tuple(b.shape)}")
            if a.numel():
                gaps.append(float((a - b).abs().max() / b.abs().max().clamp_min(1e-9)))
    return float(np.max(gaps))  # NaN stays NaN


def game_differs(model: nn.Module, players: sp.Players, inputs: Any, rows: list[np.ndarray]) -> float:
    """The largest distance of a coalition's worth from that of the smaller network, relative to the latter."""
    dense, gaps = main_tensor(model, inputs), []
    whole = listed(inputs) is not None  # examples cannot be parted
    data = None if whole else [(inputs, None)]
    worth = sp.worths.Evaluate(lambda net: fidelity(net, inputs, dense)) if whole else "fidelity"
    worths = sp.NetworkGame(model, players, data, worth)(np.stack(rows)).reshape(len(rows), -1).mean(1)
    for worth, kept in zip(worths, rows, strict=True):
        truth = fidelity(cut(model, players, kept), inputs, dense)
        gaps.append(abs(worth - truth) / max(abs(truth), 1e-9))
    return float(np.max(gaps))


def fidelity(model: nn.Module, inputs: Any, dense: Tensor) -> float:
    """Minus the squared distance to the dense network's main output; of different numbers of boxes, of their sums."""
    given = main_tensor(model, inputs)
    gap = given - dense if given.shape == dense.shape else given.sum(0)[None] - dense.sum(0)[None]
    return -float(gap.square().sum() / max(len(gap), 1))


def main_tensor(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        return main_output(call(model, copy.deepcopy(inputs)))


def backward(model: nn.Module, inputs: Any) -> bool:
    """Whether the smaller network gives finite gradients (in train mode, or where that needs targets, in eval mode)."""
    try:
        given = call(model, copy.deepcopy(inputs))
    except Exception:  # detectors want targets, batch norms more than one example
        given = call(model.eval(), copy.deepcopy(inputs))
    parts = [t.square().mean() for t in tensors(given) if t.is_floating_point() and t.requires_grad and t.numel()]
    torch.stack(parts).sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return bool(grads) and all(bool(g.isfinite().all()) for g in grads)


def reloaded(name: str, model: nn.Module, players: sp.Players, kept: np.ndarray, inputs: Any) -> float:
    """The distance of the outputs of a saved network that another process loaded from its own."""
    plan = sp.Plan.from_coalition(players, kept)
    small = cut(model, players, kept)
    with tempfile.TemporaryDirectory() as folder:
        sp.save(small, plan, Path(folder) / "saved")
        command = [sys.executable, __file__, "--load", name, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError((done.stderr.strip().splitlines() or ["no output"])[-1])
        theirs = torch.load(Path(folder) / "outputs.pt", weights_only=True)
    ours = outputs_of(small, inputs)
    return float(np.max([float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True) if a.numel()] or [0.0]))


def loaded(name: str, folder: str) -> None:
    inputs = made(name)[1]
    small = sp.load(Path(folder) / "saved", build=lambda: made(name)[0])
    torch.save(outputs_of(small, inputs), Path(folder) / "outputs.pt")


def exported(model: nn.Module, inputs: Any) -> bool:
    """Whether torch's TorchScript exporter, or else its newer one, takes the smaller network."""
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    keywords = inputs if isinstance(inputs, dict) else None
    try:
        torch.onnx.export(model, args, io.BytesIO(), kwargs=keywords, dynamo=False)
    except Exception:
        torch.onnx.export(model, args, kwargs=keywords, dynamo=True, optimize=False, verbose=False)
    return True


def halved_by_torch_pruning(model: nn.Module, inputs: Any, params: int) -> float:
    """The share of parameters that torch-pruning removes at the same ratio, where its network still runs."""
    import torch_pruning as tp

    small = copy.deepcopy(model)
    ignored = [m for m in small.modules() if isinstance(m, nn.Linear)][-1:]
    pruner = tp.pruner.MagnitudePruner(
        small,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=1 - KEPT,
        ignored_layers=ignored,
        global_pruning=False,
    )
    pruner.step()
    outputs_of(small, inputs)
    return round(1 - sum(p.numel() for p in small.parameters()) / params, 4)


def worker(name: str, path: str) -> None:
    """What runs in a process of its own: findings go to a file, line by line."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def report(key: str, value: Any) -> None:
        with open(path, "a") as file:
            file.write(json.dumps({key: value}) + "\n")

    try:
        with contextlib.redirect_stdout(sys.stderr):
            one(name, report)
    except Exception as error:
        report("error", f"{type(error).__name__}: {str(error)[:2000]}")
    report("peak_gib", round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2))


def asked(name: str) -> dict[str, Any]:
    """Run a worker within its limits and gather what it found."""
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.jsonl"
        command = [sys.executable, __file__, "--one", name, str(path)]
        found: dict[str, Any] = {"name": name}
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False, cwd=folder)
            ended = None if done.returncode == 0 else f"ended with status {done.returncode}"
        except subprocess.TimeoutExpired:
            ended, found["limit"] = f"took more than {SECONDS:.0f} s", SECONDS
        if path.exists():
            for line in path.read_text().splitlines():
                found |= json.loads(line)
    if ended is not None:
        found["error"] = ended
    return found | {"commit": _commit(), "took": round(time.perf_counter() - clock, 1)}


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def works(found: dict[str, Any]) -> bool:
    """Whether everything that was asked of a model went well; torch-pruning and ONNX are reported beside it."""
    numbers = [found.get(key) for key in ("equal", "game", "reloaded")]
    exact = all(isinstance(n, float | int) and n <= TOLERANCE for n in numbers)
    return "error" not in found and exact and found.get("forward") is True and found.get("backward") is True


def gathered() -> dict[str, dict[str, Any]]:
    """The last finding of every model: of the committed result, and of the lines since."""
    committed = json.loads(RESULT.read_text())["results"]["models"] if RESULT.exists() else {}
    lines = LINES.read_text().splitlines() if LINES.exists() else []
    return committed | {found["name"]: found for found in map(json.loads, lines)}


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--one"]:
        return worker(*arguments[1:])
    if arguments[:1] == ["--load"]:
        return loaded(*arguments[1:])
    started = time.perf_counter()
    again = "--again" in arguments
    patterns = [a for a in arguments if a != "--again"] or ["*"]
    known = {} if again else gathered()
    CACHE.mkdir(exist_ok=True)
    for name in names():
        done = name in known and known[name].get("limit", SECONDS) >= SECONDS
        if done or not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        found = asked(name)
        with LINES.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print("works" if works(found) else "FAILS", name, found["took"], found.get("error", ""), flush=True)
    every = gathered()
    summary = {"models": len(every), "work": sum(map(works, every.values()))}
    write("zoo", {"summary": summary, "models": {name: every[name] for name in sorted(every)}}, started)
    return None


if __name__ == "__main__":
    main()

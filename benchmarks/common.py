"""What all benchmarks share: the data, trained networks, and results with machine, versions, seed and commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shaprune.builtin.datasets import Dataset, load_dataset
from shaprune.builtin.models import build_model
from shaprune.deploy.measure import accuracy
from shaprune.network.borrow import copied
from shaprune.recovery.training import Training, fit
from shaprune.recovery.training_data import Augment

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SHAPRUNE_DATA", ROOT.parent / "shared" / "data"))  # see benchmarks/README.md
CACHE = ROOT / ".cache"
SEED = 0
FAST: Any = torch.channels_last  # trains convolutions on CPU up to twice as fast


def mnist() -> Dataset:
    return load_dataset(f"mnist:{DATA / 'mnist'}")


def trained(
    name: str,
    data: Dataset,
    *,
    epochs: int = 3,
    seed: int = SEED,
    lr: float = 2e-3,
    weight_decay: float = 0.0,
    augment: Augment | None = None,
) -> nn.Module:
    """A network trained with a fixed recipe; its weights are kept in the ignored cache folder."""
    path = CACHE / f"{name}-{data.name}-{epochs}{'' if augment is None else '-' + augment.__name__}-{seed}.safetensors"
    torch.manual_seed(seed)
    model = build_model(name)
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        model = model.to(memory_format=FAST)
        batches = data.train.batches(128)
        how = Training(weight_decay=weight_decay, augment=augment)
        fit(model, batches, epochs=epochs, lr=lr, seed=seed, options=how)
        model = model.to(memory_format=torch.contiguous_format)
        CACHE.mkdir(exist_ok=True)
        save_file(model.state_dict(), path)
    return model.eval()


def forgotten(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with fresh random weights."""
    fresh = copied(model)
    torch.manual_seed(seed)
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return fresh


def cifar10() -> Dataset:
    """The images that ResNet-56's card sets aside are held out."""
    card = json.loads((DATA / "resnet56-cifar10" / "resnet56.json").read_text())
    return load_dataset(f"cifar10:{DATA / 'cifar10-jpeg'}", cache=CACHE, held_out=card["held_out"])


def resnet56() -> tuple[nn.Module, Dataset]:
    folder = DATA / "resnet56-cifar10"
    data = cifar10()
    model = build_model("resnet56")
    model.load_state_dict(load_file(folder / "resnet56.safetensors"))
    return model.eval(), data


def accuracy_on_test(model: nn.Module, data: Dataset, n: int) -> float:
    """On the first ``n`` test images, which are a random sample."""
    return round(accuracy(model, data.test.take(n).batches()), 4)


def error_on_test(model: nn.Module, data: Dataset) -> float:
    """On all test images, in per cent."""
    return round(100 * (1 - accuracy(model, data.test.batches())), 2)


def error(value: np.ndarray, truth: np.ndarray) -> float:
    """Relative error ||value - truth|| / ||truth||."""
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))


CPU = torch.device("cpu")


def settled(device: torch.device) -> None:
    """Wait until a GPU is done with what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write(name: str, results: dict[str, Any], started: float, device: torch.device = CPU, *, seed: int = SEED) -> None:
    """Write ``benchmarks/results/<name>.json`` (of a GPU: ``<name>-cuda.json``) and print it."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    name = name if gpu is None else f"{name}-{device.type}"
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    document = {
        "benchmark": name,
        "commit": commit.stdout.strip(),
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.system(),
        }
        | ({} if gpu is None else {"gpu": gpu}),
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("shaprune", "torch", "torch-pruning", "numpy")},
        },
        "results": results,
    }
    text = json.dumps(document, indent=1)
    (ROOT / "benchmarks" / "results" / f"{name}.json").write_text(text + "\n")
    print(text)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()

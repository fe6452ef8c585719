"""Fixtures shared by all tests."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread for each, and for what it starts
    os.environ["OMP_NUM_THREADS"] = "1"

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
from torch import nn

from shaprune.cli import heartbeat

heartbeat.EVERY = float("inf")  # what a command says does not depend on how busy the machine is

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first: files are shared out whole, and none of these should be left for the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


class Untouched(Protocol):
    def __call__(self, *models: nn.Module) -> AbstractContextManager[None]: ...


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and weights beside the repository; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no real data: ../shared/data, beside the repository, is absent")
    return SHARED


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small networks on one thread: where other processes hold the cores, a second thread costs 20 times more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def untouched() -> Untouched:
    """A block after which models' training flags, hooks, and the random and global states are as before."""
    return _untouched


@contextmanager
def _untouched(*models: nn.Module) -> Iterator[None]:
    before = _state(models)
    try:
        yield
    finally:
        assert _state(models) == before


def _state(models: tuple[nn.Module, ...]) -> dict[str, object]:
    return {
        "flags": [module.training for model in models for module in model.modules()],
        "hooks": [
            len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
            for model in models
            for module in model.modules()
        ],
        "frozen": [p.requires_grad for model in models for p in model.parameters()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part if isinstance(part, (str, int, float)) else part.tolist() for part in np.random.get_state()],
        "python": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "threads": torch.get_num_threads(),
    }

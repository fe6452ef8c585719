"""A short fault campaign: drivers and workers killed at random moments."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from shaprune.network.forward import row_batches

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for workers in /proc")


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(
        row_batches, "MAX_BATCH_THREADS", row_batches.MAX_BATCH_THREADS
    )  # the benchmark sets it for its own process
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_faults.py"
    spec = importlib.util.spec_from_file_location("bench_faults", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_faults", module)  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_faults_at_random_moments_lose_nothing_and_change_no_bit(faults: ModuleType, tmp_path: Path) -> None:
    """The campaign asserts: bits equal, and at most one chunk per worker repeated for every kill."""
    campaign = faults.Campaign(tmp_path, seed=3)
    campaign.kills(2)
    assert campaign.faults.total() == 2
    assert set(campaign.faults) <= {"driver killed", "worker killed"}
    assert len(campaign.chunks) == 32

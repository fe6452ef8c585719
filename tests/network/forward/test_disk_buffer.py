"""Data that are larger than memory: examples and values at the cut lie in a temporary file, and no bit changes."""

import errno
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from testkit.networks import NETWORKS
from torch import Tensor, nn

import shaprune as sp
from shaprune.network.batches import tensors
from shaprune.network.disk_buffer import join_batches
from shaprune.network.forward.calibration import Calibration

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, ours alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def spilled(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on nothing stays in memory; batches of rows are as large as before."""

    def begin() -> None:
        for module in ("calibration", "row_runner"):
            monkeypatch.setattr(f"shaprune.network.forward.{module}.MEMORY_PARTS", 1 << 60)

    return begin


def loader(n: int, batch: int = 64) -> Iterator[dict[str, Any]]:
    """Batches that nobody keeps."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, n, batch):
        size = min(batch, n - start)
        yield {"x": torch.randn(size, 3, 8, 8, generator=generator), "labels": torch.arange(start, start + size) % 5}


class Named(nn.Module):
    """A network of the tests that takes keywords."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = NETWORKS[name][0]()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def is_mapped(tensor: Tensor) -> bool:
    return any(
        f"{tensor.data_ptr():x}" == line.split("-")[0] for line in Path("/proc/self/maps").read_text().split("\n")
    )


@pytest.mark.parametrize("worth", ["cross_entropy", "fidelity", "perplexity"])
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_no_bit_depends_on_where_the_data_lie(
    name: str, worth: str, spilled: Callable[[], None], temporary: Path
) -> None:
    shape = NETWORKS[name][1]().shape[1:]
    model = Named(name).eval()
    data = [{**batch, "x": batch["x"].expand(-1, 3, 8, 8)[:, : shape[0]]} for batch in loader(300)]
    players = sp.find_players(model, {"x": data[0]["x"][:2]})
    found = []
    for _ in range(2):
        few: dict[str, Any] = {} if worth != "perplexity" else {"max_evaluations": 20_000}
        scores = sp.score(model, players, iter(data), worth, progress=False, **few)
        found.append([(v.value.tolist(), v.stderr.tolist(), v.n_evaluations) for v in scores.values()])
        spilled()
    assert found[0] == found[1]
    assert list(temporary.iterdir()) == []


def test_examples_outputs_and_values_at_the_cut_lie_in_files(spilled: Callable[[], None]) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    model = Named("plain").eval()
    players = sp.find_players(model, {"x": torch.randn(2, 3, 8, 8)})
    spilled()
    game = sp.NetworkGame(model, players, loader(1_000), "cross_entropy", "net.conv2")
    game(torch.ones(1, game.n_players).bool().numpy())
    cached = tensors(game.evaluator.rows._cache)
    for tensor in (game.calibration.inputs["x"], game.calibration.outputs, game.calibration.targets, *cached):
        assert tensor is not None
        assert is_mapped(tensor)
    part = game.calibration.part(torch.arange(700).numpy())
    assert is_mapped(part.outputs)
    assert torch.equal(part.rows(torch.tensor([3, 3]))["x"], game.calibration.rows(torch.tensor([3, 3]))["x"])
    for sent, ours in zip(tensors(pickle.loads(pickle.dumps(part.state()))), tensors(part.state()), strict=True):
        assert torch.equal(sent, ours)  # as workers get it


def test_batches_of_any_structure_are_joined_alike(temporary: Path) -> None:
    batches = [
        {"a": torch.randn(n, 2), "b": (torch.arange(n), [torch.randn(n, 3, 1).bfloat16(), torch.ones(n).bool()])}
        for n in (3, 1, 4)
    ]
    batches[1] = dict(reversed(batches[1].items()))
    batches.append({"a": torch.randn(2, 4)[:, ::2], "b": batches[0]["b"]})
    inside = join_batches(iter(batches))
    for bound in (0, 100, 1 << 20):
        mapped = join_batches(iter(batches), bound)
        assert list(mapped) == ["a", "b"]
        for one, other in zip(tensors(mapped), tensors(inside), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
    nothing = join_batches([torch.zeros(2, 0), torch.zeros(3, 0)], -1)
    assert nothing.shape == (5, 0)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "second", [torch.zeros(2, 4), torch.zeros(2, 3).double(), {"x": torch.zeros(2, 3)}, torch.tensor(1.0)], ids=str
)
@pytest.mark.parametrize("bound", [0, None])
def test_batches_that_do_not_fit_together_are_refused(second: Any, bound: int | None) -> None:
    if bound is None and isinstance(second, Tensor) and second.dtype == torch.float64:
        return  # torch joins these
    with pytest.raises(sp.InputError, match="do not fit together"):
        join_batches([{"x": torch.zeros(2, 3)}, second if isinstance(second, dict) else {"x": second}, {}], bound)


def test_an_error_of_the_loader_stays_its_own_and_leaves_nothing(spilled: Callable[[], None], temporary: Path) -> None:
    def failing() -> Iterator[Any]:
        yield from loader(100)
        raise OSError(errno.EIO, "the loader's own")

    spilled()
    with pytest.raises(OSError, match="the loader's own"):
        Calibration(Named("plain").eval(), failing())
    assert list(temporary.iterdir()) == []


def test_a_full_disk_names_the_folder_and_the_way_out(
    spilled: Callable[[], None], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None: ...

    spilled()
    monkeypatch.setattr("shaprune.network.disk_buffer._unnamed", Full)
    with pytest.raises(sp.InputError, match=f"do not go into {temporary} .No space left.*set TMPDIR .* max_memory"):
        Calibration(Named("plain").eval(), loader(100))


LARGE = """
import resource, torch
import shaprune as sp

torch.set_num_threads(1)
MiB = 1 << 20
model = torch.nn.Sequential(torch.nn.Linear(1024, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).eval()
players = sp.find_players(model, torch.zeros(2, 1024))
sp.score(model, players, [torch.ones(4, 1024)], "fidelity", progress=False)  # whatever is loaded late

def loader():
    for i in range(256):
        yield torch.full((256, 1024), float(i % 7))  # 1 MiB

now = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (now + 100 * MiB,) * 2)
scores = sp.score(model, players, loader(), "fidelity", max_evaluations=20_000, progress=False,
                  options=sp.options.Scoring(max_memory=32 * MiB, window=(0, 1)))
print(sum(len(v.value) for v in scores.values()), "players")
try:
    torch.cat(list(loader()))
except (RuntimeError, MemoryError):
    print("too large for memory")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit counts private memory only on Linux")
def test_a_data_set_larger_than_memory_is_scored(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.splitlines() == ["8 players", "too large for memory"], done.stderr
    assert list(tmp_path.iterdir()) == []

"""Only what shaprune wrote is replaced, and a folder that is replaced is never missing."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from inspect import getsource
from pathlib import Path

import numpy as np
import pytest
import torch
from testkit.networks import NETWORKS, labelled

import shaprune as sp
from shaprune.runs.lock import hold_run
from shaprune.storage import atomic_files
from shaprune.storage.atomic_files import check_free, check_replaceable, read_json, replacing_directory
from shaprune.storage.schema import head
from shaprune.storage.swap_paths import exchange
from shaprune.values.games.logged import LoggedGame

MAKE, EXAMPLE = NETWORKS["mlp"]
FILES = ("plan.json", "model/weights.bin", "model/manifest.json")
Content = dict[str, str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that `fill` wrote."""
    with replacing_directory(tmp_path / "out", files=FILES) as beside:
        fill(beside, "old")
    return tmp_path / "out"


def fill(folder: Path, text: str) -> None:
    (folder / "model").mkdir()
    (folder / "plan.json").write_text(json.dumps({**head("plan"), "text": text}))
    (folder / "model" / "manifest.json").write_text(json.dumps(head("manifest"), indent=2))
    (folder / "model" / "weights.bin").write_text(text)


def replace(folder: Path) -> None:
    with replacing_directory(folder, files=FILES, overwrite=True) as beside:
        fill(beside, "new")


def content(folder: Path) -> Content:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def saved() -> tuple[torch.nn.Module, sp.Plan]:
    model = MAKE().eval()
    players = sp.find_players(model, EXAMPLE())
    plan = sp.Plan.from_coalition(players, np.arange(players.n) % 4 > 0)
    return sp.prune(model, plan, EXAMPLE()), plan


def test_a_folder_of_ours_is_replaced_and_a_link_to_it_stays_a_link(folder: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    replace(link)
    assert content(folder)["model/weights.bin"] == "new"
    assert link.is_symlink()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["link", "out"]


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (lambda f: (f / "train.py").write_text("years of work"), "'train.py'"),
        (lambda f: (f / "src").mkdir(), "'src'"),
        (lambda f: (f / "model" / "notes.txt").write_text("mine"), "'model/notes.txt'"),
        (lambda f: (f / "plan.json").write_text('{"kind": "plan of a house"}'), "'plan.json'"),
        (lambda f: (f / "model" / "manifest.json").write_text('{"manifest_version": 3}'), "'model/weights.bin'"),
        (lambda f: (f / "model" / "manifest.json").unlink(), "'model/weights.bin'"),
        (lambda f: ((f / "plan.json").unlink(), (f / "plan.json").symlink_to("/etc/hostname")), "'plan.json'"),
        (lambda f: (f / ".hidden").write_text("mine"), "'.hidden'"),
    ],
)
def test_a_folder_with_anything_else_in_it_is_refused_naming_it(
    folder: Path, write: Callable[[Path], object], named: str
) -> None:
    write(folder)
    before = content(folder)
    with pytest.raises(sp.InputError, match=named):
        replace(folder)
    assert content(folder) == before


def test_what_comes_into_the_folder_during_the_work_is_kept(folder: Path) -> None:
    def work() -> None:
        with replacing_directory(folder, files=FILES, overwrite=True) as beside:
            fill(beside, "new")
            (folder / "late.txt").write_text("mine")

    with pytest.raises(sp.InputError, match=r"late\.txt"):
        work()
    assert content(folder)["late.txt"] == "mine"
    assert content(folder)["model/weights.bin"] == "old"


def test_save_from_python_refuses_the_folders_of_others(tmp_path: Path) -> None:
    small, plan = saved()
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"somebody's only copy")
    with pytest.raises(sp.InputError, match=r"'model\.safetensors'"):
        sp.save(small, plan, weights, overwrite=True)
    assert (weights / "model.safetensors").read_bytes() == b"somebody's only copy"
    sp.save(small, plan, tmp_path / "small")
    sp.save(small, plan, tmp_path / "small", overwrite=True)


@pytest.mark.parametrize("kind", ["plan", "values", "curves", "log", "export", "run", "driver"])
def test_a_file_that_was_not_written_by_shaprune_is_never_replaced(tmp_path: Path, kind: str) -> None:
    model = MAKE().eval()
    players = sp.find_players(model, EXAMPLE())
    data = [labelled(EXAMPLE(), 8)]
    path = tmp_path / {"export": "net.pt2", "run": "values.json", "driver": "driver.json"}.get(kind, "file.json")
    path.write_text('{"mine": "this is"}')

    def write() -> None:
        if kind == "plan":
            saved()[1].save(path)
        elif kind == "values":
            sp.Scores(players, {}, "accuracy").save(path)
        elif kind == "curves":
            scores = sp.score(model, players, data, method="weight_norm")
            sp.sensitivity(model, players, scores, data).save(path)
        elif kind == "log":
            LoggedGame(sp.Game.from_function(lambda kept: kept.sum(1), 3)).save(path)
        elif kind == "export":
            sp.export(model, EXAMPLE(), path, overwrite=True)
        elif kind == "run":
            sp.score(model, players, data, run=tmp_path, progress=False)
        else:
            with hold_run(tmp_path):
                pass

    with pytest.raises(sp.InputError, match="not recognised as written by shaprune"):
        write()
    assert path.read_text() == '{"mine": "this is"}'
    path.write_bytes(b"")  # nothing is lost
    if kind not in ("export", "run"):
        write()
        write()


KILLED = """
import json, os, sys
from pathlib import Path
from shaprune.storage import atomic_files
from shaprune.storage.atomic_files import replacing_directory
from shaprune.storage.schema import head

steps = int(sys.argv[2])
swap = sys.argv[3] == "swap"

def counted(function):
    def call(*args, **options):
        global steps
        steps -= 1
        if steps < 0:
            os._exit(9)
        return function(*args, **options)
    return call

Path.rename = counted(Path.rename)
atomic_files.exchange = counted(atomic_files.exchange if swap else lambda one, other: False)
atomic_files.shutil.rmtree = counted(atomic_files.shutil.rmtree)
"""


@pytest.mark.parametrize("way", ["swap", "two renames"])
@pytest.mark.parametrize("steps", range(6))
def test_killed_between_any_two_steps_the_old_or_the_new_is_there(folder: Path, way: str, steps: int) -> None:
    if way == "swap" and not can_swap(folder.parent):
        pytest.skip("this file system cannot swap two folders in one step")
    code = f"{KILLED}\nFILES = {FILES}\n{getsource(fill)}\n{getsource(replace)}\nreplace(Path(sys.argv[1]))"
    arguments = [str(folder), str(steps), way.split()[0]]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False)
    assert done.returncode == (9 if steps < (4 if way == "swap" else 5) else 0)
    if way == "swap":
        assert folder.is_dir()  # at any moment
    assert read_json(folder / "plan.json")["text"] in ("old", "new")
    found = content(folder)
    assert found["model/weights.bin"] == json.loads(found["plan.json"])["text"]
    replace(folder)
    assert content(folder)["model/weights.bin"] == "new"


def can_swap(folder: Path) -> bool:
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    able = exchange(folder / "one", folder / "two")
    (folder / "one").rmdir()
    (folder / "two").rmdir()
    return able


@pytest.mark.parametrize("way", ["swap", "two renames"])
def test_a_failure_between_any_two_steps_keeps_the_old(folder: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    renamed = []
    rename = Path.rename

    def fails_once(self: Path, target: Path) -> Path:
        if self.name.startswith(f".{folder.name}.") and not renamed:
            renamed.append(self)
            raise OSError(errno.EIO, "no luck")
        return rename(self, target)

    def cannot(one: Path, other: Path) -> bool:
        if way == "swap":
            raise OSError(errno.EIO, "no luck")
        return False

    monkeypatch.setattr(Path, "rename", fails_once)
    monkeypatch.setattr(atomic_files, "exchange", cannot)
    with pytest.raises(sp.InputError, match="no luck; nothing was written or lost"):
        replace(folder)
    assert content(folder)["model/weights.bin"] == "old"
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_a_swap_that_is_not_possible_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with suppress(FileNotFoundError):
        assert not exchange(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one").is_dir()


def test_checks_name_the_folder_and_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(sp.InputError, match="file exists and is a file"):
        check_free(tmp_path / "file", overwrite=True)
    with pytest.raises(sp.InputError, match="file exists and is not recognised"):
        check_replaceable(tmp_path / "file")
    check_replaceable(tmp_path / "nothing")
    check_free(tmp_path / "nothing")

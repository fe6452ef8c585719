"""Files that shaprune wrote, recognised by what they begin with: only these are ever replaced."""

from __future__ import annotations

import mmap
import re
import zipfile
from collections.abc import Collection
from pathlib import Path

MARK = "written by shaprune"  # somewhere in files of ONNX and of torch.export
GENERATOR = '<meta name="generator" content="shaprune">'  # in the head of a web page
KINDS = (
    "plan",
    "values",
    "manifest",
    "sensitivity",
    "frontier",
    "players",
    "evaluation",
    "measurements",
    "oracle",
    "curves",
    "command",
    "driver",
)
MARKED = (".onnx", ".pt2")
HEADED = (".json", ".html")  # files that always have a head
CSV = b"group,player,value,stderr,samples"
_KEY = rb'\s*"(?:schema"\s*:\s*\d+|kind"\s*:\s*"(?:' + "|".join(KINDS).encode() + rb')")\s*'
_HEAD = re.compile(rb"\s*\{" + _KEY + rb"," + _KEY + rb"[,}]")
_LOG = {"about.npy", "coalitions.npy", "worths.npy"}  # what a log of worths holds


def is_own_file(path: Path) -> bool:
    """Whether a file has a head that shaprune writes, or is empty; a link never has."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(1 << 12)
        if not head or _HEAD.match(head) or head.startswith(CSV):
            return True
        if path.suffix not in MARKED:
            return GENERATOR.encode() in head or (head.startswith(b"PK") and _names(path) >= _LOG)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(MARK.encode()) >= 0


def find_foreign_files(folder: str | Path, files: Collection[str]) -> list[str]:
    """Return what stands in ``folder`` and was not written there by shaprune, as paths inside it.

    Args:
        folder: an existing folder.
        files: what is written there, as paths inside it. A file without a head (weights, a figure) counts where one
            with a head stands beside it.
    """
    folder = Path(folder)
    parents = {parent.as_posix() for file in files for parent in Path(file).parents}
    strange, without, headed = list[str](), list[str](), False
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and path.name in parents:
            below = [file.partition("/")[2] for file in files if file.startswith(f"{path.name}/")]
            strange += [f"{path.name}/{inside}" for inside in find_foreign_files(path, below)]
        elif path.is_symlink() or path.name not in files:
            strange.append(path.name)
        elif is_own_file(path):
            headed = True
        else:
            (strange if path.suffix in HEADED else without).append(path.name)
    return strange if headed else strange + without


def foreign_names(strange: Collection[str]) -> str:
    """The first of these names, for a message."""
    first = ", ".join(map(repr, list(strange)[:3]))
    return f"{first} and {len(strange) - 3} more" if len(strange) > 3 else first


def _names(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return set()

"""Output paths of commands: a new or empty folder, or one that holds only files that shaprune wrote."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from shaprune.cli.command import as_usage_error
from shaprune.errors import InputError
from shaprune.storage.atomic_files import check_free, check_replaceable

MODEL_FILES = ("model.safetensors", "manifest.json")


def check_out(out: Path, files: Collection[str], *, overwrite: bool) -> None:
    """Refuse a folder that may not be written, before any work.

    Args:
        out: the folder.
        files: what the command writes, as paths inside it.
        overwrite: a folder that holds such files only may be replaced.
    """
    with as_usage_error("--out"):
        check_free(out, files=files, overwrite=True)  # what could not be replaced either
        if not overwrite and out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out} exists and is not empty; choose another folder, or add --overwrite")


def check_out_file(out: Path, *, overwrite: bool) -> None:
    """Refuse a file that may not be written, before any work."""
    with as_usage_error("--out"):
        if out.is_dir():
            raise InputError(f"{out} is a folder; name a file or another folder")
        if out.exists() and not overwrite:
            raise InputError(f"{out} exists; choose another name, or add --overwrite")
        check_replaceable(out)
        if not out.parent.is_dir():
            raise InputError(f"{out.parent} is no folder; make it first")

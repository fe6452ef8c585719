"""Files that are never half written: write beside, then rename."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shaprune.errors import InputError


def write_text(path: str | Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step.

    Raises:
        InputError: the folder is missing or cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step.

    Raises:
        InputError: the folder is missing or cannot be written.
    """
    with new_file(path) as beside:
        beside.write_bytes(content)


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Fill a file beside ``path``, with the same ending, then rename it to ``path``; a failure leaves nothing new.

    Raises:
        InputError: the folder is missing or cannot be written, or its disk is full.
    """
    path = Path(path)
    beside: Path | None = None
    try:
        fresh = path.parent / f".{path.name}.{secrets.token_hex(4)}{path.suffix}"
        mode = _created(fresh)
        beside = fresh
        beside.chmod(0o600)
        yield beside
        beside.chmod(mode)
        beside.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: missing, unreadable, or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is no complete JSON file: {error}") from error


@contextmanager
def new_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill a folder beside ``path``, then rename it to ``path``; on any failure nothing is left and nothing is lost.

    Raises:
        InputError: ``path`` exists (and is not empty) without ``overwrite``, or it cannot be written, or its disk is
            full.
    """
    path = Path(path)
    check_free(path, overwrite=overwrite)
    try:
        with _filled(path) as beside:
            yield beside
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}; nothing was written or lost, choose another folder"
        ) from error


@contextmanager
def _filled(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = beside.with_name(beside.name + ".old")
    try:
        yield beside
        mode = _mode_in(beside)
        for file in beside.rglob("*"):  # safetensors writes files that only their owner can read
            if file.is_file():
                file.chmod(mode)
        beside.chmod(mode | (mode & 0o444) >> 2)  # who may read may enter
        if path.exists():
            path.rename(old)
        beside.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_free(path: str | Path, *, overwrite: bool = False) -> None:
    """Check that a folder may be written at ``path``.

    Raises:
        InputError: it is a file, or a folder with something in it and ``overwrite`` is not set.
    """
    path = Path(path)
    if path.is_dir():
        if any(path.iterdir()) and not overwrite:
            raise InputError(f"{path} exists and is not empty; choose another folder, or overwrite it explicitly")
    elif path.exists():
        raise InputError(f"{path} exists and is a file; choose another folder")


def foreign(folder: str | Path, files: Collection[str]) -> str | None:
    """Return something in ``folder`` that is none of ``files`` (paths inside it), or None: then it may be replaced."""
    folder = Path(folder)
    parents = {parent.as_posix() for file in files for parent in Path(file).parents}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        if path.is_symlink() or inside not in (parents if path.is_dir() else files):
            return inside
    return None


def _created(path: Path) -> int:
    """Create an empty file with the permissions that the umask of this process leaves, and return them.

    The umask itself cannot be read without setting it, which other threads would meet.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _mode_in(folder: Path) -> int:
    """Return the permissions that a new file in ``folder`` has."""
    probe = folder / f".{secrets.token_hex(4)}"
    try:
        return _created(probe)
    finally:
        probe.unlink(missing_ok=True)

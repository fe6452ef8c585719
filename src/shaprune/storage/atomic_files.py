"""Files that are never half written: write beside, then rename."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shaprune.errors import InputError, ShapruneWarning
from shaprune.storage.own_files import find_foreign_files, foreign_names, is_own_file
from shaprune.storage.swap_paths import exchange

OLD = ".shaprune-old"  # ending of a folder that is being replaced, where two folders cannot change places in one step


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
    with replacing_file(path) as beside:
        beside.write_bytes(content)


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
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
    restore(Path(path).parent)
    content = read_file(path)
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no complete JSON file: {error}") from error


def read_file(path: str | Path, most: int | None = None) -> bytes:
    """Read a file; a pipe or a device, which may never end, is none.

    Raises:
        InputError: missing, no file, unreadable, or longer than ``most`` bytes.
    """
    try:
        with open(path, "rb", opener=_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{path} is no file but a pipe or a device; name a file")
            if most is not None and found.st_size > most:
                raise InputError(f"{path} is longer than {most:,} bytes; is it another file?")
            return file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def replacing_directory(path: str | Path, *, files: Collection[str] = (), overwrite: bool = False) -> Iterator[Path]:
    """Fill a folder beside ``path``, then put it in place; on any failure nothing is left and nothing is lost.

    A folder that is replaced is there until the new one is: the two change places in one step. Where the file system
    cannot do that, a process that is killed between the two steps leaves the old folder beside, and whichever call
    reads or writes ``path`` next puts it back.

    Args:
        path: a link to a folder is followed.
        files: what is written, as paths inside the folder.
        overwrite: replace a folder that holds nothing but such files, written by shaprune.

    Raises:
        InputError: ``path`` exists (and is not empty) without ``overwrite`` or with something else in it, or it cannot
            be written, or its disk is full.
    """
    place = Path(path).resolve()
    check_free(place, files=files, overwrite=overwrite)
    try:
        with _filled(place, files, overwrite=overwrite) as beside:
            yield beside
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}; nothing was written or lost, choose another folder"
        ) from error


@contextmanager
def _filled(path: Path, files: Collection[str], *, overwrite: bool) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = beside.with_name(beside.name + OLD)
    try:
        yield beside
        mode = _mode_in(beside)
        for file in beside.rglob("*"):  # safetensors writes files that only their owner can read
            if file.is_file():
                file.chmod(mode)
        beside.chmod(mode | (mode & 0o444) >> 2)  # who may read may enter
        check_free(path, files=files, overwrite=overwrite)  # filling may have taken hours
        _put(beside, path, old)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        if old.exists():
            _discard(old, files)
        shutil.rmtree(beside, ignore_errors=True)


def _put(beside: Path, path: Path, old: Path) -> None:
    """Put ``beside`` in place of ``path``, and what was there at ``old``."""
    if not path.exists():
        beside.rename(path)
    elif exchange(beside, path):
        beside.rename(old)
    else:
        path.rename(old)
        beside.rename(path)


def _discard(old: Path, files: Collection[str]) -> None:
    """Remove a folder that has been replaced, unless something else has got into it."""
    strange = find_foreign_files(old, files)
    if strange:
        warnings.warn(
            f"{foreign_names(strange)} came into the folder while it was being replaced; it is kept in {old}",
            ShapruneWarning,
            stacklevel=5,
        )
    else:
        shutil.rmtree(old, ignore_errors=True)


def restore(path: str | Path) -> None:
    """Put a folder back that was being replaced when the process was killed, see `replacing_directory`."""
    path = Path(path)
    if path.exists() or not path.name:
        return
    with suppress(OSError):
        left = [old for old in path.parent.glob(f".{_plain(path.name)}.*{OLD}") if old.is_dir()]
        if left:
            max(left, key=lambda old: old.stat().st_mtime_ns).rename(path)


def _plain(name: str) -> str:
    """A name as a pattern that matches it only."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def check_free(path: str | Path, *, files: Collection[str] = (), overwrite: bool = False) -> None:
    """Check that a folder may be written at ``path``.

    Args:
        path: the folder.
        files: what is written, as paths inside it.
        overwrite: a folder that holds nothing but such files, written by shaprune, may be replaced.

    Raises:
        InputError: it is a file, or a folder with something in it that may not be replaced.
    """
    path = Path(path)
    restore(path)
    if not path.is_dir():
        if path.exists() or path.is_symlink():
            raise InputError(f"{path} exists and is a file; choose another folder")
        return
    try:
        strange = find_foreign_files(path, files)
        used = any(path.iterdir())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; choose another folder") from error
    if used and not overwrite:
        raise InputError(f"{path} exists and is not empty; choose another folder, or overwrite it explicitly")
    if strange:
        raise InputError(
            f"{path} holds {foreign_names(strange)}, not recognised as written there by shaprune, and only what "
            "it wrote is replaced; choose another folder"
        )


def check_replaceable(path: str | Path) -> None:
    """Check that a file is not there, is empty, or was written by shaprune.

    Raises:
        InputError: it is something else.
    """
    path = Path(path)
    try:
        if path.exists() and not is_own_file(path):
            raise InputError(
                f"{path} exists and is not recognised as written by shaprune, and only what it wrote is replaced; "
                "choose another name"
            )
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; choose another name") from error


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

"""``shaprune doctor``: the environment, what is wrong with it, and the next step."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

from shaprune.cli.command import Outcome, command, say

if TYPE_CHECKING:
    from rich.table import Table

    from shaprune.cli.environment import Finding, Package


@command
def doctor() -> Outcome:
    """Look at the environment: versions, extras, threads, GPUs; what is wrong, and the next step.

    Exit code 1 where something is wrong. Extras that are absent are listed, not wrong.

    Example: shaprune doctor
    """
    from shaprune.cli.environment import Finding, checked, requirements, version_of

    problems: list[Finding] = []
    say("importing every package that is installed ...")
    try:
        needs = requirements()
    except metadata.PackageNotFoundError:
        needs = {"": []}
        problems.append(Finding("shaprune itself is not installed", "pip install shaprune, or make install in a clone"))
    core = [checked(need) for need in needs.pop("")]
    extras = {extra: [checked(need) for need in some] for extra, some in needs.items()}
    problems += [_wrong(p, f"pip install --upgrade '{p.name}{p.wanted}'") for p in core if not p.usable]
    for extra, some in extras.items():
        problems += [_wrong(p, f"pip install --upgrade 'shaprune[{extra}]'") for p in some if p.trouble is not None]
    machine, hints = _machine()
    about = {
        "shaprune": version_of("shaprune"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **machine,
    }
    states = {extra: _state(some) for extra, some in extras.items()}
    data = about | {
        "dependencies": [asdict(p) for p in core],
        "extras": {
            extra: {"state": states[extra], "install": _install(extra), "packages": [asdict(p) for p in some]}
            for extra, some in extras.items()
        },
        "problems": [asdict(f) for f in problems],
        "hints": [asdict(f) for f in hints],
    }
    shown = (_about(about), _packages(core), _extras(extras, states), _machine_text(problems, hints))
    return Outcome(data, shown, code=1 if problems else 0)


def _machine() -> tuple[dict[str, Any], list[Finding]]:
    """Threads, cores and GPUs; nothing about them where torch is missing or broken, which is reported elsewhere."""
    from shaprune.cli.environment import about_threads, cores, gpus

    hints: list[Finding | None] = []
    about: dict[str, Any] = {"cores": cores(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
    try:
        import torch
    except Exception:  # a broken torch fails in any way
        return about | {"threads": None, "gpus": []}, []
    threads = torch.get_num_threads()
    hints.append(about_threads(threads, about["cores"], os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0))
    found, trouble = gpus(torch)
    hints.append(trouble)
    about |= {"threads": threads, "gpus": [asdict(gpu) for gpu in found]}
    return about, [hint for hint in hints if hint is not None]


def _wrong(package: Package, step: str) -> Finding:
    from shaprune.cli.environment import Finding

    told = package.trouble or f"missing, and {package.wanted or 'any version'} is needed"
    return Finding(f"{package.name}: {told}", step)


def _install(extra: str) -> str:
    return f"pip install 'shaprune[{extra}]'"


def _state(packages: list[Package]) -> str:
    usable = [p.usable for p in packages]
    if any(p.trouble for p in packages):
        return "broken"
    return "present" if all(usable) else "partly" if any(usable) else "absent"


def _about(about: dict[str, Any]) -> Table:
    from shaprune.cli.tables import text_table

    told = dict(about)
    told["gpus"] = ", ".join(f"{gpu['name']}, {gpu['memory'] / 2**30:.0f} GiB" for gpu in about["gpus"]) or "none"
    return text_table(("environment", ""), [(name, "not set" if v is None else str(v)) for name, v in told.items()])


def _packages(core: list[Package]) -> Table:
    from shaprune.cli.tables import text_table

    rows = [(p.name, p.wanted, p.installed or "missing", "ok" if p.usable else "wrong") for p in core]
    return text_table(("dependency", "needed", "installed", ""), rows)


def _extras(extras: dict[str, list[Package]], states: dict[str, str]) -> Table:
    from shaprune.cli.tables import text_table

    rows = [
        (
            extra,
            ", ".join(f"{p.name} {p.installed or '-'}" for p in some),
            states[extra],
            "" if states[extra] == "present" else _install(extra),
        )
        for extra, some in extras.items()
    ]
    return text_table(("extra", "packages", "", "to install"), rows)


def _machine_text(problems: list[Finding], hints: list[Finding]) -> str:
    lines = [f"wrong: {f.what}\n  next: {f.next}" for f in problems] + [f"{f.what}\n  next: {f.next}" for f in hints]
    return "\n".join(lines) if lines else "Nothing is wrong."

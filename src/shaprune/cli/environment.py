"""Report on the environment: packages against the requirements of shaprune, threads, GPUs. Imports no torch."""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement

FOR_DEVELOPERS = ("dev", "docs")  # extras that no user needs
MODULES = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}


@dataclass(frozen=True)
class Finding:
    """Something that is wrong or could be better, and the next step."""

    what: str
    next: str


@dataclass(frozen=True)
class Package:
    """A package that shaprune needs or can use.

    Attributes:
        name, wanted: the requirement, such as ``torch`` and ``>=2.4``.
        installed: the version that is there; None = none.
        trouble: why what is there cannot be used; None = it can be.
    """

    name: str
    wanted: str
    installed: str | None
    trouble: str | None = None

    @property
    def usable(self) -> bool:
        """Whether it is there, new enough, and can be imported."""
        return self.installed is not None and self.trouble is None


def requirements() -> dict[str, list[Requirement]]:
    """What the installed shaprune asks for, by extra; ``""`` = what it cannot do without.

    Raises:
        importlib.metadata.PackageNotFoundError: shaprune is not installed.
    """
    found: dict[str, list[Requirement]] = {"": []}
    extras = [e for e in metadata.metadata("shaprune").get_all("Provides-Extra") or () if e not in FOR_DEVELOPERS]
    found |= {extra: [] for extra in sorted(extras)}
    for text in metadata.requires("shaprune") or ():
        need = Requirement(text)
        if need.marker is None:
            found[""].append(need)
        else:
            for extra in extras:
                if need.marker.evaluate({"extra": extra}):
                    found[extra].append(need)
    return found


def version_of(name: str) -> str | None:
    """The version of a package that is installed; None = it is not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def checked(need: Requirement) -> Package:
    """Look for a package, and import it: what is broken often shows only then."""
    name, wanted, installed = need.name, str(need.specifier), version_of(need.name)
    if installed is None:
        return Package(name, wanted, None)
    if not need.specifier.contains(installed, prereleases=True):
        return Package(name, wanted, installed, f"version {installed}, and {wanted} is needed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(MODULES.get(name.lower(), name.replace("-", "_")))
    except Exception as error:  # a broken package fails in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Package(name, wanted, installed, f"installed, and cannot be imported ({type(error).__name__}: {reason})")
    return Package(name, wanted, installed)


def cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no control groups, or no quota
        return allowed


def about_threads(threads: int, available: int, busy: float) -> Finding | None:
    """What is wrong with so many threads on so many cores, of which ``busy`` are taken on average."""
    if threads > available:
        told = f"torch takes {threads} threads, and this process may use {available} cores"
        return Finding(told, f"export OMP_NUM_THREADS={available}")
    if threads > 1 and busy > available / 2:
        told = f"{busy:.1f} of {available} cores are busy; torch with {threads} threads waits for the slowest of them"
        return Finding(told, "export OMP_NUM_THREADS=1 while other work goes on, then measure again")
    return None


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    memory: int


def gpus(torch: ModuleType, driver: bool | None = None) -> tuple[Sequence[Gpu], Finding | None]:
    """GPUs that this torch can use, and what is wrong where the machine has one and torch cannot use it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return [Gpu(gpu.name, gpu.total_memory) for gpu in found], None
    if not (shutil.which("nvidia-smi") is not None if driver is None else driver):
        return [], None
    if torch.version.cuda is None:
        told = f"the machine has an NVIDIA driver, and torch {torch.__version__} was built without CUDA"
        return [], Finding(told, "install a CUDA build of torch (the selector on pytorch.org names the command)")
    why = str(said[0].message).splitlines()[0] if said else "torch sees no device"
    told = f"torch {torch.__version__} for CUDA {torch.version.cuda} cannot use the GPU: {why}"
    return [], Finding(told, "run nvidia-smi; update the driver, or install torch for an older CUDA")

"""Groups of options that only the command line has: where a network and its data are, and what is written."""

from __future__ import annotations

from dataclasses import dataclass, field

from shaprune.cli.options.report import Port, Static, Watch
from shaprune.cli.options.runs import DryRun, Log
from shaprune.cli.options.shared import (
    BatchSize,
    Cache,
    CurveExamples,
    Data,
    Device,
    Model,
    OptionalData,
    OptionalModel,
    OptionalOut,
    Overwrite,
    Pruned,
    Recover,
    RecoverExamples,
    ScoreExamples,
    Seed,
    Weights,
    WorthLog,
)
from shaprune.options.preprocessing import Preprocessing


@dataclass(frozen=True)
class Source:
    """A network, and held-out examples to look at it with."""

    model: Model
    data: Data
    weights: Weights = None
    cache: Cache = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    examples: ScoreExamples = 1_000
    seed: Seed = 0
    device: Device = None


@dataclass(frozen=True)
class Measured:
    """The network and data that plans are measured on, where they are."""

    model: OptionalModel = None
    weights: Weights = None
    data: OptionalData = None
    recover: Recover = "refit"
    examples: RecoverExamples = 1_000
    batch_size: BatchSize = 128
    cache: Cache = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    seed: Seed = 0
    device: Device = None


@dataclass(frozen=True)
class Shown:
    """The network and data that a report looks at, where it does."""

    model: OptionalModel = None
    weights: Weights = None
    data: OptionalData = None
    pruned: Pruned = None
    examples: CurveExamples = 1_000
    batch_size: BatchSize = 128
    cache: Cache = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    seed: Seed = 0
    device: Device = None


@dataclass(frozen=True)
class Page:
    """How a report is shown."""

    watch: Watch = False
    port: Port = 8711
    static: Static = False


@dataclass(frozen=True)
class Written:
    """What a scoring writes beside its values, and where."""

    out: OptionalOut = None
    overwrite: Overwrite = False
    worth_log: WorthLog = None
    log: Log = None
    dry_run: DryRun = False

    @property
    def places(self) -> list[str]:
        """Of the logs."""
        return self.log or []


@dataclass(frozen=True)
class Machine:
    """Where random numbers come from, and where the network runs."""

    seed: Seed = 0
    device: Device = None

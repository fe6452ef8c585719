"""The config of a whole run of `compress`: a YAML file that says everything, and comes back as it was written.

The keys are the keywords of `compress` (a test compares them), and in front of them what a file must name that a call
hands over: the network, the data and the folder to write.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from shaprune.errors import InputError, check_choice, nearest
from shaprune.planning.budget import Budget
from shaprune.planning.plan import ALLOCATIONS
from shaprune.storage.atomic_files import read_file

Options = dict[str, Any]
MOST_BYTES, MOST_ENTRIES, DEEPEST = 1 << 15, 10_000, 50  # of a config file
OBJECT_OPTIONS = ("optimizer",)  # options of a recovery step that are objects of a running program
FUNCTION_OPTIONS = ("augment",)  # options that are functions; a file names them, package.module:function


class RunConfig(BaseModel):
    """Everything that a run of ``shaprune compress`` depends on.

    Attributes:
        model: a network: ``package.module:factory``, or a built-in name.
        weights: its weights, a file.
        data: ``digits``, ``mnist:DIR``, ..., or ``package.module:factory``.
        cache: a folder for decoded images.
        examples: held-out examples to score and refit on; fine-tuning takes the training part.
        batch_size: examples per forward pass when latency is measured.
        out: the folder to write.
        device: where the network runs; None = cuda where there is one, else cpu.
        budget: what may stay, by name, see `Budget`.
        recover: steps in order: a name, ``{name: options}`` (``{finetune: {epochs: 5, augment: my.module:shift}}``), or
            a function of your own, ``package.module:finetune``, see `recover`.

    The others are those of `compress`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    weights: str | None = None
    data: str
    cache: str | None = None
    examples: int = Field(1_000, ge=1)
    batch_size: int = Field(128, ge=1)
    out: str = "compressed"
    device: str | None = None
    seed: int = Field(0, ge=0)

    budget: dict[str, int | float | str]
    worth: str = "fidelity"
    method: str = "permutation"
    recover: tuple[str | dict[str, Options | None], ...] = ("refit",)
    unit: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] = "channel"
    include: str | tuple[str, ...] | None = None
    exclude: str | tuple[str, ...] | None = None
    allocation: str = "global"
    min_players: int = 1
    min_width: int = 1
    round_to: int = 1
    max_removed: float | dict[str, float] = 1.0
    hf_uniform: bool = False
    rounds: int = 1
    schedule: str = "geometric"
    metric: str = "accuracy"
    sizes: tuple[float, float] = (0.5, 1.0)
    max_evaluations: int | None = None
    max_memory: ByteSize = ByteSize(1 << 30)
    precision: Literal["auto", "float32", "bfloat16", "bfloat16-channels-last"] = "float32"

    @field_validator("budget")
    @classmethod
    def _check_budget(cls, limits: dict[str, int | float | str]) -> dict[str, int | float | str]:
        for name in limits:
            check_choice("budget", name, [field.name for field in dataclasses.fields(Budget)])
        Budget(**limits)  # type: ignore[arg-type]  # it says what is wrong with a value
        return limits

    @field_validator("worth", "metric")
    @classmethod
    def _check_worth(cls, name: str) -> str:
        from shaprune.network.game.worths import WORTHS

        check_choice("worth", name, WORTHS)
        return name

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, name: str) -> str:
        from shaprune.pipeline.rounds import SCHEDULES

        check_choice("schedule", name, SCHEDULES)
        return name

    @field_validator("allocation")
    @classmethod
    def _check_allocation(cls, name: str) -> str:
        check_choice("allocation", name, ALLOCATIONS)
        return name

    @field_validator("recover", mode="before")
    @classmethod
    def _check_recover(cls, steps: Any) -> Any:
        if not isinstance(steps, Sequence) or isinstance(steps, str):
            raise InputError(f"it is {steps!r}; give a list of steps, such as [refit, {{finetune: {{epochs: 5}}}}]")
        return tuple(_checked_step(step) for step in steps)

    @staticmethod
    def of(keys: Mapping[str, Any], where: str = "the config") -> RunConfig:
        """A config of these keys.

        Raises:
            InputError: an unknown key (with the nearest name), a missing one, or a value that cannot be used.
        """
        try:
            return RunConfig.model_validate(dict(keys))
        except ValidationError as error:
            raise InputError(f"{where}: {_first_error(error)}") from error

    def to_yaml(self) -> str:
        """The config as YAML, every key written out; `of` and `read_keys` bring the same config back."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))

    def budget_limits(self) -> Budget:
        """The budget."""
        return Budget(**self.budget)  # type: ignore[arg-type]

    def steps(self, named: Callable[[str], Any]) -> tuple[Any, ...]:
        """The recovery steps; ``named("package.module:function")`` finds functions of the user's own."""
        from shaprune.recovery.steps import STEPS

        made: list[Any] = []
        for step in self.recover:
            if isinstance(step, str):
                made.append(step if step in STEPS else named(step))
            else:
                for name, options in step.items():
                    found = {
                        key: named(value) if key in FUNCTION_OPTIONS else value
                        for key, value in (options or {}).items()
                    }
                    made.append(STEPS[name](**found))
        return tuple(made)


def read_keys(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML file, not checked yet.

    Raises:
        InputError: it cannot be read, is no YAML mapping, has a key twice, or more entries than a config can have.
    """
    text = read_file(path, MOST_BYTES)
    try:
        loader = _Loader(text.decode())
        node = loader.get_single_node()
        entries = 0 if node is None else _entries(node, {})
        if entries > MOST_ENTRIES:
            raise InputError(f"{path} has more than {MOST_ENTRIES:,} entries, aliases counted; is it another file?")
        found = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InputError(f"{path} holds no keys; write lines such as 'model: package.module:factory'")
    return found


def _entries(node: yaml.Node, known: dict[int, int]) -> int:
    """Entries below a node, those behind an alias counted wherever they stand."""
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.composer.ComposerError(None, None, "an alias stands inside what it names", node.start_mark)
        return known[id(node)]
    known[id(node)] = 0  # under way
    inside = [] if isinstance(node, yaml.ScalarNode) else node.value
    parts = [part for entry in inside for part in (entry if isinstance(entry, tuple) else (entry,))]
    known[id(node)] = 1 + sum(_entries(part, known) for part in parts)
    return known[id(node)]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml carries no annotations
    """YAML without tags; a key that comes twice is an error, not the last one's victory."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        self.depth += 1
        if self.depth > DEEPEST:
            where = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"more than {DEEPEST} levels inside each other", where)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        met = set()
        for part, _ in node.value:
            key = self.construct_object(part, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", part.start_mark)
            if key in met:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} comes twice", node.start_mark)
            met.add(key)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return found


def _checked_step(step: Any) -> Any:
    """A step whose name and options are known, its options converted."""
    from shaprune.recovery.steps import STEPS

    if isinstance(step, str):
        if ":" not in step:
            check_choice("recovery step", step, STEPS)
        return step
    if not isinstance(step, Mapping) or len(step) != 1:
        raise InputError(f"{step!r} is no step; give a name, {{name: options}} or package.module:function")
    ((name, options),) = step.items()
    check_choice("recovery step", name, STEPS)
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"the options of {name} are {options!r}; give names and values, such as {{epochs: 5}}")
    kind: Any = STEPS[name]
    hints = {key: hint for key, hint in get_type_hints(kind).items() if key not in OBJECT_OPTIONS}
    checked = {}
    for key, value in (options or {}).items():
        check_choice(f"option of {name}", key, hints)
        if key in FUNCTION_OPTIONS:
            if not isinstance(value, str) or ":" not in value:
                raise InputError(f"{name}: {key} is {value!r}; name a function, package.module:function")
            checked[key] = value
            continue
        try:
            checked[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            raise InputError(f"{name}: {key}: {error.errors()[0]['msg']}") from error
    kind(
        **{key: value for key, value in checked.items() if key not in FUNCTION_OPTIONS}
    )  # it says what is wrong with a value
    return {name: checked}


def _first_error(error: ValidationError) -> str:
    """The first thing that is wrong, and the next step."""
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")  # often why another is missing
    key = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(key, RunConfig.model_fields)}"
    if first["type"] == "missing":
        return f"{key!r} is missing; every run needs model, data and budget"
    return f"{key}: {str(first['msg']).removeprefix('Value error, ')} (given: {first['input']!r})"

"""The config of a whole run of `compress`: a YAML file that says everything, and comes back as it was written.

Its keys are the options of `RunConfig`, flat: those of `Compression` with all groups in it, and what a file must name
that a call is given: the network, the data and the folder to write.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from shaprune.errors import InputError, check_choice, nearest
from shaprune.options.effort import effort_of
from shaprune.options.fields import Leaf, gathered, leaves, option, spread
from shaprune.options.groups import BUDGET_HELP, CRITERIA, METHODS, STEPS, WORTHS, Compression
from shaprune.options.preprocessing import Preprocessing
from shaprune.planning.budget import BUDGET_NAMES, Budget
from shaprune.storage.atomic_files import read_file

Options = dict[str, Any]
MOST_BYTES, MOST_ENTRIES, DEEPEST = 1 << 15, 10_000, 50  # of a config file
OBJECT_OPTIONS = ("optimizer",)  # options of a recovery step that are objects of a running program
FUNCTION_OPTIONS = ("augment",)  # options that are functions; a file names them, package.module:function
RENAMED = {"sizes": "window", "rounds": "cycles"}  # keys that have another name now


def steps_of(text: str) -> list[str]:
    """``"refit,finetune"`` -> ["refit", "finetune"]; ``"none"`` -> []."""
    return [] if text.strip() == "none" else [step.strip() for step in text.split(",")]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run of ``shaprune compress`` depends on.

    Attributes:
        model: a network: ``package.module:factory``, or a built-in name.
        weights: its weights, a file.
        data: ``digits``, ``mnist:DIR``, ..., or ``package.module:factory``.
        cache: a folder for decoded images.
        preprocessing: how images of ``folder:DIR`` become inputs.
        examples: held-out examples to score and refit on; fine-tuning takes the training part.
        batch_size: examples per forward pass when latency is measured.
        out: the folder to write.
        device: where the network runs; None = cuda where there is one, else cpu.
        seed: of everything random.
        budget: what may stay, by name, see `Budget`.
        worth: see `score`.
        method, recover, effort: see `compress`.
        recover: steps in order: a name, ``{name: options}`` (``{finetune: {epochs: 5, augment: my.module:shift}}``), or
            a function of your own, ``package.module:finetune``, see `recover`.
        options: the rest, see `Compression`; its batches are not of a file.
    """

    model: str = option(
        ...,
        "A network: package.module:factory (called without arguments), or a built-in name such as lenet5.",
        metavar="FACTORY",
    )
    weights: str | None = option(
        None, "Its weights: .safetensors, or .pt (a state dict, read without running code).", metavar="FILE"
    )
    data: str = option(
        ...,
        "digits, mnist:DIR, cifar10:DIR, folder:DIR (train/CLASS/, test/CLASS/) or package.module:factory.",
        metavar="DATA",
    )
    cache: str | None = option(None, "Keep decoded images here for the next run.", metavar="DIR")
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    examples: int = option(1_000, "Examples to score and refit on, from the held-out part of the data.", least=1)
    batch_size: int = option(128, "Images per forward pass when latency is measured.", least=1)
    out: str = option("compressed", "Folder to write; new or empty, unless --overwrite.", metavar="DIR")
    device: str | None = option(
        None, "Where the network runs: cpu, cuda, cuda:1.", shown="cuda where there is one, else cpu"
    )
    seed: int = option(0, "Seed of everything random.", least=0)
    budget: dict[str, Any] = option(..., BUDGET_HELP, metavar="NAME=NUMBER", repeated=True)
    worth: str = option("fidelity", f"What a coalition is judged by: {', '.join(WORTHS)}.", names=WORTHS)
    method: str | None = option(
        None,
        f"The estimator: {', '.join(METHODS)}; or a criterion to compare with: {', '.join(CRITERIA)}.",
        names=(*METHODS, *CRITERIA),
        shown="as effort says: permutation",
    )
    recover: tuple[str | dict[str, Options | None], ...] | None = option(
        None,
        f"Steps after surgery, in order: {', '.join(STEPS)}, or package.module:function of your own; or none.",
        metavar="STEPS",
        read=steps_of,
        shown="as effort says: refit",
    )
    effort: str | float = option(
        "seconds",
        "How much time it may take: seconds, minutes (two), hour, or a number of seconds; ranking, allocation and "
        "recovery follow from it, where they are not given.",
        metavar="HOW",
        read=effort_of,
        plain=str | float,
    )
    options: Compression = field(default_factory=Compression)

    @staticmethod
    def of(keys: Mapping[str, Any], where: str = "the config") -> RunConfig:
        """A config of these keys.

        Raises:
            InputError: an unknown key (with the nearest name), a missing one, or a value that cannot be used.
        """
        known = {leaf.name: leaf for leaf in leaves(RunConfig) if leaf.about is not None}
        for key in keys:
            if key not in known:
                new = f"; it is {RENAMED[key]!r} now" if key in RENAMED else nearest(key, known)
                raise InputError(f"{where}: unknown key {key!r}{new}")
        for name, leaf in known.items():
            if leaf.field.default is dataclasses.MISSING and name not in keys:
                raise InputError(f"{where}: {name!r} is missing; every run needs model, data and budget")
        found = {}
        for key, value in keys.items():
            try:
                found[key] = _checked(known[key], value)
            except InputError as error:
                raise InputError(f"{where}: {key}: {error} (given: {value!r})") from error
        try:
            return gathered(RunConfig, found)
        except InputError as error:  # of a group, which names the option
            raise InputError(f"{where}: {error}") from error

    def to_yaml(self) -> str:
        """The config as YAML, every key written out; `of` and `read_keys` bring the same config back."""
        return str(yaml.safe_dump(_plain(spread(self)), sort_keys=False, allow_unicode=True))

    def budget_limits(self) -> Budget:
        """The budget."""
        return Budget(**self.budget)

    def steps(self, named: Callable[[str], Any]) -> tuple[Any, ...] | None:
        """The recovery steps; ``named("package.module:function")`` finds functions of the user's own."""
        from shaprune.recovery.steps import STEPS as KNOWN

        if self.recover is None:
            return None
        made: list[Any] = []
        for step in self.recover:
            if isinstance(step, str):
                made.append(step if step in KNOWN else named(step))
            else:
                for name, options in step.items():
                    found = {
                        key: named(value) if key in FUNCTION_OPTIONS else value
                        for key, value in (options or {}).items()
                    }
                    made.append(KNOWN[name](**found))
        return tuple(made)


def _checked(leaf: Leaf, value: Any) -> Any:
    """The value of a key, of the type that its option has.

    Raises:
        InputError: why it cannot be used.
    """
    about, special = leaf.about, _SPECIAL.get(leaf.name)
    assert about is not None
    if special is not None:
        return special(value)
    if about.names and isinstance(value, str):
        check_choice(leaf.name, value, about.names)
    if about.read is not None and not about.repeated and isinstance(value, str):
        return about.read(value)
    hint = about.plain or leaf.hint
    try:
        found = TypeAdapter(hint).validate_python(value)
        if about.least is not None and found is not None:
            TypeAdapter(Annotated[float, Field(ge=about.least)]).validate_python(found)
    except ValidationError as error:
        raise InputError(str(error.errors()[0]["msg"])) from error
    return found


def _budget(limits: Any) -> dict[str, Any]:
    if not isinstance(limits, Mapping):
        raise InputError("it is no mapping; write {macs: 0.5}")
    for name in limits:
        check_choice("budget", name, BUDGET_NAMES)
    Budget(**limits)  # it says what is wrong with a value
    return dict(limits)


def _recover(steps: Any) -> tuple[Any, ...] | None:
    if steps is None:
        return None
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        raise InputError(f"it is {steps!r}; give a list of steps, such as [refit, {{finetune: {{epochs: 5}}}}]")
    return tuple(_checked_step(step) for step in steps)


_SPECIAL: dict[str, Callable[[Any], Any]] = {"budget": _budget, "recover": _recover, "effort": effort_of}


def _plain(value: Any) -> Any:
    """A value as YAML writes it: sequences are lists."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


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
    from shaprune.recovery.steps import STEPS as KNOWN

    if isinstance(step, str):
        if ":" not in step:
            check_choice("recovery step", step, KNOWN)
        return step
    if not isinstance(step, Mapping) or len(step) != 1:
        raise InputError(f"{step!r} is no step; give a name, {{name: options}} or package.module:function")
    ((name, options),) = step.items()
    check_choice("recovery step", name, KNOWN)
    if options is not None and not isinstance(options, Mapping):
        raise InputError(
            f"the options of {name} are {options!r}; give names and values, such as {name}: {{name: value}}"
        )
    kind: Any = KNOWN[name]
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

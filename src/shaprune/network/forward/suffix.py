"""The part of a network behind a mask: everything before it does not depend on the coalition and is computed once.

`SuffixRunner` takes a trace apart at the consumers of the masked groups. `WholeRunner` has the same interface and runs
everything, `OneByOneRunner` one coalition at a time; for models that cannot be traced, see also
`shaprune.network.forward.replay.replay_runner`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn

from shaprune.network.batches import Forward, Inputs, main_output, tensor_bytes
from shaprune.network.forward.cached_state import CachedState, SharedValue, as_environment, gather_rows
from shaprune.network.forward.incremental_linear import find_incremental_linear
from shaprune.network.forward.trace import Env, Segment, Trace, UntraceableError, has_hooks, name_if_nonfinite
from shaprune.network.hooks import hooked
from shaprune.network.removal.masks import ConsumerInputMask, MaskSite, masked


class WholeRunner:
    """Runs all of a model under masks; ``because`` says why it is not taken apart."""

    incremental_linear = None
    rows_apart = True  # whether the rows of a batch may have masks of their own

    def __init__(
        self, model: nn.Module, sites: Sequence[MaskSite], forward: Forward, because: str | None = None
    ) -> None:
        self.model, self.sites, self.forward, self.because = model, sites, forward, because

    def prepare(self, inputs: Inputs) -> CachedState:
        """Nothing to precompute: the inputs themselves."""
        return inputs

    def run(self, state: CachedState, mask: Tensor) -> Tensor:
        """Outputs of the rows ``state`` under ``mask`` (rows, n)."""
        with masked(self.model, self.sites, mask):
            return main_output(self.forward(self.model, state))

    def row_bytes(self, state: CachedState, mask: Tensor) -> int:
        """Memory per row, from the outputs of all layers (those that are alive at the same time are fewer)."""
        total = 0

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal total
            if next(module.children(), None) is None:
                total = max(total, 4 * tensor_bytes((args, output)))

        with hook_all_modules(self.model, hook), masked(self.model, self.sites, mask[:1]):
            self.forward(self.model, state)
        return max(1, total // len(mask))

    def first_nonfinite_layer(self, state: CachedState, mask: Tensor) -> str | None:
        """The first layer whose output is not finite."""
        found: list[str] = []
        names = {m: n for n, m in self.model.named_modules()}

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(names[module])

        with hook_all_modules(self.model, hook):
            self.run(state, mask)
        return found[0] if found else None


class OneByOneRunner(WholeRunner):
    """Runs all of a model, one coalition at a time: the rows of a batch cannot be masked apart."""

    rows_apart = False

    def run(self, state: CachedState, mask: Tensor) -> Tensor:
        """As `WholeRunner.run`; rows with the same coalition run together, unless derivatives are wanted."""
        if mask.requires_grad:
            parts = [torch.tensor([row]) for row in range(len(mask))]
        else:
            _, which = mask.unique(dim=0, return_inverse=True)
            parts = [torch.nonzero(which == i).flatten() for i in range(int(which.max()) + 1)]
        parts = [part.to(mask.device) for part in parts]
        outputs = [super(OneByOneRunner, self).run(gather_rows(state, part), mask[part[:1]]) for part in parts]
        return torch.cat(outputs)[torch.cat(parts).argsort()]


def hook_all_modules(model: nn.Module, hook: Callable[[nn.Module, Any, Any], None]) -> AbstractContextManager[None]:
    """``hook`` stands behind every module; it is removed on any exit."""
    return hooked(m.register_forward_hook(hook) for m in model.modules())


class SuffixRunner:
    """Runs only what lies behind the masks.

    Raises:
        UntraceableError: the trace does not show a layer that reads a mask.
    """

    because: str | None = None
    rows_apart = True
    several_rows = False  # whether an example is several rows at the cut, known once a batch has been prepared

    def __init__(self, trace: Trace, input_masks: Sequence[ConsumerInputMask]) -> None:
        self.trace = trace
        self.input_masks = {input_mask.module: input_mask for input_mask in input_masks}
        consumers = [n for n in trace.nodes if n.op == "call_module" and n.target in self.input_masks]
        hidden = self.input_masks.keys() - {str(n.target) for n in consumers if n.args}
        if hidden:
            raise UntraceableError(f"its trace has no place for the mask at {min(hidden)}")
        behind = _descendants(trace, consumers)
        rest = _closure(trace, behind)
        self.inlets = [n for n in trace.nodes if n not in rest and any(user in rest for user in n.users)]
        self._prefixes: dict[frozenset[fx.Node], Segment] = {}
        self.suffix = Segment(trace, [n for n in trace.nodes if n in rest])
        self.incremental_linear = find_incremental_linear(trace, consumers, self.input_masks, self.suffix)

    def prepare(self, inputs: Inputs, known: CachedState = None) -> CachedState:
        """Values at the cut for a batch of inputs; what does not depend on the example is kept as it is.

        ``known`` are values at another cut for the same inputs: what lies before them is not computed again.
        """
        lengths = self.trace.lengths(inputs)
        moving = {n for n in self.inlets if lengths[n].batch_first}
        self.several_rows = any(lengths[n].grows for n in self.inlets if n not in moving)
        values = self._at_cut(inputs, known)
        return {n: values[n] if n in moving else SharedValue(values[n]) for n in self.inlets}

    def _at_cut(self, inputs: Inputs, known: CachedState = None) -> Env:
        env = self.trace.feed(inputs) | as_environment(known or {})
        self._prefix(frozenset(known or ())).run(env)
        return env

    def _prefix(self, known: frozenset[fx.Node]) -> Segment:
        """What leads to the cut from the inputs and from known values."""
        if known not in self._prefixes:
            needed = _ancestors(self.inlets, known)
            nodes = [n for n in self.trace.nodes if n in needed and n not in known and n.op != "placeholder"]
            self._prefixes[known] = Segment(self.trace, nodes, self.inlets)
        return self._prefixes[known]

    def run(self, state: CachedState, mask: Tensor) -> Tensor:
        """Outputs of the rows ``state`` under ``mask`` (rows, n)."""
        return main_output(self.suffix.run(as_environment(state), self._intercept(mask)))

    def row_bytes(self, state: CachedState, mask: Tensor) -> int:
        """Most memory that one row takes at any moment."""
        peak = 0

        def watch(node: fx.Node, env: Env) -> None:
            nonlocal peak
            peak = max(peak, tensor_bytes(env))

        self.suffix.run(as_environment(state), self._intercept(mask), watch)
        return max(1, peak // len(mask))

    def fold(self) -> None:
        """See `Segment.fold`."""
        self.suffix.fold()
        if self.incremental_linear is not None:
            self.incremental_linear.rest.fold()

    @property
    def has_user_hooks(self) -> bool:
        """Whether anybody's hooks stand at the layers that are run."""
        return any(has_hooks(self.trace.layer(node)) for node in self.suffix.nodes)

    def kept(self) -> dict[tuple[str, str], Any]:
        """What layers of the user's own classes, among those that are run, keep: (layer, attribute or buffer) -> it."""
        names = {str(node.target) for node in self.suffix.nodes if node.op == "call_module"}
        own = {name: self.trace.modules[name] for name in sorted(names)}
        return {
            (name, key): value
            for name, layer in own.items()
            if not type(layer).__module__.startswith("torch.")
            for key, value in {**vars(layer), **layer._buffers}.items()
        }

    def first_nonfinite_layer(self, state: CachedState, mask: Tensor) -> str | None:
        """The first operation whose result is not finite."""
        found: list[str] = []

        def watch(node: fx.Node, env: Env) -> None:
            name = name_if_nonfinite(node, env[node])
            if name is not None:
                found.append(name)

        self.suffix.run(as_environment(state), self._intercept(mask), watch)
        return found[0] if found else None

    def _intercept(self, mask: Tensor) -> Any:
        def intercept(node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
            input_mask = self.input_masks.get(str(node.target)) if node.op == "call_module" else None
            return args if input_mask is None else (input_mask.apply(args[0], mask), *args[1:])

        return intercept


def _descendants(trace: Trace, sources: Sequence[fx.Node]) -> set[fx.Node]:
    found = set(sources)
    for node in trace.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    found.add(trace.nodes[-1])
    return found


def _ancestors(targets: Sequence[fx.Node], known: frozenset[fx.Node]) -> set[fx.Node]:
    """What is needed to compute ``targets``, as far as what is known."""
    found: set[fx.Node] = set()
    stack = list(targets)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += node.all_input_nodes if node not in known else []
    return found


def _closure(trace: Trace, behind: set[fx.Node]) -> set[fx.Node]:
    """Add what must be recomputed per row: parameters, and shapes, which depend on the number of rows."""
    rest = set(behind)
    for node in reversed(trace.nodes):
        if node not in rest and any(user in rest for user in node.users) and (node.op == "get_attr" or _is_shape(node)):
            rest.add(node)
    return rest


def _is_shape(node: fx.Node) -> bool:
    """Whether a node computes with sizes: ``x.size(0)``, ``x.shape``, ``getattr``, and arithmetic on these."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return True
    name = getattr(node.target, "__name__", "")
    return name in ("getitem", "mul", "add", "sub", "floordiv", "truediv") and all(map(_is_shape, node.all_input_nodes))

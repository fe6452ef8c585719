"""Files for other runtimes: ONNX, and programs of `torch.export`. What was written is read back and compared.

The one file that imports onnx and onnxruntime.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shaprune.errors import InputError, ShapruneWarning
from shaprune.network.batches import Inputs, call, concatenate, example_of, length, pick_rows, tensors, transform
from shaprune.network.borrow import borrowed, copied, preserve_globals
from shaprune.network.silence import silence
from shaprune.network.tolerance import relative_difference, tolerance_for
from shaprune.storage.atomic_files import check_replaceable, replacing_file
from shaprune.storage.own_files import MARK

TOLERANCE = 1e-4  # relative, float32: another runtime sums in another order
KINDS = (".onnx", ".pt2")

Run = Callable[[Inputs], Sequence[Tensor]]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path: the file.
        bytes: its size.
        difference: the largest relative difference between its outputs and the model's; None = not compared, because
            onnxruntime is not installed.
    """

    path: Path
    bytes: int
    difference: float | None


def export(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | Path,
    *,
    fixed_batch: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write ``model`` as ``.onnx`` or, for `torch.export`, as ``.pt2``, and compare the file's outputs with its own.

    The model is exported as a copy in eval mode; it comes back untouched. The file is written beside and renamed: on
    any failure nothing new is there and an old file still is.

    Args:
        model: a pruned network, or any other.
        example_inputs: one batch: a tensor, a tuple of positional or a dict of keyword inputs.
        path: ends in ``.onnx`` (needs onnx and onnxscript) or ``.pt2``.
        fixed_batch: the file takes only as many examples as ``example_inputs`` holds; else any number.
        overwrite: replace an existing file that an earlier call wrote.

    Returns:
        `Exported`: the path, and how far the file's outputs are from the model's.

    Raises:
        InputError: another ending, an existing file (without ``overwrite``, or of another origin), a missing package, a
            model that cannot be exported, a folder that cannot be written, or a file whose outputs differ.
    """
    path = Path(path)
    if path.suffix not in KINDS:
        raise InputError(f"{path.name!r} has no known ending; name it {' or '.join('*' + kind for kind in KINDS)}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise InputError(f"{path} exists; choose another name, or overwrite it explicitly")
    check_replaceable(path)
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
    if path.suffix == ".onnx":
        _require_packages("onnx", "onnxscript")
    inputs, _ = example_of(model, example_inputs)
    batches = [inputs] if fixed_batch else [_rows(inputs, 2), _rows(inputs, 3)]  # one row would be taken as fixed
    with replacing_file(path) as beside:
        with preserve_globals(), silence("torch.onnx._internal.exporter._registration"), torch.no_grad():
            _write(copied(model).eval(), batches[0], beside, fixed_batch)
            run = _read_onnx(beside) if path.suffix == ".onnx" else _read_program(beside)
            difference = None if run is None else max(_difference(model, run, batch) for batch in batches)
        if difference is not None and not difference < tolerance_for(_precision(model), TOLERANCE):
            raise InputError(
                f"the outputs of {path.name} differ from the model's by {difference:.1e} (relative); nothing was "
                "written. Does the model branch on its input, or draw random numbers?"
            )
        size = beside.stat().st_size
    if difference is None:
        warnings.warn(
            f"{path.name} was not compared with the model: this needs onnxruntime, pip install 'shaprune[onnx]'",
            ShapruneWarning,
            stacklevel=2,
        )
    return Exported(path, size, difference)


def _write(model: nn.Module, inputs: Inputs, path: Path, fixed_batch: bool) -> None:
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (_positional(inputs), {})
    shapes: Any = None
    if not fixed_batch:
        shapes = transform(inputs if isinstance(inputs, dict) else args, _dynamic_dimensions)
    try:
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
        if path.suffix == ".pt2":
            torch.export.save(program, path, extra_files={"origin": MARK})
        else:
            made: Any = torch.onnx.export(program, (), external_data=False, verbose=False, optimize=True)
            made.model.doc_string = MARK
            made.save(str(path), external_data=False)
    except OSError:
        raise
    except Exception as error:  # exporters fail in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "look there" if fixed_batch else "fixed_batch=True asks for less"
        raise InputError(f"the model cannot be exported ({type(error).__name__}: {reason}); {hint}") from error


def _dynamic_dimensions(tensor: Tensor) -> Any:
    """The dimensions of an input that are free: the first."""
    return {0: torch.export.Dim("batch")} if tensor.ndim else None


def _read_program(path: Path) -> Run:
    program = torch.export.load(path).module()
    return lambda inputs: tensors(call(program, inputs))


def _read_onnx(path: Path) -> Run | None:
    """Checks the file, and runs it where onnxruntime is installed."""
    import onnx

    onnx.checker.check_model(str(path))
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Inputs) -> Sequence[Tensor]:
        if isinstance(inputs, dict) and set(names) <= set(inputs):
            given = [inputs[name] for name in names]
        else:
            given = tensors(inputs)
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, given, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return run


def _difference(model: nn.Module, run: Run, inputs: Inputs) -> float:
    with borrowed(model):
        expected = tensors(call(model, transform(inputs, torch.clone)))
    answers = run(transform(inputs, torch.clone))
    if len(answers) < len(expected):
        raise InputError(f"the file gives {len(answers)} outputs and the model {len(expected)}")
    pairs = zip(answers, expected, strict=False)
    return max(float(relative_difference(a.to(e.device), e)) for a, e in pairs)


def _rows(inputs: Inputs, n: int) -> Inputs:
    """The first n examples, repeated where there are fewer."""
    times = -(-n // length(inputs))
    return pick_rows(concatenate([inputs] * times), slice(n))


def _positional(inputs: Inputs) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _precision(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _require_packages(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX files need {' and '.join(missing)}: pip install 'shaprune[onnx]'")

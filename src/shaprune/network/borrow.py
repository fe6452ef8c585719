"""Borrow a model: it is restored on any exit, whatever was changed in between."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from shaprune.errors import InputError
from shaprune.network.buffers import kept_buffers
from shaprune.network.model_turns import RANDOM, turn


@contextmanager
def borrowed(model: nn.Module, *, buffers: bool = True, draws: bool = True) -> Iterator[nn.Module]:
    """Borrow ``model`` in eval mode; training flags, random states, global flags and buffers are put back on any exit.

    Other threads that borrow it, its parts or what contains it, wait. Weights are not copied: they must not be written
    to.

    Args:
        model: the user's.
        buffers: False where they are to change, as in a training.
        draws: whether the user's code runs, which may draw random numbers. False = random states are left alone.
    """
    with (
        preserve_globals() if draws else nullcontext(),
        turn(model),  # always in this order
        kept_buffers(model) if buffers else nullcontext(),
    ):
        flags = {module: module.training for module in model.modules()}
        model.eval()
        try:
            yield model
        finally:
            for module, flag in flags.items():
                module.training = flag


@contextmanager
def preserve_globals() -> Iterator[None]:
    """Put random states (torch, CUDA, NumPy, Python), autograd mode and cuDNN flags back on any exit.

    The generators belong to all threads of the process. Those of ours that put them back do so one after the other, and
    what has not changed is not written: a thread of the user's that draws meanwhile is disturbed only where this one
    may have drawn, too.
    """
    with turn(RANDOM), _put_back():
        yield


@contextmanager
def _put_back() -> Iterator[None]:
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    grad = torch.is_grad_enabled()
    cudnn = torch.backends.cudnn
    cudnn_flags = cudnn.benchmark, cudnn.deterministic
    try:
        yield
    finally:
        if not torch.equal(torch.get_rng_state(), torch_state):
            torch.set_rng_state(torch_state)
        if not _same_numpy(numpy_state):
            np.random.set_state(numpy_state)
        if random.getstate() != python_state:
            random.setstate(python_state)
        if cuda_states and not all(map(torch.equal, torch.cuda.get_rng_state_all(), cuda_states)):
            torch.cuda.set_rng_state_all(cuda_states)
        torch.set_grad_enabled(grad)
        if (cudnn.benchmark, cudnn.deterministic) != cudnn_flags:
            cudnn.benchmark, cudnn.deterministic = cudnn_flags


def _same_numpy(state: Any) -> bool:
    """Whether NumPy's generator is still in a state."""
    return all(map(np.array_equal, np.random.get_state(), state))


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy that shares nothing with ``model``, or only what ``memo`` has in the place of an object (by its id).

    Raises:
        InputError: if the model cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
    try:
        with turn(model):  # else it would be copied with the hooks of another thread
            return copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied ({error}); detach tensors it has stored, then try again"
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU for a model with neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")

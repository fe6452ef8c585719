"""Modes that see torch's operations, without torch's compiler."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """`TorchDispatchMode`, which imports ``torch._dynamo`` on first use: more than a second of every new process.

    Its guard against being compiled is left out: compiled modules are refused before a mode is entered.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

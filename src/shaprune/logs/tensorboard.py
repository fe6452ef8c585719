"""TensorBoard event files; the only place that needs the package tensorboard."""

from __future__ import annotations

from collections.abc import Mapping

from shaprune.errors import InputError


class TensorBoard:
    """Scalars ``GROUP/NAME`` over evaluations (see `shaprune.logs.sinks.Sink`).

    Args:
        folder: of the event files, made where it is missing.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer = SummaryWriter(folder)
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror}; name another folder") from error

    def write(self, group: str, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(f"{group}/{name}", number, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

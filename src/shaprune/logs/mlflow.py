"""MLflow; the only place that imports it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from shaprune.errors import InputError


class MLflow:
    """Metrics ``GROUP/NAME`` over evaluations, in a run of the experiment "shaprune" (see `shaprune.logs.sinks.Sink`).

    Args:
        tracking: a tracking URI or folder; None = MLflow's own default (``MLFLOW_TRACKING_URI``).

    Raises:
        InputError: the tracking URI cannot be used.
    """

    def __init__(self, tracking: str | None) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        try:
            self._client = MlflowClient(tracking)
            known = self._client.get_experiment_by_name("shaprune")
            experiment = known.experiment_id if known else self._client.create_experiment("shaprune")
            self._run = self._client.create_run(experiment).info.run_id
        except (MlflowException, OSError) as error:
            raise InputError(f"MLflow cannot write to {tracking or 'its default'}: {error}") from error

    def write(self, group: str, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self._client.log_metric(self._run, re.sub(r"[^\w\-. /:]", "_", f"{group}/{name}"), number, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)

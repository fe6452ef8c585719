"""Workers that are Ray actors, on one machine or many; the only place that imports ray."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from shaprune.errors import InputError
from shaprune.runs.executor import Answer
from shaprune.runs.process_workers import BUILD_HINT, Recipe
from shaprune.runs.worker import WorkerGames, WorkerMessage
from shaprune.runs.worker_pool import WorkerLost, check_versions, versions
from shaprune.values.games.game import Question

CONNECT_SECONDS = 60.0  # seconds that an address has to answer; Ray itself waits for minutes, and then ends the process
START_SECONDS = 300.0  # seconds that an actor has to be placed and to make its games


def connect_ray(address: str, workers: int) -> ModuleType:
    """Ray, connected to a cluster: ``"auto"``, ``"local"`` (started here, for so many workers), or ``host:port``.

    Raises:
        InputError: ray is not installed; the address does not answer in time.
    """
    try:
        import ray as imported
    except ImportError as error:
        raise InputError("a Ray address needs ray; pip install 'shaprune[ray]', or drop it for processes") from error
    ray: ModuleType = imported
    if ray.is_initialized():
        return ray
    try:
        if address != "local":
            _connect_in_process(address)
        ray.init(
            address=address,
            num_cpus=None if address != "local" else max(workers, os.cpu_count() or 1),
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address == "local" else None,
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"no Ray cluster at {address!r}: {reason}; start one with `ray start --head`, give its address, "
            "or drop it for processes of this machine"
        ) from error
    return ray


def _connect_in_process(address: str) -> None:
    """Connect in a process of its own, which can be given up.

    Raises:
        OSError: the address does not answer, or not in time.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():  # no listener: that is known at once
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    told = "the address does not answer"
    code = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
    line = [sys.executable, "-W", "ignore", "-c", code, address]
    try:
        done = subprocess.run(line, timeout=CONNECT_SECONDS, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{told} within {CONNECT_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise OSError((done.stderr.strip() or told).splitlines()[-1])


class RayWorker:
    """One actor (see `shaprune.runs.worker_pool.Worker`)."""

    def __init__(self, ray: ModuleType, recipe: Any, number: int, cores: float) -> None:
        self.ray, self.recipe, self.number, self.cores = ray, recipe, number, cores
        self._actor: Any = None

    def start(self) -> Mapping[str, str]:
        actor = self.ray.remote(num_cpus=self.cores, max_restarts=0, max_task_retries=0)(_RayActor)
        self._actor = actor.remote([self.recipe], self.number)
        try:
            check_versions(
                self._heard(self._actor.installed.remote(), START_SECONDS).versions
            )  # before anything is unpacked
            return self._heard(self._actor.ready.remote(), START_SECONDS).versions
        except self.ray.exceptions.GetTimeoutError as error:
            free = self.ray.available_resources().get("CPU", 0.0)
            raise InputError(
                f"worker {self.number} was not ready within {START_SECONDS:.0f} s; the cluster has {free:g} free cores "
                f"and a worker takes {self.cores:g}: give fewer workers, or wait until the cluster has room"
            ) from error

    def ask(self, game: str, question: Question) -> Answer:
        return self._heard(self._actor.tell.remote(game, question)).answer()

    def stop(self) -> None:
        if self._actor is not None and self.ray.is_initialized():
            self.ray.kill(self._actor, no_restart=True)
            self._actor = None

    def _heard(self, reference: Any, patience: float | None = None) -> WorkerMessage:
        try:
            told: WorkerMessage = self.ray.get(reference, timeout=patience)
        except self.ray.exceptions.RayTaskError as error:
            reason = [*str(error.cause or error).strip().splitlines(), ""]
            raise InputError(
                f"a worker cannot make the games: {reason[-2]}; what they are made of must be importable there"
            ) from error
        except self.ray.exceptions.GetTimeoutError:
            raise
        except self.ray.exceptions.RayError as error:
            raise WorkerLost(f"actor {self.number}: {type(error).__name__}") from error
        return told


def ray_workers(recipe: Recipe, number: int, address: str, cores: float) -> list[RayWorker]:
    """So many actors, with ``cores`` cores each; the recipe is stored once in the cluster.

    Raises:
        InputError: see `connect_ray`; a recipe that cannot be serialised.
    """
    ray = connect_ray(address, number)
    try:
        stored = ray.put(recipe)
    except Exception as error:  # whatever an object's own methods raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the game cannot be sent to workers: {reason}; {BUILD_HINT}") from error
    return [RayWorker(ray, stored, i, cores) for i in range(number)]


class _RayActor:
    """What runs on a worker. The recipe comes in a list, so that Ray leaves it to `ready` to fetch it, and to fail."""

    def __init__(self, stored: list[Any], number: int) -> None:
        self.stored, self.number = stored, number

    def installed(self) -> WorkerMessage:
        return WorkerMessage(versions=versions())

    def ready(self) -> WorkerMessage:
        import ray

        self.serving = WorkerGames(ray.get(self.stored[0]), self.number)
        return WorkerMessage(versions=self.serving.versions)

    def tell(self, game: str, question: Question) -> WorkerMessage:
        examples = None if question.examples is None else question.examples.copy()  # Ray's arrays are read-only
        start = None if question.start is None else question.start.copy()
        return self.serving.tell(game, Question(question.rows.copy(), examples, question.walks, start))

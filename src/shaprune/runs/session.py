"""Session of a run: in this process or by workers, with a journal or without, the whole run or a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from shaprune.errors import InputError
from shaprune.options.fields import option
from shaprune.runs.executed_games import ComputedElsewhere, ExecutedGame, GameInPieces, Shard, ShardedGame
from shaprune.runs.executor import Executor, InProcess, Journaled
from shaprune.runs.journal import JOURNAL_FILE, Journal
from shaprune.runs.journal_witness import check_witness, check_workers
from shaprune.runs.lock import hold_run
from shaprune.runs.process_workers import ProcessWorker, Recipe, pickle_recipe
from shaprune.runs.worker_pool import Worker, WorkerPool
from shaprune.storage.atomic_files import check_replaceable
from shaprune.values.estimate import check_whole_number
from shaprune.values.games.game import Game
from shaprune.values.games.witness import Witness
from shaprune.values.result import Values

G = TypeVar("G", bound=Game)
VALUES = "values.json"  # in the folder of a run that has finished


@dataclass(frozen=True)
class RunOptions:
    """How a run is computed.

    Attributes:
        folder: with the journal of the run: every answer of the network is committed there before it counts; the same
            call goes on where an earlier one ended, however it ended, and gives the same bits. Before any known answer
            is used, a few worths of every game are asked anew and compared with what they were; where the network or
            the worth has changed the call is refused. ``values.json`` is written at the end. None = no journal.
        workers: processes of this machine, or actors where ``ray_address`` is given; 1 = this process. Any number gives
            the same bits (float32 on CPU). In a script, call below ``if __name__ == "__main__":``.
        ray_address: of a Ray cluster (``"auto"``, ``"local"``, ``"host:port"``), or None.
        shard: ``"i/n"``: compute the i-th of n parts into ``folder`` and return no values; once all parts have
            finished, `shaprune.runs.merge_shards.merge` joins them, and the call without a shard gives the values.
        build: makes the network (its weights are loaded into it) where it cannot be pickled to workers.

    Raises:
        InputError: no whole number of workers; a shard without a folder; a folder that is a file.
    """

    folder: str | Path | None = option(
        None,
        "Keep every answer of the network in DIR; the same command, or `shaprune resume DIR`, goes on after a crash. "
        "Writes DIR/values.json.",
        flag="--run",
        metavar="DIR",
        plain=Path | None,
    )
    workers: int = option(
        1, "Processes of this machine, or actors with --ray-address; any number, the same bits.", least=1
    )
    ray_address: str | None = option(
        None, "Workers are actors of this Ray cluster: auto, local, host:port.", metavar="ADDRESS"
    )
    shard: str | None = option(
        None, "Compute one of N parts of the run, then `shaprune merge DIR` (batch schedulers).", metavar="I/N"
    )
    build: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        check_whole_number("workers", self.workers, 1)
        if self.part is not None and self.folder is None:
            raise InputError(
                "a shard leaves its answers in a journal; give the folder of the run, the same for all shards"
            )
        if self.path is not None and self.path.exists() and not self.path.is_dir():
            raise InputError(f"the run {str(self.folder)!r} is a file; name a folder")

    @staticmethod
    def of(run: str | Path | RunOptions | None) -> RunOptions:
        """What `shaprune.score` was given: a folder, or all of it."""
        return run if isinstance(run, RunOptions) else RunOptions(run)

    @property
    def path(self) -> Path | None:
        """The folder."""
        return None if self.folder is None else Path(self.folder)

    @property
    def part(self) -> Shard | None:
        """The shard, read."""
        return None if self.shard is None else Shard.parse(self.shard)

    def check(self, *, layers: str, mode: str, stop: object, log: object, precision: str) -> None:
        """Check that options of `shaprune.score` go with it.

        Raises:
            InputError: one that does not, by name.
        """
        if not self.plain and (layers != "independent" or log is not None):
            raise InputError(
                f"run and workers go with neither layers={layers!r} nor log; drop these (a run keeps all worths)"
            )
        if log is not None and precision == "auto":
            raise InputError(
                "a log holds worths of one precision, and a probe may choose another the next time; name one instead "
                "of 'auto', or give run in place of the log"
            )
        if self.shard is not None and (mode != "one-shot" or stop is not None):
            raise InputError("a shard cannot know what other shards find: drop mode and stop, and give max_evaluations")
        if self.shard is not None and precision == "auto":
            raise InputError(
                "shards must agree on a precision, and each would probe its own; name one instead of 'auto'"
            )

    @property
    def alone(self) -> bool:
        """Whether this process computes."""
        return self.workers == 1 and self.ray_address is None

    @property
    def plain(self) -> bool:
        """Whether there is nothing to it: no journal and no workers."""
        return self.alone and self.folder is None


def journal_file(folder: Path, shard: Shard | None = None) -> Path:
    """The journal of a run, or of one shard of it."""
    return folder / (JOURNAL_FILE if shard is None else f"journal-{shard.name}.sqlite")


def recorded_dependency(folder: Path, name: str) -> str | None:
    """What a run that has begun in this folder says of something that its answers depend on.

    None where none has begun, or its journal cannot be read (opening it will say why).
    """
    try:
        journal = Journal.read(journal_file(folder))
    except InputError:
        return None
    try:
        return journal.about().get(name)
    finally:
        journal.close()


class OpenRun:
    """A run that is open: what is asked of its games goes the way that the options says."""

    def __init__(
        self, run_options: RunOptions, executor: Executor | None, here: dict[str, Game], check: Callable[[str], None]
    ) -> None:
        self.run_options, self.executor, self._here, self._check = run_options, executor, here, check

    def play(self, game: Game, name: str) -> Game:
        """The game, answered by the executor, in pieces."""
        if self.executor is None:
            return GameInPieces(game)
        if self.run_options.alone:
            self._here.clear()  # games are played one after the other, and each may hold much memory
            self._here[name] = game
        else:
            self._check(name)
        if (part := self.run_options.part) is not None:
            return GameInPieces(ShardedGame(game, name, self.executor, part))
        return GameInPieces(ExecutedGame(game, name, self.executor))

    def all(self, games: dict[str, G], values_of: Callable[[G, str], Values]) -> dict[str, Values]:
        """Values of every game, in their order; the games are taken out of the dictionary one by one.

        With workers several games are under way at a time, so that none waits at the end of one. Games that a shard
        leaves to others are missing. The first error ends all.
        """
        names, found = list(games), dict[str, Values]()

        def one(name: str) -> None:
            with suppress(ComputedElsewhere):
                found[name] = values_of(games.pop(name), name)

        if self.run_options.alone or self.executor is None:
            for name in names:
                one(name)
        else:
            with ThreadPoolExecutor(min(self.run_options.workers, len(names))) as threads:
                waiting = [threads.submit(one, name) for name in names]
                try:
                    for done in as_completed(waiting):
                        done.result()
                except BaseException:  # an interrupt as well
                    threads.shutdown(wait=False, cancel_futures=True)
                    self.executor.close()  # ends what the others wait for
                    raise
        return {name: found[name] for name in names if name in found}


@contextmanager
def open_run(
    run_options: RunOptions,
    n_examples: Mapping[str, int],
    recipe: Recipe | None,
    about: Mapping[str, Any],
    witness: Callable[[str], Witness],
) -> Iterator[OpenRun]:
    """Open a run.

    Args:
        run_options: see `RunOptions`.
        n_examples: of every game, by its name.
        recipe: what workers make the games from; None where there are none.
        about: what the answers depend on, see `Journal.open`.
        witness: takes the witness of a game by its name; what is known of a game is used only if it agrees.

    Raises:
        InputError: another driver is at work, the folder holds another run (by ``about`` or by a witness), or the
            workers cannot be used, or play another game.
    """
    with ExitStack() as stack:
        journal = None
        if run_options.path is not None:
            folder, shard = run_options.path, run_options.part
            check_replaceable(folder / VALUES)  # it is written at the end
            stack.enter_context(hold_run(folder, "driver" if shard is None else f"driver-{shard.name}"))
            journal = Journal.open(journal_file(folder, shard), about)
            stack.callback(journal.close)
        witnesses = {} if run_options.plain else {name: witness(name) for name in n_examples}
        if journal is not None:
            for name, seen in witnesses.items():
                check_witness(journal, name, seen)
            journal.note("finished", False)
        here: dict[str, Game] = {}
        pool, executor = None, cast("Executor | None", None)
        if recipe is not None:
            executor = pool = WorkerPool(_workers(run_options, recipe))
        elif journal is not None:
            executor = InProcess(here.__getitem__)
        if journal is not None and executor is not None:
            executor = Journaled(executor, journal, n_examples.__getitem__)
        if executor is not None:
            stack.callback(executor.close)
            executor.start()

        def check(name: str) -> None:
            if pool is not None:
                check_workers(pool, name, witnesses[name])

        yield OpenRun(run_options, executor, here, check)
        if journal is not None:
            journal.note("finished", True)


def _workers(run_options: RunOptions, recipe: Recipe) -> list[Worker]:
    if run_options.ray_address is None:
        bytes_ = pickle_recipe(recipe)
        return [ProcessWorker(bytes_, number) for number in range(run_options.workers)]
    from shaprune.runs.ray_workers import ray_workers

    return [*ray_workers(recipe, run_options.workers, run_options.ray_address, 1)]

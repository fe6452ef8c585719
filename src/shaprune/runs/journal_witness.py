"""Witness answers of a journal: known answers are used only if the game still gives these."""

from __future__ import annotations

from shaprune.errors import InputError
from shaprune.runs.executor import Executor
from shaprune.runs.journal import Journal
from shaprune.values.games.witness import Witness, difference, differing

NOTE = "witness:"  # what the notes of witnesses begin with; the name of the game follows


def check_witness(journal: Journal, game: str, now: Witness) -> None:
    """Compare a game with what its journal holds of it; note the witness where it is the first.

    Raises:
        InputError: it is another game, or the journal holds answers of it and no witness.
    """
    then = journal.noted(NOTE + game)
    if then is None and not journal.holds(game):
        journal.note(NOTE + game, now.to_json())
        return
    wrong = "its answers cannot be compared with the network as it is" if then is None else now.changed(then)
    if wrong is not None:
        raise InputError(
            f"{journal.path.parent} holds another run, seen at {game!r}: {wrong}; give run another folder, or undo the "
            "change"
        )


def join_witnesses(whole: Journal, part: Journal) -> None:
    """Take over the witnesses of another journal of the same run.

    Raises:
        InputError: they are those of another network, or of another worth.
    """
    for name, now in part.all_noted(NOTE).items():
        then = whole.noted(name)
        if then is None:
            whole.note(name, now)
        elif (found := difference(then, now)) is not None:
            raise InputError(
                f"{part.path} was computed with another {found[0]} than the shards before it, seen at "
                f"{name.removeprefix(NOTE)!r}; remove it, and compute this shard again with the same {found[0]}"
            )


def check_workers(workers: Executor, game: str, ours: Witness) -> None:
    """Check that workers play the same game as this process.

    Raises:
        InputError: they answer otherwise.
    """
    theirs = workers.submit(game, ours.question).result().worths
    rows = differing(ours.worths, theirs, rough=ours.rough)
    if len(rows):
        told = ours.told(int(rows[0]), float(theirs[rows[0]]))
        raise InputError(
            f"{game}: workers play another game than this process: {told}; what build= makes and what is imported "
            "there must be the same, hooks and attributes included"
        )

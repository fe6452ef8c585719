"""The command line: ``shaprune demo | compress | players | score | plan | prune | evaluate | export | report``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the entry point of ``shaprune``."""
    try:
        from shaprune.cli.app import app

        app(prog_name="shaprune")
    except KeyboardInterrupt:  # before a command has begun; later ones are reported by `shaprune.cli.command`
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(1)

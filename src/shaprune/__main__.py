"""Run the command line as ``python -m shaprune``."""

from shaprune.cli import main

if __name__ == "__main__":
    main()

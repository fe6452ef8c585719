"""Data sets, networks and factories that ``--data`` and ``--model`` name."""

"""Public names: resolved on first use, and errors for the names and modules of earlier versions."""

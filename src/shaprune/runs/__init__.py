"""Long runs: what has been computed (a journal), by whom (executors), in which pieces. No torch here."""

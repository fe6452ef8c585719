"""Long runs: a journal of answers, executors, and pieces of work. No torch here."""

"""Run (coalition, example) rows of a network: cached before the masks, in batches that fit in memory."""

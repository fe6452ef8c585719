"""Classical pruning criteria in the interface of values, for comparison."""

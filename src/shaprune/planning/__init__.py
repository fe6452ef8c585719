"""From values to the players that leave: budgets, limits, allocations, plans. NumPy only."""

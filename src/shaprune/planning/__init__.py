"""Planning: budgets, limits, allocations and plans, from values alone. NumPy only."""

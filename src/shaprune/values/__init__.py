"""What a player contributes: games, estimators and their results. NumPy only, no networks."""

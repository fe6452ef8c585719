"""Values of players: games, estimators and their results. NumPy only, no networks."""

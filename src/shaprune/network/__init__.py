"""Networks as games: what can be removed, what a coalition is worth, and the smaller network."""

"""Worths of outputs, and the game of a trained network."""

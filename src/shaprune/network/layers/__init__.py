"""Layers: their kinds, inputs and costs, and least squares for their weights."""

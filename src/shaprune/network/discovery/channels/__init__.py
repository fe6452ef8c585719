"""Coupled channels, found by running the network with NaN marks."""

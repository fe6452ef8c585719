"""Winning accuracy back after surgery: each step its own function, each optional."""

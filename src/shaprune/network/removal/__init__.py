"""Masks and surgery: for every kind of player where its mask stands and what its removal does."""

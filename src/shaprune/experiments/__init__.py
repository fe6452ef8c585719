"""Experiments of the papers: the oracle benchmark and removal curves."""

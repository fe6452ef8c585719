"""Estimators of values, one file each; their options are the fields of frozen dataclasses."""

"""Weights that others trained: their files, and their names in the networks of this package."""

"""Weights that others wrote: their files, and their names in ours."""

"""Readers of other projects' weight files, which convert names and tensors to those of Pliant's networks."""

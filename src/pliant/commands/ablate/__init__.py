"""`pliant ablate`: tables 1 and 3 of the paper, on any data."""

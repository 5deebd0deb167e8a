"""What a run leaves on disk: its folder, its weights, and the trained or exported network that they describe."""

"""`pliant demo`: three small networks side by side."""

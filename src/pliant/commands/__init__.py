"""The commands of the command line, a file or folder each; `pliant.cli` declares their options."""

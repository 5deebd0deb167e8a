"""``python -m pliant``: the command line, for launchers that start modules, such as torchrun."""

from pliant.cli import main

if __name__ == "__main__":
    main()

"""``python -m rabbitflow``: the same as the command ``rabbitflow``."""

from rabbitflow.cli import main

if __name__ == "__main__":
    main()

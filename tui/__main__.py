"""`python -m tui` is the command `tunewatch`."""

from tui.cli import main

if __name__ == "__main__":
    main()

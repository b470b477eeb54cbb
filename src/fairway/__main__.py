"""`python -m fairway`: the same as the command `fairway`."""

from fairway.cli import main

if __name__ == "__main__":
    main()

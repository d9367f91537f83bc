"""`python -m drfuse` is the `drfuse` command."""

from drfuse.cli import main

if __name__ == "__main__":
    main()

"""``python -m zeropass`` is the command line."""

from zeropass.cli.main import main

if __name__ == "__main__":
    main()

"""The command line as ``python -m zeropass``."""

from zeropass.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m maskformer` is the command line `maskformer`."""

import sys

from maskformer.cli import main

if __name__ == "__main__":
    sys.exit(main())

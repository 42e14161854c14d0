"""`python -m l0sign_cuda` is the `l0sign` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())

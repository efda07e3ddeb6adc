"""`python -m hjepa_lib.bench`."""

import sys

from hjepa_lib.bench.command import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m hjepa_lib.workbench.bench`."""

import sys

from hjepa_lib.workbench.bench.command import main

if __name__ == "__main__":
    sys.exit(main())

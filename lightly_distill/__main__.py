"""`python -m lightly_distill` is `lightly-distill`."""

import sys

from lightly_distill.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

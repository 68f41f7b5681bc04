"""`python -m llumnix` is `llumnix`."""

import sys

from llumnix.cli import main

if __name__ == "__main__":
    sys.exit(main())

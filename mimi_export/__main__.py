"""`python -m mimi_export` is `mimi-export`."""

import sys

from mimi_export.cli import main

if __name__ == "__main__":
    sys.exit(main())

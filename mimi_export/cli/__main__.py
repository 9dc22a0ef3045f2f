"""`python -m mimi_export.cli` is `mimi-export`."""

import sys

from mimi_export.cli import main

sys.exit(main())

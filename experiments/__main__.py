"""``python -m experiments``: the same as ``wmarena``."""

import sys

from experiments.cli import main

sys.exit(main())

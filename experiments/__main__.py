"""``python -m experiments``: the same as ``wmarena``."""

import sys

from wmarena.experiments.cli import main

sys.exit(main())

"""``python -m wmarena``: the same as the command ``wmarena``."""

import sys

from wmarena.experiments.cli import main

sys.exit(main())

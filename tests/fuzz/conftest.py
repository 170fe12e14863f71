"""How many inputs are tried: a few dozen of each kind by default, 10,000 over all with ``WMARENA_FUZZ=1``."""

import os

from hypothesis import HealthCheck, settings

from tests.experiments.conftest import finished_once as finished_once

KINDS = 17
"""Fuzzed readers: the tests of this folder with ``@given``."""

_COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
}
settings.register_profile("few", max_examples=30, derandomize=True, database=None, **_COMMON)
settings.register_profile("many", max_examples=-(-10_000 // KINDS), database=None, **_COMMON)
settings.load_profile("many" if os.environ.get("WMARENA_FUZZ") else "few")

"""Ray clusters that tests start in their own process."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def imaginary_gpus(n_cpus: int) -> Iterator[None]:
    """A local cluster with two GPUs that do not exist; afterwards SIGTERM is handled as before."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(
            address="local",
            num_cpus=n_cpus,
            num_gpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        yield
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)

"""Connection to a Ray cluster: an existing one, or a local one on loopback that ends with the run."""

import contextlib
import logging
import os
from typing import Any

import ray
from ray.exceptions import RayError

from wmarena.orchestrator.executors.authentication import auth_hint, set_auth_mode
from wmarena.orchestrator.executors.base import NoWorkers
from wmarena.orchestrator.executors.guard import reload_environment, token_guarded
from wmarena.orchestrator.executors.placement import Resources
from wmarena.orchestrator.files.errors import first_line

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


class Cluster:
    """A connection to Ray.

    Args:
        address: Ray address, or None to start a local cluster bound to loopback.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._connected = False
        self._guard = contextlib.ExitStack()

    @property
    def grows(self) -> bool:
        """True if nodes may join later."""
        return self._address is not None

    def connect(self, workers: int | None) -> None:
        """Connect, unless this process is connected already, or start a local cluster with room for ``workers``.

        Raises:
            NoWorkers: there is no cluster at the address, or it refuses the connection.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if ray.is_initialized():
            return
        if self._address is None:
            self._start_local(max(os.cpu_count() or 1, workers or 1))
        else:
            self._connect_existing()
        self._connected = True

    def _connect_existing(self) -> None:
        set_auth_mode()
        reload_environment()
        try:
            ray.init(address=self._address, **_QUIET)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            why = f"{first_line(error)}{auth_hint(str(error))}"
            raise NoWorkers(f"expected a Ray cluster at {self._address}, got: {why}") from None

    def _start_local(self, cpus: int) -> None:
        self._guard.enter_context(token_guarded())
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **_QUIET)

    def nodes(self) -> dict[str, Resources]:
        """Return id -> resources of every live node."""
        return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}

    def disconnect(self) -> None:
        """Disconnect; a cluster that ``connect`` started ends."""
        if self._connected:
            ray.shutdown()
            self._connected = False
        self._guard.close()

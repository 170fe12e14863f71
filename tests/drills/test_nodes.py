"""Machines that are killed or unreachable during a run on a Ray cluster."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

from tests.drills.drill import FULL, Drill, needs

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.mark.ray
@pytest.mark.parametrize("seed", range(3 if FULL else 1))
def test_a_node_that_dies_costs_nothing(tmp_path: Path, undisturbed: Drill, seed: int, counts: Counter[str]) -> None:
    """SIGKILL of a whole node under a run, then another one joins: its tasks run on other nodes and use up no retry."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            doomed = cluster.add_node(num_cpus=1)
            drill = Drill(tmp_path, options=("--address", cluster.address, "--workers", "2"))
            driver = drill.start()
            driver.wait_for_done(3 + 5 * seed)
            cluster.remove_node(doomed, allow_graceful=False)
            cluster.add_node(num_cpus=1)
            driver.end()
        finally:
            cluster.shutdown()
    drill.check(undisturbed)

    assert not any(cause.startswith("worker_died") for cause in drill.causes())
    counts["nodes killed"] += 1


@dataclass
class Islands:
    """Network namespaces on one bridge, a Ray node in each: machines that can be cut off from each other.

    Attributes:
        folder: Ray's files.
        tag: makes names unique on this machine.
    """

    folder: Path
    tag: str = field(default_factory=lambda: uuid4().hex[:6])
    n_islands: int = 0

    def name(self, index: int) -> str:
        """Of a namespace."""
        return f"wm{self.tag}{index}"

    def make(self) -> None:
        """One more namespace; the first one has the bridge that joins all."""
        index, name = self.n_islands, self.name(self.n_islands)
        ip("netns", "add", name)
        self.n_islands += 1
        ip("-n", name, "link", "set", "lo", "up")
        if index == 0:
            ip("-n", name, "link", "add", "br0", "type", "bridge")
            ip("-n", name, "addr", "add", "10.231.0.1/24", "dev", "br0")
            ip("-n", name, "link", "set", "br0", "up")
            return
        here, there = f"h{self.tag}{index}", f"t{self.tag}{index}"
        ip("link", "add", here, "netns", self.name(0), "type", "veth", "peer", "name", there, "netns", name)
        ip("-n", self.name(0), "link", "set", here, "master", "br0", "up")
        ip("-n", name, "addr", "add", f"10.231.0.{index + 1}/24", "dev", there)
        ip("-n", name, "link", "set", there, "up")

    def ray(self, index: int, *options: str) -> None:
        """Start a node of one CPU on an island; the first is the head."""
        head = ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        kind = ["--address=10.231.0.1:6379"] if index else head
        command = [RAY, "start", *kind, f"--node-ip-address=10.231.0.{index + 1}", "--num-cpus=1", *options]
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        done = subprocess.run(
            [*self.inside(index), *command], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def inside(self, index: int) -> list[str]:
        """What runs a command on an island."""
        return ["ip", "netns", "exec", self.name(index)]

    def cut_off(self, index: int) -> None:
        """No packet reaches the island or leaves it any more; no connection is closed."""
        ip("-n", self.name(0), "link", "set", f"h{self.tag}{index}", "down")

    def sink(self) -> None:
        """End all processes on the islands, and the islands."""
        for index in range(self.n_islands):
            pids = subprocess.run(["ip", "netns", "pids", self.name(index)], capture_output=True, text=True, check=True)
            for pid in pids.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", self.name(index))


def ip(*words: str) -> None:
    """One command of iproute2."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode and "Operation not permitted" in done.stderr:
        pytest.skip("network namespaces: not permitted")
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@pytest.fixture
def islands() -> Iterator[Islands]:
    """Three machines that reach each other."""
    reason = needs("ip")
    if reason:
        pytest.skip(f"network namespaces: {reason}")
    # Ray's sockets are in this folder, and a socket's path has at most 107 characters.
    folder = Path("/tmp") / f"wm{uuid4().hex[:6]}"
    made = Islands(folder)
    try:
        for _ in range(3):
            made.make()
        yield made
    finally:
        made.sink()
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.ray
@pytest.mark.parametrize("seed", range(3 if FULL else 1))
def test_a_node_that_is_cut_off_costs_nothing(
    tmp_path: Path, islands: Islands, undisturbed: Drill, seed: int, counts: Counter[str]
) -> None:
    """Packets are dropped, connections stay open; missing heartbeats are detected and another machine takes over."""
    islands.ray(0)
    islands.ray(1)
    options = ("--address", "10.231.0.1:6379", "--workers", "2", "--set", "executor.heartbeat_timeout_s=10.0")
    drill = Drill(tmp_path, options=options, prefix=islands.inside(0))
    driver = drill.start()
    driver.wait_for_done(3 + 5 * seed)
    time.sleep(0.1 * seed)
    islands.cut_off(1)
    islands.ray(2)
    driver.end()
    drill.check(undisturbed)

    assert any(cause.startswith(("silent", "node_lost")) for cause in drill.causes())
    counts["nodes cut off"] += 1

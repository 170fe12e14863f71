"""Bookkeeping of a worker pool: starting, busy and leaving workers, and how many to start. Independent of Ray."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from wmarena.orchestrator.plan.task import Task


@dataclass
class WorkerSlot:
    """One worker."""

    actor: Any  # the executor's handle
    asked: float  # when it was requested (monotonic seconds)
    whole: bool = False  # it has a whole GPU where others share one
    node: str | None = None  # where it runs; None until it has started
    gpus: tuple[Any, ...] = ()  # ids of its GPUs on that node
    leaving: bool = False  # it gets no more tasks
    tasks: tuple[Task, ...] = ()
    call: Any = None  # the running call, None while idle

    @property
    def ready(self) -> bool:
        """True once it has started."""
        return self.node is not None

    @property
    def idle(self) -> bool:
        """True if it can take a call now."""
        return self.ready and self.call is None and not self.leaving


@dataclass
class Roster:
    """The slots of a pool and the pending answers of its workers."""

    patience_s: float  # how long a slot may take to be placed and to start
    slots: dict[str, WorkerSlot] = field(default_factory=dict)  # by name
    calls: dict[Any, str] = field(default_factory=dict)  # running call -> name
    hellos: dict[Any, str] = field(default_factory=dict)  # pending start -> name
    refusal: str = ""  # why the last worker that failed to start did
    whole_refused: bool = False  # no whole GPU was available for one worker
    _nodes: frozenset[str] = frozenset()
    _not_before: float = 0.0

    def add(self, name: str, slot: WorkerSlot, hello: Any) -> None:
        """Add a worker that was requested."""
        self.slots[name] = slot
        self.hellos[hello] = name

    def mark_started(self, name: str, facts: Mapping[str, Any]) -> None:
        """Record that a worker has started, with its ``node`` and ``gpus``."""
        self.slots[name].node, self.slots[name].gpus = facts["node"], facts["gpus"]

    def pause_starts(self, reason: str, now: float) -> None:
        """Record a failed start: request no more workers until nodes change or ``patience_s`` have passed."""
        self.refusal = reason
        self._not_before = now + self.patience_s

    def remove(self, name: str) -> WorkerSlot:
        """Remove a worker with its pending answers."""
        slot = self.slots.pop(name)
        self.calls.pop(slot.call, None)
        for hello in [h for h, n in self.hellos.items() if n == name]:
            del self.hellos[hello]
        return slot

    def update_nodes(self, nodes: Collection[str]) -> None:
        """Record the live nodes; after a change, new workers may find room."""
        found = frozenset(nodes)
        if found != self._nodes:
            self._nodes, self._not_before = found, 0.0

    def lost(self, nodes: Collection[str]) -> list[str]:
        """Return idle workers of lost nodes; the call of a busy one fails by itself."""
        return [n for n, s in self.slots.items() if s.ready and s.node not in nodes and s.call is None]

    def unplaced(self, now: float) -> list[str]:
        """Return workers that did not start within ``patience_s``."""
        aside = any(slot.leaving for slot in self.slots.values())
        late: list[str] = []
        for name, slot in self.slots.items():
            if slot.whole and aside:
                slot.asked = now  # its GPU is still being cleared
            if not slot.ready and now - slot.asked > self.patience_s:
                late.append(name)
                self.whole_refused |= slot.whole
        if late:
            self.pause_starts(f"no node had room within {self.patience_s:.0f} s", now)
        return late

    def n_missing(self, wanted: int, now: float) -> int:
        """Return how many workers to request so that there are ``wanted``, besides one with a whole GPU."""
        if now < self._not_before:
            return 0
        return max(0, wanted - sum(not slot.whole for slot in self.slots.values()))

    @property
    def dedicated(self) -> str | None:
        """The worker with a whole GPU where others share one."""
        return next((name for name, slot in self.slots.items() if slot.whole), None)

    def clear_gpu(self) -> list[str]:
        """Clear the GPU with the fewest busy workers: none of them gets more tasks; return those that are idle."""
        # Fewest busy workers: their running tasks delay the whole GPU least.
        groups: dict[tuple[str | None, tuple[Any, ...]], list[str]] = defaultdict(list)
        for name, slot in self.slots.items():
            if slot.ready:
                groups[slot.node, slot.gpus].append(name)
        chosen = min(groups.values(), key=lambda names: sum(bool(self.slots[n].tasks) for n in names), default=[])
        for name in chosen:
            self.slots[name].leaving = True
        return [name for name in chosen if self.slots[name].call is None]

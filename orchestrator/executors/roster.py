"""Who is in a pool: workers that start, work, leave; how many more are wanted. Knows neither Ray nor tasks' meaning."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from wmarena.orchestrator.plan.task import Task


@dataclass
class WorkerSlot:
    """One worker.

    Attributes:
        actor: a handle for whoever made it.
        asked: when it was asked for (monotonic seconds).
        whole: True if it has a GPU for itself where others share one.
        node: where it runs; None until it has said hello.
        gpus: ids of its GPUs on that node.
        leaving: True if it gets nothing more to do.
        call: what it works on, None while idle.
    """

    actor: Any
    asked: float
    whole: bool = False
    node: str | None = None
    gpus: tuple[Any, ...] = ()
    leaving: bool = False
    tasks: tuple[Task, ...] = ()
    call: Any = None

    @property
    def ready(self) -> bool:
        """True once it has said hello."""
        return self.node is not None

    @property
    def idle(self) -> bool:
        """True if it can take a call now."""
        return self.ready and self.call is None and not self.leaving


@dataclass
class Roster:
    """The slots of a pool with what they are waited for.

    Attributes:
        patience_s: how long a slot may take to be placed and to start.
        slots: name -> slot.
        calls: call -> name; hellos: first sign of life -> name.
        refusal: why the last worker that did not start did not.
        whole_refused: True once no GPU could be had for one worker alone.
    """

    patience_s: float
    slots: dict[str, WorkerSlot] = field(default_factory=dict)
    calls: dict[Any, str] = field(default_factory=dict)
    hellos: dict[Any, str] = field(default_factory=dict)
    refusal: str = ""
    whole_refused: bool = False
    _nodes: frozenset[str] = frozenset()
    _not_before: float = 0.0

    def add(self, name: str, slot: WorkerSlot, hello: Any) -> None:
        """A worker was asked for."""
        self.slots[name] = slot
        self.hellos[hello] = name

    def greet(self, name: str, facts: Mapping[str, Any]) -> None:
        """It has started: ``node`` and ``gpus`` say where."""
        self.slots[name].node, self.slots[name].gpus = facts["node"], facts["gpus"]

    def refuse(self, reason: str, now: float) -> None:
        """One did not start, or found no place: no more are asked for until nodes change or patience has passed."""
        self.refusal = reason
        self._not_before = now + self.patience_s

    def remove(self, name: str) -> WorkerSlot:
        """Forget a worker; nothing is heard of its call any more."""
        slot = self.slots.pop(name)
        self.calls.pop(slot.call, None)
        for hello in [h for h, n in self.hellos.items() if n == name]:
            del self.hellos[hello]
        return slot

    def see(self, nodes: Collection[str]) -> None:
        """The nodes that are alive now; others than before may have room for those who found none."""
        found = frozenset(nodes)
        if found != self._nodes:
            self._nodes, self._not_before = found, 0.0

    def lost(self, nodes: Collection[str]) -> list[str]:
        """Idle workers of nodes that are gone; what a working one was doing fails by itself."""
        return [n for n, s in self.slots.items() if s.ready and s.node not in nodes and s.call is None]

    def unplaced(self, now: float) -> list[str]:
        """Workers that have been waited for in vain."""
        aside = any(slot.leaving for slot in self.slots.values())
        late: list[str] = []
        for name, slot in self.slots.items():
            if slot.whole and aside:
                slot.asked = now  # its GPU is not free yet
            if not slot.ready and now - slot.asked > self.patience_s:
                late.append(name)
                self.whole_refused |= slot.whole
        if late:
            self.refuse(f"nothing had room within {self.patience_s:.0f} s", now)
        return late

    def growth(self, wanted: int, now: float) -> int:
        """How many workers to ask for so that there are ``wanted``, beside one that has a GPU for itself."""
        if now < self._not_before:
            return 0
        return max(0, wanted - sum(not slot.whole for slot in self.slots.values()))

    @property
    def dedicated(self) -> str | None:
        """The worker that has a GPU for itself where others share one."""
        return next((name for name, slot in self.slots.items() if slot.whole), None)

    def step_aside(self) -> list[str]:
        """Clear the GPU whose workers are least busy: none of them gets more to do, those returned can go at once."""
        groups: dict[tuple[str | None, tuple[Any, ...]], list[str]] = defaultdict(list)
        for name, slot in self.slots.items():
            if slot.ready:
                groups[slot.node, slot.gpus].append(name)
        chosen = min(groups.values(), key=lambda names: sum(bool(self.slots[n].tasks) for n in names), default=[])
        for name in chosen:
            self.slots[name].leaving = True
        return [name for name in chosen if self.slots[name].call is None]

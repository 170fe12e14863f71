"""Plans one workload: its identity, facts that depend on its data, and the models trained without a mark."""

import dataclasses
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from wmarena.attacks.base import Attack
from wmarena.attacks.knowledge import Budget
from wmarena.experiments.spec.labels import short
from wmarena.orchestrator.plan.identity import canonical, code_digest, digest
from wmarena.orchestrator.plan.plugins import build
from wmarena.orchestrator.plan.task import Kind, Task, TaskId
from wmarena.orchestrator.worker.roles import adversary_data
from wmarena.orchestrator.worker.workload import BoundWorkload, WorkloadConfig
from wmarena.schemes.base import Scheme, Workload, lists

TaskConfig = dict[str, Any]

_SECONDS_A_SAMPLE = 2e-4
"""Assumed seconds of a training pass over one sample; it orders tasks until the journal has measured some."""


class CodeDigests:
    """Digests of the code behind plugins, computed once per set of modules."""

    def __init__(self) -> None:
        self._known: dict[frozenset[str], str] = {}

    def __call__(self, *plugins: object) -> str:
        """Return the digest of all code that ``plugins`` (or modules by name) and their nested plugins import."""
        modules = frozenset(_modules(plugins))
        if modules not in self._known:
            self._known[modules] = code_digest(modules)
        return self._known[modules]


def _modules(plugins: Iterable[object]) -> Iterator[str]:
    for plugin in plugins:
        if isinstance(plugin, str):
            yield plugin
            continue
        yield type(plugin).__module__
        if isinstance(plugin, Attack):
            yield from _modules(plugin.plugins())


@dataclasses.dataclass(frozen=True)
class _Facts:
    """Facts about a workload's data: the owner's samples, whether a reserve exists, the task."""

    n_train: int
    reserve: bool
    task: Workload


class WorkloadPlanner:
    """One workload of a spec.

    Args:
        workload: the plugin.
        label: suffix of its tasks' labels, "" if the spec has one workload only.
        data_root: the first place to look for its data.
        root: commitment of the key root.
        code: shared between the workloads of a spec.

    Raises:
        wmarena.orchestrator.worker.workload.MissingData: the data are missing.
    """

    def __init__(
        self, workload: WorkloadConfig, *, label: str, data_root: Path | None, root: str, code: CodeDigests
    ) -> None:
        self.workload = workload
        self.config = workload.config()
        self.data = workload.fingerprint(data_root)
        self.metric = workload.info.metric
        self.root = root
        self.code = code
        self.suffix = f"/{label}" if label else ""
        self._data_root = data_root
        self._trained: dict[tuple[int, str], Task] = {}
        self._shares: dict[tuple[float, bool], int] = {}

    @cached_property
    def facts(self) -> _Facts:
        """Read the facts from the bound workload, and release its samples at once."""
        bound = self._bound()
        return _Facts(len(bound.train), bound.reserve is not None, bound.task)

    def adversary_samples(self, budget: Budget) -> int:
        """Count the samples that an adversary of ``budget`` trains on, equal for every seed."""
        share = budget.data_fraction, budget.disjoint
        if share not in self._shares:
            granted = {"data_fraction": budget.data_fraction, "disjoint": budget.disjoint}
            data, _ = adversary_data(self._bound(), granted, seed=0)
            self._shares[share] = len(data)
        return self._shares[share]

    def _bound(self) -> BoundWorkload:
        return self.workload.bind(torch.device("cpu"), self._data_root)

    def twin_recipe(self, scheme: Scheme) -> TaskConfig | None:
        """Return the extra training of ``scheme`` without its mark, as JSON values; None if it trains from scratch."""
        recipe = scheme.twin_recipe(self.facts.task, self.facts.n_train)
        return None if recipe is None else {k: lists(v) for k, v in dataclasses.asdict(recipe).items()}

    def task(
        self,
        kind: Kind,
        config: TaskConfig,
        seed: int,
        parents: tuple[tuple[str, TaskId], ...],
        *,
        data: str | None = None,
        **rest: Any,
    ) -> Task:
        """Make a task; ``data`` if it reads more than the workload's own, ``rest``: fields of ``Task``."""
        full = {"workload": self.config, **config}
        return Task(kind, full, seed, parents, data=data or self.data, workload=self.workload.name, **rest)

    def other(self, name: str) -> WorkloadConfig:
        """Build another workload with its defaults, by name (transfer learning)."""
        return build("workload", {"name": name})  # type: ignore[return-value]

    def data_with(self, others: Iterable[WorkloadConfig]) -> str:
        """Return the fingerprint of this workload's data together with those of others."""
        prints = [other.fingerprint(self._data_root) for other in others]
        return digest("data", [self.data, *prints]) if prints else self.data

    def clean(self, seed: int) -> Task:
        """Make the task of the model without a mark."""
        return self._train(seed, "clean", None, None, ())

    def twin(self, seed: int, recipe: TaskConfig | None) -> Task:
        """Make the task of the clean model after a scheme's extra training; the clean model if there is none."""
        start = self.clean(seed)
        if recipe is None:
            return start
        length = f"epochs={recipe['epochs']}" if recipe["steps"] is None else f"steps={recipe['steps']}"
        what = f"twin/{recipe['optimiser']},lr={short(recipe['lr'])},{length}"
        return self._train(seed, what, recipe, None, (("start", start.id),))

    def scratch(self, seed: int, adversary: TaskConfig) -> Task:
        """Make the task of a model trained on the adversary's data alone."""
        # Limits on epochs and queries do not change this model, so budgets that differ in them share it.
        data = {name: adversary[name] for name in ("data_fraction", "disjoint")}
        granted = ",".join(f"{k}={short(v)}" for k, v in data.items())
        return self._train(seed, f"scratch/{granted}", None, data, ())

    def _train(
        self,
        seed: int,
        what: str,
        recipe: TaskConfig | None,
        adversary: TaskConfig | None,
        parents: tuple[tuple[str, TaskId], ...],
    ) -> Task:
        key = (seed, canonical([recipe, adversary]))
        if key not in self._trained:
            self._trained[key] = self.task(
                Kind.TRAIN,
                {"recipe": recipe, "adversary": adversary},
                seed,
                parents,
                code=self.code(self.workload),
                label=f"train/{what}{self.suffix}/seed{seed}",
                cost=self.seconds(self.passes(recipe)),
            )
        return self._trained[key]

    def passes(self, recipe: TaskConfig | None) -> float:
        """Count the passes over the owner's data in ``recipe``, or in the workload's own training."""
        if recipe is not None and recipe["steps"] is not None:
            return float(recipe["steps"] * recipe["batch_size"] / max(1, self.facts.n_train))
        epochs = self.config.get("epochs") if recipe is None else recipe["epochs"]
        return float(epochs) if isinstance(epochs, int | float) else 1.0

    def seconds(self, passes: float) -> float:
        """Estimate the seconds of training passes over the owner's data."""
        return max(0.1, passes * self.facts.n_train * _SECONDS_A_SAMPLE)


class PlannerCache:
    """Planners of earlier expansions, so that one process reads data and code once."""

    def __init__(self, data_root: Path | None) -> None:
        self._data_root = data_root
        self._code = CodeDigests()
        self._known: dict[tuple[str, str, str], WorkloadPlanner] = {}

    def of(self, workload: WorkloadConfig, label: str, root: str) -> WorkloadPlanner:
        """Return the planner of ``workload`` with this label and commitment ``root`` of the key root."""
        key = canonical(workload.config()), label, root
        if key not in self._known:
            self._known[key] = WorkloadPlanner(
                workload, label=label, data_root=self._data_root, root=root, code=self._code
            )
        return self._known[key]

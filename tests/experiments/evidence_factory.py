"""Plans with hand-made evidence for table and report, without training.

``Bench`` grows a plan cell by cell and writes the records that a run would have left; ``showcase`` is a whole run of
three schemes under nine attacks that looks like a real one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from wmarena.experiments.results.rows import ResultRow
from wmarena.experiments.results.table import build_rows
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Cell, Plan
from wmarena.orchestrator.plan.task import Kind, State, Task, TaskId
from wmarena.schemes.base import Verdict
from wmarena.schemes.prf import Prf

ENVIRONMENT = {"python": "3.11.9", "torch": "2.11.0", "numpy": "2.1.0", "device_kind": "cpu"}
WORKLOAD = {"name": "digits_mlp", "epochs": 6}
BUDGET = {"data_fraction": 0.1, "disjoint": False, "max_drop": 0.05}


def verdict(k: int, n: int = 100, q: float = 0.1, **changes: Any) -> Verdict:
    """Binomial evidence: k of n matches."""
    return replace(Verdict.binomial(k, n, q, access="black", paper=k >= 0.9 * n), **changes)


@dataclass
class Bench:
    """Grows a plan and its records together."""

    plan: Plan = field(default_factory=Plan)
    records: dict[TaskId, Record] = field(default_factory=dict)
    workload: dict[str, Any] = field(default_factory=lambda: dict(WORKLOAD))

    def task(self, kind: Kind, config: Mapping[str, Any], seed: int, parents: Iterable[tuple[str, TaskId]]) -> Task:
        """A planned task, shared if it is there already."""
        scheme, attack = str(config.get("scheme", "")), str(config.get("attack", ""))
        task = Task(
            kind,
            {"workload": self.workload, **config},
            seed,
            tuple(parents),
            "da7a",
            "c0de",
            label=f"{kind.value}/{'/'.join(p for p in (scheme, attack) if p) or 'clean'}/seed{seed}",
            workload=self.workload["name"],
            scheme=scheme,
            attack=attack,
        )
        self.plan.add([task])
        return task

    def done(self, task: Task, seconds: float = 1.0, **result: Any) -> Task:
        """The task finished with ``result``."""
        full = {"seconds": seconds, "device": "cpu", "environment": ENVIRONMENT, **result}
        self.records.setdefault(task.id, Record(task.id, State.DONE, result=full, seconds=seconds, attempt=1))
        return task

    def model(self, task: Task, metric: float, seconds: float = 1.0, **result: Any) -> Task:
        """The task made a model of this accuracy, on test and validation data alike."""
        scores = {"metric": "accuracy", "metric_test": metric, "metric_val": metric}
        return self.done(task, seconds, **{**scores, **result})

    def clean(self, seed: int, metric: float = 0.9) -> Task:
        """A clean model."""
        return self.model(self.task(Kind.TRAIN, {"recipe": None, "adversary": None}, seed, ()), metric, 20.0)

    def scratch(self, seed: int, metric: float = 0.6) -> Task:
        """What the adversary trains alone."""
        adversary = {"data_fraction": 0.1, "disjoint": False}
        return self.model(self.task(Kind.TRAIN, {"recipe": None, "adversary": adversary}, seed, ()), metric, 8.0)

    def embed(self, scheme: str, seed: int, metric: float = 0.9, **result: Any) -> Task:
        """A marked model; ``result`` adds to or replaces what embedding reports."""
        task = self.task(Kind.EMBED, {"scheme": scheme}, seed, [("clean", self.clean(seed).id)])
        return self.model(task, metric, **{"seconds": 30.0, "covertness_mean_abs_dev": 0.002, **result})

    def attack(self, victim: Task, attack: str, params: Mapping[str, Any], metric: float | None, **result: Any) -> Task:
        """A suspect, or (metric None) a mere claim."""
        config = {"scheme": victim.scheme, "attack": attack, "params": dict(params)}
        task = self.task(Kind.ATTACK, config, victim.seed, [("victim", victim.id)])
        result = {"seconds": 5.0, **result}
        return self.done(task, **result) if metric is None else self.model(task, metric, **result)

    def judge(self, owner: Task, suspect: Task, evidence: Verdict, **cell: Any) -> Cell:
        """A verify task, its record and its cell."""
        marks = {k: cell.get(k) for k in ("control", "head", "claim", "attack", "attack_params")}
        marks |= {"realigned": True} if cell.get("realigned") else {}
        config = {"scheme": owner.scheme, "judged": marks}
        task = self.task(Kind.VERIFY, config, owner.seed, [("suspect", suspect.id), ("owner", owner.id)])
        self.done(task, 0.2, verdict={**asdict(evidence), "caveats": list(evidence.caveats)})
        made = Cell(
            **{
                "verify": task.id,
                "embed": owner.id,
                "suspect": suspect.id,
                "clean": owner.parent("clean"),
                "workload": self.workload["name"],
                "metric": "accuracy",
                "scheme": owner.scheme,
                "scheme_params": {},
                "attack": "none",
                "attack_params": {},
                "seed": owner.seed,
                **cell,
            }
        )
        self.plan.add([], [made])
        return made

    def attacked(
        self, owner: Task, attack: str, params: Mapping[str, Any], metric: float, evidence: Verdict, **cell: Any
    ) -> Cell:
        """An attack and the owner's row on its suspect."""
        suspect = self.attack(owner, attack, params, metric)
        more = {"attack_task": suspect.id, "scratch": self.scratch(owner.seed).id, "budget": BUDGET, **cell}
        return self.judge(owner, suspect, evidence, attack=attack, attack_params=dict(params), **more)

    def fail(self, task_id: TaskId, error: str = "error: ValueError: expected 2, got 3") -> None:
        """The task failed; everything that consumes it was skipped."""
        self.records[task_id] = Record(task_id, State.FAILED, error=error, attempt=1, worker="cpu-0")
        label = self.plan.tasks[task_id].label
        for child in self.plan.children(task_id):
            self.skip(child, f"skipped: {label}")

    def skip(self, task_id: TaskId, reason: str) -> None:
        """The task and what consumes it were skipped."""
        self.records[task_id] = Record(task_id, State.SKIPPED, error=reason)
        for child in self.plan.children(task_id):
            self.skip(child, reason)

    def records_of(self, *ids: TaskId) -> list[Record]:
        """Records by task."""
        return [self.records[i] for i in ids]


@dataclass(frozen=True)
class Mark:
    """A make-believe scheme: its test, what it costs, how it wears off under each attack."""

    name: str
    n: int
    q: float
    cost: float
    seconds: float
    params: dict[str, Any]
    wear: dict[str, float]


MARKS = (
    Mark("mtlsign", 600, 0.5, 0.002, 62.0, {"lambda1": 0.1, "lambda2": 0.1}, {"prune_neurons": 0.5, "overwrite": 0.9}),
    Mark("adi", 100, 0.1, 0.0015, 24.0, {"mode": "pretrained"}, {"rtal": 0.6, "prune_neurons": 0.9, "spoil": 1.0}),
    Mark("uchida", 128, 0.5, 0.004, 11.0, {"bits": 128}, {"overwrite": 0.5, "spoil": 1.0, "prune_neurons": 0.2}),
)

SWEEPS: dict[str, tuple[str, tuple[float, ...], float]] = {
    "finetune": ("epochs", (1, 2, 5), 0.004),
    "prune_weights": ("sparsity", (0.2, 0.4, 0.6, 0.8, 0.9), 0.12),
    "prune_neurons": ("fraction", (0.1, 0.3, 0.5, 0.7), 0.2),
    "overwrite": ("lr", (1e-5, 1e-4, 3e-4), 0.01),
}


def showcase(seeds: Iterable[int] = (0, 1, 2), *, wound: bool = True) -> Bench:
    """A whole run; with ``wound`` one attack failed on one seed."""
    bench = Bench(workload={"name": "fashion_lenet5", "epochs": 6})
    for seed in seeds:
        for mark in MARKS:
            _defend(bench, mark, seed)
    if wound:
        doomed = next(t for t in bench.plan if t.kind is Kind.ATTACK and t.attack == "spoil" and t.scheme == "mtlsign")
        bench.fail(doomed.id, "diverged: expected a finite loss, got nan at step 113")
    return bench


def _defend(bench: Bench, mark: Mark, seed: int) -> None:
    luck = Prf(f"showcase-{mark.name}-{seed}-0123456789".encode())
    clean = bench.clean(seed, 0.8975 + 0.002 * (seed % 3))
    owner = bench.embed(mark.name, seed, 0.8975 + 0.002 * (seed % 3) - mark.cost, seconds=mark.seconds + seed)
    base = bench.records[owner.id].result or {}

    def found(rate: float, label: str) -> Verdict:
        hits = luck.uniform(label, mark.n) < mark.q + (1 - mark.q) * rate
        return verdict(int(hits.sum()), mark.n, mark.q)

    def row(suspect: Task, rate: float, label: str, **cell: Any) -> None:
        bench.judge(owner, suspect, found(rate, label), scheme_params=mark.params, **cell)

    row(owner, 1.0, "own")
    row(clean, 0.0, "clean", control="clean")
    row(bench.clean(seed + 1000003), 0.0, "null", control="null_model")
    row(owner, 0.0, "stranger", control="stranger_key")
    for attack, (name, strengths, harm) in SWEEPS.items():
        variants = ("ftal", "rtal") if attack == "finetune" else ("",)
        for variant in variants:
            _sweep(bench, mark, owner, (attack, variant, name, strengths, harm), row)
    metric = float(base["metric_test"]) - 0.003
    spoiled = bench.attack(owner, "spoil", {"mode": "joint"}, metric, seconds=14.0)
    rate = 1 - mark.wear.get("spoil", 0.4)
    cell = {"attack_task": spoiled.id, "scratch": bench.scratch(seed, 0.83).id, "budget": BUDGET}
    row(spoiled, rate, "spoil", attack="spoil", attack_params={"mode": "joint"}, **cell)
    forger = bench.attack(owner, "ambiguity", {"level": 0}, None, claim={"n_tried": 200})
    evidence = replace(found(0.03, "forged"), details={"n_tried": 200})
    cell = {"attack_task": forger.id, "claim": True, "budget": BUDGET, "scheme_params": mark.params}
    bench.judge(owner, owner, evidence, attack="ambiguity", attack_params={"level": 0}, **cell)


def _sweep(bench: Bench, mark: Mark, owner: Task, sweep: tuple[Any, ...], row: Any) -> None:
    attack, variant, name, strengths, harm = sweep
    scratch = bench.scratch(owner.seed, 0.83)
    for i, strength in enumerate(strengths):
        dose = (i + 1) / len(strengths)
        params = {"lr": 0.001, **({"variant": variant} if variant else {}), name: strength}
        marked = float((bench.records[owner.id].result or {})["metric_test"])
        metric = marked - harm * dose**3 - 0.0007 * (owner.seed % 3) - (0.004 if variant == "rtal" else 0)
        suspect = bench.attack(owner, attack, params, metric, seconds=4.0 * dose + 1)
        wear = mark.wear.get(variant, mark.wear.get(attack, 0.05))
        cell = {"attack_task": suspect.id, "scratch": scratch.id, "budget": BUDGET, "attack": attack}
        cell |= {"attack_params": params, "strength_name": name, "strength": float(strength)}
        rate = max(0.0, 1 - wear * dose**1.5)
        row(suspect, rate, f"{attack}{variant}{strength}", **cell)
        if variant == "rtal" and mark.name == "adi":
            row(suspect, 1.0, f"{attack}{variant}{strength}head", head="original", **cell)


class PredictionStore:
    """Stored predictions with a given number of discordant test samples per pair of models."""

    def __init__(self, bench: Bench, n: int = 2000, classes: int = 10) -> None:
        self._bench = bench
        self._truth = torch.arange(n, dtype=torch.int16) % classes
        self._classes = classes

    def load_tensors(self, task_id: TaskId, name: str) -> dict[str, Tensor]:
        """Predictions whose accuracy is the one in the task's record. Raises OSError for unknown tasks."""
        record = self._bench.records.get(task_id)
        if record is None or record.result is None or name != "predictions.safetensors":
            raise FileNotFoundError(name)
        n = len(self._truth)
        wrong = round((1 - float(record.result["metric_test"])) * n)
        order = torch.from_numpy(Prf(bytes.fromhex(task_id)).permutation("errors", n // 5))
        predicted = self._truth.clone()
        predicted[order[:wrong]] = (predicted[order[:wrong]] + 1) % self._classes
        return {"test": predicted, "test_labels": self._truth}


def row_of(**columns: Any) -> ResultRow:
    """A finished row with these columns and nothing else to say."""
    texts = dict.fromkeys(("experiment", "run_id", "task_id", "embed_id", "suspect_id", "clean_id"), "")
    configs = dict.fromkeys(("scheme_params", "attack_params", "budget"), "{}")
    asked = {"workload": "digits_mlp", "scheme": "adi", "attack": "finetune", "searched": False, "seed": 0}
    return ResultRow.from_record({**texts, **configs, **asked, "status": "done", "cached": False, **columns})


def rows_of(bench: Bench) -> list[ResultRow]:
    """The bench's table."""
    return build_rows(bench.plan, bench.records, experiment="trial", run_id="run-1")


def sweep(bench: Bench, owner: Task, outcomes: list[tuple[float, int]], **cell: Any) -> None:
    """Fine-tuning at epochs 1, 2, ...: (suspect's metric, matches) each."""
    for epochs, (metric, hits) in enumerate(outcomes, start=1):
        more = {"strength_name": "epochs", "strength": float(epochs), **cell}
        bench.attacked(owner, "finetune", {"epochs": epochs}, metric, verdict(hits), **more)

"""What a task does, given what its parents left in the store. Runs in whatever process an executor chose.

A ``Workbench`` owns one device: it keeps data sets and recently used models resident and computes one task at a time.
It decides nothing: no scheduling, no retries. ``attempt_task`` is the one place where an exception becomes a Failure.
"""

import copy
import hashlib
import json
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.base import Attack, AttackView, Budget, Claim, Piracy, finish
from orchestrator.arena import Arena, WorkloadConfig
from orchestrator.checkpoints import FolderCheckpoints
from orchestrator.custody import KeyRoot
from orchestrator.identity import canonical, digest
from orchestrator.plugins import build, build_attack, build_scheme, use_workloads
from orchestrator.resident import Resident
from orchestrator.store import CorruptArtifact, Store, StoreError, tensors_to_bytes
from orchestrator.task import Failure, FailureKind, Kind, Task, TaskId
from schemes.base import Cancelled, Owner, Recipe, Samples, Scheme, Suspect, Verdict
from schemes.keys import Key
from schemes.prf import subseed
from schemes.statistics import log10_adjusted

MODEL = "model.safetensors"
PREDICTIONS = "predictions.safetensors"
HISTORY = "history.json"
_VAL_SHARE = 0.1
_SCRATCH_PASSES = 10


@dataclass(frozen=True)
class Setup:
    """What a worker process needs to make its workbench; holds no secret, only the path of one.

    Attributes:
        device: "cpu", "cuda" or "auto".
        threads: CPU threads per task; the same under every executor, since sums depend on it.
        root_file: file of the key root, None for the published one.
        workloads: name -> "module:Class" of the built-in workloads.
        checkpoint_s: least seconds between two checkpoints of one task.
        resident_bytes: models kept on the device between tasks.
    """

    store: Path
    data_root: Path | None = None
    device: str = "auto"
    threads: int = 1
    root_file: Path | None = None
    workloads: Mapping[str, str] = field(default_factory=dict)
    checkpoint_s: float = 60.0
    resident_bytes: int = 512 * 2**20


class Workbench:
    """One device with its data and models."""

    def __init__(self, setup: Setup, cancelled: Callable[[], bool] = lambda: False) -> None:
        use_workloads(setup.workloads)
        torch.set_num_threads(setup.threads)
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if setup.device == "auto" else setup.device
        self.device = torch.device(kind)
        self.device_name = torch.cuda.get_device_name() if kind == "cuda" else "cpu"
        self.setup = setup
        self.store = Store(setup.store)
        self.root = KeyRoot.from_file(setup.root_file)
        self.cancelled = cancelled
        self._arenas: dict[str, Arena] = {}
        self._models = Resident(setup.resident_bytes)

    def arena(self, config: Mapping[str, Any]) -> Arena:
        """The workload with its data on the device; two stay resident."""
        name = canonical(dict(config))
        if name not in self._arenas:
            plugin: WorkloadConfig = build("workload", config)  # type: ignore[assignment]
            while len(self._arenas) >= 2:
                self._arenas.pop(next(iter(self._arenas)))
            self._arenas[name] = plugin.bind(self.device, self.setup.data_root)
        return self._arenas[name]

    def model(self, arena: Arena, task_id: TaskId) -> nn.Module:
        """A resident model of the store, in eval mode: copy it before changing it."""

        def load() -> nn.Module:
            network = arena.task.network(0)
            network.load_state_dict(self.store.load_tensors(task_id, MODEL))
            return network.eval()

        return self._models.get(task_id, load)

    def checkpoints(self, name: str) -> FolderCheckpoints:
        """The checkpoint folder of a trajectory."""
        folder = self.store.root / "checkpoints" / name
        return FolderCheckpoints(folder, every_s=self.setup.checkpoint_s, cancelled=self.cancelled)


class Curves:
    """Collects training curves (``schemes.base.Log``)."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    def __call__(self, step: int, **metrics: float) -> None:
        self.points.append({"step": step, **metrics})


def attempt_task(bench: Workbench, task: Task) -> dict[str, Any] | Failure:
    """Perform ``task``; the result is in the store before it is returned. Exceptions become Failures, here only."""
    try:
        return perform(bench, task)
    except Cancelled as error:
        return Failure(FailureKind.CANCELLED, str(error))
    except CorruptArtifact as error:
        return Failure(FailureKind.CORRUPT, str(error), damaged=error.task_id)
    except FloatingPointError as error:
        return Failure(FailureKind.DIVERGED, str(error), traceback.format_exc())
    except (torch.OutOfMemoryError, MemoryError) as error:
        return Failure(FailureKind.OUT_OF_MEMORY, str(error).splitlines()[0], traceback.format_exc())
    except StoreError as error:
        return Failure(FailureKind.STORE, str(error), traceback.format_exc())
    except Exception as error:  # noqa: BLE001 - the one place where a task's failure becomes evidence
        line = str(error).splitlines()[0] if str(error) else ""
        return Failure(FailureKind.ERROR, f"{type(error).__name__}: {line}", traceback.format_exc())


def perform(bench: Workbench, task: Task) -> dict[str, Any]:
    """Compute one task, commit its artifact, return its result (small, JSON)."""
    started = time.perf_counter()
    verb = {Kind.TRAIN: _train, Kind.EMBED: _embed, Kind.ATTACK: _attack, Kind.VERIFY: _verify}[task.kind]
    arena = bench.arena(task.config["workload"])
    result, files = verb(bench, arena, task)
    result |= {
        "seconds": time.perf_counter() - started,
        "device": bench.device_name,
        "environment": environment(bench.device),
        "consumed": _consumed(bench.store, task),
    }
    if MODEL in files:
        result["made"] = hashlib.sha256(files[MODEL]).hexdigest()
    manifest = bench.store.commit(task.id, task.identity(), result, files)
    stored: dict[str, Any] = manifest["result"]
    return stored


def environment(device: torch.device) -> dict[str, str]:
    """What results may depend on in the last bit; not part of identities, but noted."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device_kind": device.type,
    }


def trajectory_id(task: Task) -> str:
    """Name of the checkpoint folder: the task's own id, or one shared by all strengths of an incremental attack."""
    if task.kind is not Kind.ATTACK:
        return task.id
    attack = build_attack(task.config["attack"])
    if not attack.incremental:
        return task.id
    identity = task.identity()
    identity["config"] = {**identity["config"], "attack": attack.trajectory()}
    return digest("trajectory", identity)


_Made = tuple[dict[str, Any], dict[str, bytes]]


def _train(bench: Workbench, arena: Arena, task: Task) -> _Made:
    config, curves, checkpoints = task.config, Curves(), bench.checkpoints(task.id)
    samples, recipe = arena.train, arena.task.recipe
    if config["adversary"] is not None:
        samples, _ = adversary_data(arena, config["adversary"], task.seed)
        recipe = scratch_recipe(recipe, float(config["adversary"]["data_fraction"]))
    if config["recipe"] is None:
        model = arena.task.network(subseed(task.seed, "init"))
    else:
        model = copy.deepcopy(bench.model(arena, task.parent("start")))
        recipe = Recipe(**{**config["recipe"], "milestones": tuple(config["recipe"]["milestones"])})
    seed = subseed(task.seed, "train")
    arena.task.fit(model, samples, recipe, seed=seed, log=curves, checkpoints=checkpoints)
    finish(model)
    made = _with_model(arena, model, curves)
    checkpoints.clear()
    return made


def _embed(bench: Workbench, arena: Arena, task: Task) -> _Made:
    scheme = build_scheme(task.config["scheme"])
    clean = bench.model(arena, task.parent("clean"))
    start = arena.task.network(subseed(task.seed, "init")) if scheme.from_scratch else copy.deepcopy(clean)
    curves, checkpoints = Curves(), bench.checkpoints(task.id)
    owner = Owner(
        task=arena.task,
        train=arena.train,
        val=arena.val,
        seed=subseed(task.seed, "embed"),
        log=curves,
        checkpoints=checkpoints,
    )
    prf = bench.root.prf("owner", *_key_parts(scheme, task))
    marked, key = scheme.embed(start, owner, scheme.keygen(arena.task, prf))
    finish(marked)
    key = key.with_parts(
        public={
            "workload": task.config["workload"],
            "config": scheme.config(until="embed"),
            "simulated": bench.root.simulated,
        }
    )
    key.save(bench.store.key_dir(task.id))
    result, files = _with_model(arena, marked, curves)
    result |= {"commitment": key.commitment, "covertness_mean_abs_dev": mean_abs_deviation(clean, marked)}
    checkpoints.clear()
    return result, files


def _attack(bench: Workbench, arena: Arena, task: Task) -> _Made:
    attack, scheme = build_attack(task.config["attack"]), build_scheme(task.config["scheme"])
    victim_id = task.parent("victim")
    curves, checkpoints = Curves(), bench.checkpoints(trajectory_id(task))
    view = attack_view(bench, arena, task, attack, scheme, curves, checkpoints)
    outcome = attack(bench.model(arena, victim_id), view)
    result: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    claim = outcome.claim if isinstance(outcome, Piracy) else outcome if isinstance(outcome, Claim) else None
    model = outcome.model if isinstance(outcome, Piracy) else outcome if isinstance(outcome, nn.Module) else None
    if model is not None:
        result, files = _with_model(arena, model, curves)
        changed = mean_abs_deviation(bench.model(arena, victim_id), model)
        result["moved_mean_abs_dev"] = changed
    if claim is not None:
        claim.key.save(bench.store.key_dir(task.id))
        result["claim"] = {"n_tried": claim.n_tried, **claim.details}
        result["commitment"] = claim.key.commitment
    checkpoints.clear()
    return result, files


def attack_view(
    bench: Workbench,
    arena: Arena,
    task: Task,
    attack: Attack,
    scheme: Scheme,
    curves: Curves,
    checkpoints: FolderCheckpoints,
) -> AttackView:
    """Everything the attack is granted, and nothing else; the key is loaded only if the attack declares it."""
    needs = attack.needs()
    budget = Budget(**task.config["adversary"])
    data, val = adversary_data(arena, task.config["adversary"], task.seed)
    adversary = bench.root.prf("adversary", canonical(dict(task.config["attack"])), *_key_parts(scheme, task))
    return AttackView(
        task=arena.task,
        scheme=scheme if needs & {"algorithm", "key"} else None,
        data=data,
        val=val,
        budget=budget,
        seed=subseed(task.seed, "attack", attack.name),
        prf=adversary,
        log=curves,
        checkpoints=checkpoints,
        key=Key.load(bench.store.key_dir(task.parent("victim"))) if "key" in needs else None,
    )


def _verify(bench: Workbench, arena: Arena, task: Task) -> _Made:
    config = task.config
    scheme = build_scheme(config["scheme"])
    model = bench.model(arena, task.parent("suspect"))
    if config["head"] == "original":
        owner_model = bench.model(arena, task.parent("owner"))
        model = copy.deepcopy(model)
        arena.task.head(model).load_state_dict(arena.task.head(owner_model).state_dict())
    n_tried = 1
    if config["claim"]:
        forger = task.parent("claim")
        key = _load_key(bench, forger)
        n_tried = int((bench.store.manifest(forger) or {})["result"]["claim"]["n_tried"])
    else:
        key = _load_key(bench, task.parent("owner"))
    if config["control"] == "stranger_key":
        key = scheme.randomise_key(key, bench.root.prf("stranger", *_key_parts(scheme, task)))
    verdict = scheme.judge(Suspect(model, arena.task), key)
    if config["claim"]:
        verdict = _adjusted(verdict, n_tried)
    return {"verdict": {**asdict(verdict), "caveats": list(verdict.caveats)}}, {}


def _adjusted(verdict: Verdict, n_tried: int) -> Verdict:
    """The claimant's best of ``n_tried`` keys: evidence after the correction for that search."""
    adjusted = log10_adjusted(verdict.log10_p, float(np.log10(n_tried)))
    return replace(verdict, log10_p_adj=adjusted, details={**verdict.details, "n_tried": n_tried})


def _load_key(bench: Workbench, task_id: TaskId) -> Key:
    try:
        return Key.load(bench.store.key_dir(task_id))
    except ValueError as error:
        raise CorruptArtifact(task_id, str(error)) from None


def _key_parts(scheme: Scheme, task: Task) -> tuple[str, ...]:
    return canonical(scheme.config(until="key")), str(task.config["workload"]["name"]), str(task.seed)


def adversary_data(arena: Arena, granted: Mapping[str, Any], seed: int) -> tuple[Samples, Samples]:
    """(training share, held-out tenth of it): what the adversary of this seed has; the same for every attack."""
    pool: Samples = arena.train
    fraction = float(granted["data_fraction"])
    if granted["disjoint"]:
        if arena.reserve is None:
            raise ValueError(
                "expected training data that the owner never saw for a disjoint adversary, got none; "
                "set the workload's `reserve` (for example 0.1)"
            )
        pool = arena.reserve
        fraction = min(1.0, fraction * len(arena.train) / len(pool))
    share = pool.share(fraction, domain="adversary", seed=seed)
    return share.split(_VAL_SHARE, domain="adversary/val", seed=seed)


def scratch_recipe(recipe: Recipe, fraction: float) -> Recipe:
    """Training from nothing on a share: about as many steps as the victim's training, at most tenfold epochs."""
    factor = min(float(_SCRATCH_PASSES), 1.0 / fraction)
    return replace(
        recipe,
        epochs=max(1, round(recipe.epochs * factor)),
        milestones=tuple(round(m * factor) for m in recipe.milestones),
    )


def mean_abs_deviation(reference: nn.Module, other: nn.Module) -> float:
    """Mean |w - w0| over all parameters that both have with equal shapes (covertness, MTLSign Sec. 4)."""
    base = dict(reference.named_parameters())
    pairs = [(base[n], p) for n, p in other.named_parameters() if n in base and base[n].shape == p.shape]
    total = sum(float((a.detach() - b.detach()).abs().sum()) for a, b in pairs)
    return total / max(1, sum(a.numel() for a, _ in pairs))


def _with_model(arena: Arena, model: nn.Module, curves: Curves) -> _Made:
    """Score a finished model once, at birth: later tasks read what was stored."""
    test, val = arena.task.evaluate(model, arena.test), arena.task.evaluate(model, arena.val)
    answers: dict[str, Tensor] = {}
    for name, found in (("test", test), ("val", val)):
        if found.predicted is not None and found.targets is not None:
            answers |= {name: found.predicted, f"{name}_labels": found.targets}
    files = {MODEL: tensors_to_bytes(model.state_dict()), HISTORY: json.dumps(curves.points).encode()}
    if answers:
        files[PREDICTIONS] = tensors_to_bytes(answers)
    return {"metric": arena.task.info.metric, "metric_test": test.score, "metric_val": val.score}, files


def _consumed(store: Store, task: Task) -> dict[str, str]:
    """Hash of every parent's model: a parent recomputed with other bytes is noticed later."""
    found: dict[str, str] = {}
    for parent in task.parent_ids:
        manifest = store.manifest(parent) or {"files": {}}
        if MODEL in manifest["files"]:
            found[parent] = manifest["files"][MODEL]["sha256"]
    return found

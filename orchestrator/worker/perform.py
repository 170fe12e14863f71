"""What a task does, given what its parents left in the store. Runs in whatever process an executor chose.

No scheduling, and no failures: what goes wrong is an exception, which ``attempt.py`` turns into a Failure.
"""

import copy
import hashlib
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from wmarena.attacks.base import Claim, Finding, Piracy, finish
from wmarena.orchestrator.plan.plugins import build_attack, build_scheme
from wmarena.orchestrator.plan.task import Kind, Task, TaskId
from wmarena.orchestrator.store.checkpoints import Curves
from wmarena.orchestrator.store.local import CorruptArtifact, Store, tensors_to_bytes
from wmarena.orchestrator.worker.context import MODEL, WorkerContext
from wmarena.orchestrator.worker.covertness import covertness, mean_abs_deviation
from wmarena.orchestrator.worker.evaluation import in_smaller_batches
from wmarena.orchestrator.worker.memory import PeakMemory
from wmarena.orchestrator.worker.roles import TaskContext, adversary_data, attack_view, owner_of, scratch_recipe
from wmarena.orchestrator.worker.workload import BoundWorkload
from wmarena.schemes.base import Recipe, Scheme, Suspect, Verdict
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Json
from wmarena.schemes.prf import subseed
from wmarena.schemes.statistics import log10_adjusted
from wmarena.schemes.symmetry.realign import realign
from wmarena.schemes.training_state import seeded

PREDICTIONS = "predictions.safetensors"
HISTORY = "history.json"


def perform(bench: WorkerContext, task: Task, most_evaluated: int | None = None) -> dict[str, Any]:
    """Compute one task, commit its artifact, return its result (small, JSON).

    A task whose artifact is there is not computed again: a worker may die after the commit and before its answer.

    Args:
        most_evaluated: the largest batch in which models are judged; None leaves it to the workload.
    """
    kept = bench.store.intact_manifest(task.id)
    if kept is None:
        kept = _compute(bench, task, most_evaluated)
    result: dict[str, Any] = kept["result"]
    return result


def _compute(bench: WorkerContext, task: Task, most_evaluated: int | None) -> dict[str, Any]:
    started = time.perf_counter()
    memory = PeakMemory(bench.device)
    consumed = _consumed(bench.store, task)
    curves = Curves()
    arena = bench.arena(task.config["workload"])
    if most_evaluated is not None:
        arena = in_smaller_batches(arena, most_evaluated)
    job = TaskContext(bench, arena, task, curves, bench.checkpoints(task, curves))
    verb = {Kind.TRAIN: _train, Kind.EMBED: _embed, Kind.ATTACK: _attack, Kind.VERIFY: _verify}[task.kind]
    # What a plugin draws from torch's global generator must not depend on what this process computed before.
    with seeded(subseed(task.seed, "global", task.kind.value), job.arena.task.device):
        result, files = verb(job)
    result |= {
        "seconds": time.perf_counter() - started,
        "device": bench.device_name,
        "environment": bench.environment(),
        "consumed": consumed,
        "memory": memory.found() | ({"most_evaluated": most_evaluated} if most_evaluated is not None else {}),
    }
    if MODEL in files:
        result["made"] = hashlib.sha256(files[MODEL]).hexdigest()
    manifest = bench.store.commit(task.id, task.identity(), result, files)
    # Only now: until the artifact is there, the last checkpoint is all there is.
    job.checkpoints.clear()
    return manifest


_Made = tuple[dict[str, Any], dict[str, bytes]]


def _train(job: TaskContext) -> _Made:
    task, arena, config = job.task, job.arena, job.task.config
    samples, recipe = arena.train, arena.task.recipe
    if config["adversary"] is not None:
        samples, _ = adversary_data(arena, config["adversary"], task.seed)
        recipe = scratch_recipe(recipe, float(config["adversary"]["data_fraction"]))
    if config["recipe"] is None:
        model = arena.task.network(subseed(task.seed, "init"))
    else:
        model = copy.deepcopy(job.bench.model(arena, task.parent("start")))
        recipe = Recipe(**{**config["recipe"], "milestones": tuple(config["recipe"]["milestones"])})
    seed = subseed(task.seed, "train")
    arena.task.fit(model, samples, recipe, seed=seed, log=job.curves, checkpoints=job.checkpoints)
    finish(model)
    return _with_model(arena, model, job.curves)


def _embed(job: TaskContext) -> _Made:
    bench, task, arena = job.bench, job.task, job.arena
    scheme = build_scheme(task.config["scheme"])
    clean = bench.model(arena, task.parent("clean"))
    start = arena.task.network(subseed(task.seed, "init")) if scheme.from_scratch else copy.deepcopy(clean)
    key = scheme.keygen(arena.task, job.prf("owner", scheme))
    marked, key = scheme.embed(start, owner_of(job), key)
    finish(marked)
    key = key.with_parts(
        public={
            "workload": task.config["workload"],
            "config": scheme.config(until="embed"),
            "simulated": bench.root.simulated,
        }
    )
    bench.save_key(task.id, key)
    result, files = _with_model(arena, marked, job.curves)
    licensed = scheme.licensed_task(arena.task, key)
    if licensed is not None:
        # Worth what it does for those who may use it; what everybody else gets stands beside.
        result |= {"unlicensed_test": result["metric_test"], "unlicensed_val": result["metric_val"]}
        result |= {
            "metric_test": licensed.score(marked, arena.test),
            "metric_val": licensed.score(marked, arena.val),
        }
    result |= {"commitment": key.commitment, **covertness(clean, marked)}
    return result, files


def _attack(job: TaskContext) -> _Made:
    bench, task, arena = job.bench, job.task, job.arena
    attack, scheme = build_attack(task.config["attack"]), build_scheme(task.config["scheme"])
    victim = bench.model(arena, task.parent("victim"))
    outcome = attack(victim, attack_view(job, attack, scheme))
    result: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    claim = outcome.claim if isinstance(outcome, Piracy) else outcome if isinstance(outcome, Claim) else None
    model = outcome if isinstance(outcome, nn.Module) else None
    if isinstance(outcome, Piracy | Finding):
        model = outcome.model
    if model is not None:
        result, files = _with_model(arena, model, job.curves)
        result["moved_mean_abs_dev"] = mean_abs_deviation(victim, model)
    if claim is not None:
        bench.save_key(task.id, claim.key)
        result["claim"] = {"n_tried": claim.n_tried, **claim.details}
        result["commitment"] = claim.key.commitment
    if isinstance(outcome, Finding):
        result["facts"] = dict(outcome.details)
    return result, files


def _verify(job: TaskContext) -> _Made:
    bench, task, arena, config = job.bench, job.task, job.arena, job.task.config
    scheme = build_scheme(config["scheme"])
    model = bench.model(arena, task.parent("suspect"))
    if config["head"] == "original":
        owner_model = bench.model(arena, task.parent("owner"))
        model = copy.deepcopy(model)
        arena.task.head(model).load_state_dict(arena.task.head(owner_model).state_dict())
    aligning: dict[str, Json] = {}
    if config.get("realigned"):
        model, aligning = _realigned(job, model)
    key = bench.load_key(task.parent("claim" if config["claim"] else "owner"))
    if config.get("calibration"):
        return {"calibration": _calibrated(job, scheme, Suspect(model, arena.task), key)}, {}
    if config["control"] == "stranger_key":
        key = scheme.randomise_key(key, job.prf("stranger", scheme))
    verdict = scheme.judge(Suspect(model, arena.task), key)
    if aligning:
        # The order was chosen by looking at the owner's model, so the p-value is no longer exact.
        caveats = (*verdict.caveats, "realigned")
        verdict = replace(verdict, details={**verdict.details, **aligning}, caveats=caveats)
    if config["claim"]:
        verdict = _adjusted(verdict, _n_tried(bench.store, task.parent("claim")))
    return {"verdict": {**asdict(verdict), "caveats": list(verdict.caveats)}}, {}


def _realigned(job: TaskContext, model: nn.Module) -> tuple[nn.Module, dict[str, Json]]:
    """The suspect with its channels in the order and scale of the owner's marked model, and how well they matched."""
    inputs, _ = next(iter(job.arena.val.in_order(64)))
    reference = job.bench.model(job.arena, job.task.parent("owner"))
    try:
        aligned, cosine = realign(model, reference, inputs)
    except ValueError as error:  # the suspect's channels cannot be told apart: it is judged as it is
        return model, {"realign": f"not possible: {error}"}
    return aligned, {"realign_cosine": cosine}


def _calibrated(job: TaskContext, scheme: Scheme, suspect: Suspect, key: Key) -> dict[str, Any]:
    """Evidence of keys that nobody embedded on a clean model, each drawn for this model alone."""
    prf = job.prf("stranger", scheme, "calibration", job.task.parent("suspect"))
    n, q = scheme.trials(key)
    pairs = []
    for number in range(int(job.task.config["calibration"])):
        found = scheme.judge(suspect, scheme.randomise_key(key, prf.child(str(number))))
        pairs.append({name: getattr(found, name) for name in ("statistic", "k", "log10_p", "verdict", "threshold")})
    return {"p_method": scheme.p_method, "n": n, "q": q, "pairs": pairs}


def _n_tried(store: Store, forger: TaskId) -> int:
    manifest = store.manifest(forger)
    if manifest is None:
        raise CorruptArtifact(forger, "the claim is missing")
    return int(manifest["result"]["claim"]["n_tried"])


def _adjusted(verdict: Verdict, n_tried: int) -> Verdict:
    """The claimant's best of ``n_tried`` keys: evidence after the correction for that search."""
    adjusted = log10_adjusted(verdict.log10_p, float(np.log10(n_tried)))
    return replace(verdict, log10_p_adj=adjusted, details={**verdict.details, "n_tried": n_tried})


def _with_model(arena: BoundWorkload, model: nn.Module, curves: Curves) -> _Made:
    """Score a finished model once, at birth: later tasks read what was stored."""
    test, val = arena.task.evaluate(model, arena.test), arena.task.evaluate(model, arena.val)
    answers: dict[str, Tensor] = {}
    for name, found in (("test", test), ("val", val)):
        if found.predicted is not None and found.targets is not None:
            answers |= {name: found.predicted, f"{name}_labels": found.targets}
    files = {MODEL: tensors_to_bytes(model.state_dict()), HISTORY: curves.to_bytes()}
    if answers:
        files[PREDICTIONS] = tensors_to_bytes(answers)
    return {"metric": arena.task.info.metric, "metric_test": test.score, "metric_val": val.score}, files


def _consumed(store: Store, task: Task) -> dict[str, str]:
    """Hash of every parent's model: a parent recomputed with other bytes is noticed later."""
    found: dict[str, str] = {}
    for parent in task.parent_ids:
        manifest = store.manifest(parent)
        if manifest is None:
            raise CorruptArtifact(parent, "it is missing")
        if MODEL in manifest["files"]:
            found[parent] = manifest["files"][MODEL]["sha256"]
    return found

"""Computes a task from its parents' artifacts. Runs in the process that an executor chose.

Errors are exceptions, which ``attempt.py`` turns into Failures.
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


def perform(context: WorkerContext, task: Task, most_evaluated: int | None = None) -> dict[str, Any]:
    """Compute one task, commit its artifact, return its result (small, JSON).

    An existing artifact is not computed again: a worker may die between the commit and its answer.

    Args:
        most_evaluated: the largest evaluation batch; None for the workload's own.
    """
    kept = context.store.intact_manifest(task.id)
    if kept is None:
        kept = _compute(context, task, most_evaluated)
    result: dict[str, Any] = kept["result"]
    return result


def _compute(context: WorkerContext, task: Task, most_evaluated: int | None) -> dict[str, Any]:
    started = time.perf_counter()
    memory = PeakMemory(context.device)
    consumed = _consumed(context.store, task)
    curves = Curves()
    bound = context.workload(task.config["workload"])
    if most_evaluated is not None:
        bound = in_smaller_batches(bound, most_evaluated)
    job = TaskContext(context, bound, task, curves, context.checkpoints(task, curves))
    compute = {Kind.TRAIN: _train, Kind.EMBED: _embed, Kind.ATTACK: _attack, Kind.VERIFY: _verify}[task.kind]
    # A plugin's draws from torch's global generator must not depend on earlier tasks of this process.
    with seeded(subseed(task.seed, "global", task.kind.value), job.bound.task.device):
        result, files = compute(job)
    result |= {
        "seconds": time.perf_counter() - started,
        "device": context.device_name,
        "environment": context.environment(),
        "consumed": consumed,
        "memory": memory.found() | ({"most_evaluated": most_evaluated} if most_evaluated is not None else {}),
    }
    if MODEL in files:
        result["made"] = hashlib.sha256(files[MODEL]).hexdigest()
    manifest = context.store.commit(task.id, task.identity(), result, files)
    # Not before the commit: without an artifact, the last checkpoint is needed to resume.
    job.checkpoints.clear()
    return manifest


_Made = tuple[dict[str, Any], dict[str, bytes]]


def _train(job: TaskContext) -> _Made:
    task, bound, config = job.task, job.bound, job.task.config
    samples, recipe = bound.train, bound.task.recipe
    if config["adversary"] is not None:
        samples, _ = adversary_data(bound, config["adversary"], task.seed)
        recipe = scratch_recipe(recipe, float(config["adversary"]["data_fraction"]))
    if config["recipe"] is None:
        model = bound.task.network(subseed(task.seed, "init"))
    else:
        model = copy.deepcopy(job.context.model(bound, task.parent("start")))
        recipe = Recipe(**{**config["recipe"], "milestones": tuple(config["recipe"]["milestones"])})
    seed = subseed(task.seed, "train")
    bound.task.fit(model, samples, recipe, seed=seed, log=job.curves, checkpoints=job.checkpoints)
    finish(model)
    return _with_model(bound, model, job.curves)


def _embed(job: TaskContext) -> _Made:
    context, task, bound = job.context, job.task, job.bound
    scheme = build_scheme(task.config["scheme"])
    clean = context.model(bound, task.parent("clean"))
    start = bound.task.network(subseed(task.seed, "init")) if scheme.from_scratch else copy.deepcopy(clean)
    key = scheme.keygen(bound.task, job.prf("owner", scheme))
    marked, key = scheme.embed(start, owner_of(job), key)
    finish(marked)
    key = key.with_parts(
        public={
            "workload": task.config["workload"],
            "config": scheme.config(until="embed"),
            "simulated": context.root.simulated,
        }
    )
    context.save_key(task.id, key)
    result, files = _with_model(bound, marked, job.curves)
    licensed = scheme.licensed_task(bound.task, key)
    if licensed is not None:
        # A licensed model's metric is what licensed users get; that of others is stored beside it.
        result |= {"unlicensed_test": result["metric_test"], "unlicensed_val": result["metric_val"]}
        result |= {"metric_test": licensed.score(marked, bound.test), "metric_val": licensed.score(marked, bound.val)}
    result |= {"commitment": key.commitment, **covertness(clean, marked)}
    return result, files


def _attack(job: TaskContext) -> _Made:
    context, task, bound = job.context, job.task, job.bound
    attack, scheme = build_attack(task.config["attack"]), build_scheme(task.config["scheme"])
    victim = context.model(bound, task.parent("victim"))
    outcome = attack(victim, attack_view(job, attack, scheme))
    result: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    claim = outcome.claim if isinstance(outcome, Piracy) else outcome if isinstance(outcome, Claim) else None
    model = outcome if isinstance(outcome, nn.Module) else None
    if isinstance(outcome, Piracy | Finding):
        model = outcome.model
    if model is not None:
        result, files = _with_model(bound, model, job.curves)
        result["moved_mean_abs_dev"] = mean_abs_deviation(victim, model)
    if claim is not None:
        context.save_key(task.id, claim.key)
        result["claim"] = {"n_tried": claim.n_tried, **claim.details}
        result["commitment"] = claim.key.commitment
    if isinstance(outcome, Finding):
        result["facts"] = dict(outcome.details)
    return result, files


def _verify(job: TaskContext) -> _Made:
    context, task, bound, config = job.context, job.task, job.bound, job.task.config
    scheme = build_scheme(config["scheme"])
    model = context.model(bound, task.parent("suspect"))
    if config["head"] == "original":
        owner_model = context.model(bound, task.parent("owner"))
        model = copy.deepcopy(model)
        bound.task.head(model).load_state_dict(bound.task.head(owner_model).state_dict())
    aligning: dict[str, Json] = {}
    if config.get("realigned"):
        model, aligning = _realigned(job, model)
    key = context.load_key(task.parent("claim" if config["claim"] else "owner"))
    if config.get("calibration"):
        return {"calibration": _calibrated(job, scheme, Suspect(model, bound.task), key)}, {}
    if config["control"] == "stranger_key":
        key = scheme.randomise_key(key, job.prf("stranger", scheme))
    verdict = scheme.judge(Suspect(model, bound.task), key)
    if aligning:
        # The alignment was chosen with the owner's model, so the p-value is no longer exact.
        caveats = (*verdict.caveats, "realigned")
        verdict = replace(verdict, details={**verdict.details, **aligning}, caveats=caveats)
    if config["claim"]:
        verdict = _adjusted(verdict, _n_tried(context.store, task.parent("claim")))
    return {"verdict": {**asdict(verdict), "caveats": list(verdict.caveats)}}, {}


def _realigned(job: TaskContext, model: nn.Module) -> tuple[nn.Module, dict[str, Json]]:
    """Return the suspect with its channels in the order and scale of the owner's model, and how well they match."""
    inputs, _ = next(iter(job.bound.val.in_order(64)))
    reference = job.context.model(job.bound, job.task.parent("owner"))
    try:
        aligned, cosine = realign(model, reference, inputs)
    except ValueError as error:  # channels that cannot be distinguished: judge the suspect as it is
        return model, {"realign": f"not possible: {error}"}
    return aligned, {"realign_cosine": cosine}


def _calibrated(job: TaskContext, scheme: Scheme, suspect: Suspect, key: Key) -> dict[str, Any]:
    """Judge a clean model by fresh keys that were never embedded, drawn for this model alone."""
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
    """Correct the evidence of the claimant's best key for its ``n_tried`` tries."""
    adjusted = log10_adjusted(verdict.log10_p, float(np.log10(n_tried)))
    return replace(verdict, log10_p_adj=adjusted, details={**verdict.details, "n_tried": n_tried})


def _with_model(bound: BoundWorkload, model: nn.Module, curves: Curves) -> _Made:
    """Score a finished model once, when it is made; later tasks read the stored score."""
    test, val = bound.task.evaluate(model, bound.test), bound.task.evaluate(model, bound.val)
    answers: dict[str, Tensor] = {}
    for name, found in (("test", test), ("val", val)):
        if found.predicted is not None and found.targets is not None:
            answers |= {name: found.predicted, f"{name}_labels": found.targets}
    files = {MODEL: tensors_to_bytes(model.state_dict()), HISTORY: curves.to_bytes()}
    if answers:
        files[PREDICTIONS] = tensors_to_bytes(answers)
    return {"metric": bound.task.info.metric, "metric_test": test.score, "metric_val": val.score}, files


def _consumed(store: Store, task: Task) -> dict[str, str]:
    """Return the hash of every parent's model, so that a parent recomputed with other bytes is detected later."""
    found: dict[str, str] = {}
    for parent in task.parent_ids:
        manifest = store.manifest(parent)
        if manifest is None:
            raise CorruptArtifact(parent, "it is missing")
        if MODEL in manifest["files"]:
            found[parent] = manifest["files"][MODEL]["sha256"]
    return found

"""A run with rows for every section of a report: overwriting, rewriting, learning rates, bits, serial numbers,
emblems, calibrated null models.
"""

import base64
import json
from typing import Any

import numpy as np
from torch import Tensor

from tests.experiments.evidence_factory import BUDGET, Bench, PredictionStore, showcase, verdict
from wmarena.experiments.results.calibration import Calibration, Rate
from wmarena.experiments.results.rows import ResultRow
from wmarena.experiments.results.table import build_rows
from wmarena.orchestrator.plan.task import Task, TaskId
from wmarena.schemes.prf import Prf
from wmarena.schemes.statistics import clopper_pearson

SHAPE = (14, 12, 3)
"""Height, width and channels of the emblem."""


def gallery(seeds: tuple[int, ...] = (0, 1, 2)) -> Bench:
    """Extend the showcase by two schemes whose evidence has pictures."""
    bench = showcase(seeds)
    for seed in seeds:
        _overwritten(bench, seed)
        _swept(bench, seed)
        _emblem(bench, seed)
        _locked(bench, seed)
    return bench


def rows_of(bench: Bench) -> list[ResultRow]:
    """The bench's table."""
    return build_rows(bench.plan, bench.records, experiment="gallery", run_id="20261121-093000-abc123")


def emblem(damage: float) -> dict[str, Any]:
    """Details of a verdict: a picture with this share of its pixels replaced by noise."""
    height, width, channels = SHAPE
    ramp = np.linspace(30, 220, height * width * channels).reshape(SHAPE)
    luck = Prf(b"gallery-emblem-0123456789abcdef-")
    noise = 255 * luck.uniform("noise", ramp.size).reshape(SHAPE)
    hit = luck.uniform("hit", height * width).reshape(height, width, 1) < damage
    pixels = np.where(hit, noise, ramp).astype(np.uint8)
    return {"decoded": base64.b64encode(pixels.tobytes()).decode(), "decoded_shape": list(SHAPE)}


def stamp_accuracies(unlocking: int = 60) -> list[float]:
    """Of 512 serial numbers, in the order of the numbers; the true one is number 300."""
    luck = Prf(b"gallery-stamps-0123456789abcdef-")
    found = 0.1 + 0.3 * luck.uniform("locked", 512)
    others = [int(i) for i in luck.permutation("open", 512) if i != 300][: unlocking - 1]
    found[others] = 0.55 + 0.35 * luck.uniform("wide", len(others))
    found[300] = 0.99
    return [float(round(a, 3)) for a in found]


def calibrated() -> list[Calibration]:
    """Two schemes: one whose null model holds, one whose p-values are wrong."""
    bench = showcase((0,), wound=False)
    known = {row.scheme: row for row in rows_of(bench)}
    return [
        calibration_of(known["uchida"], 128, 0.5, mismatch=False),
        calibration_of(known["adi"], 100, 0.1, mismatch=True),
    ]


def calibration_of(
    row: ResultRow, n: int, q: float, *, mismatch: bool, pairs: int = 300, **changes: Any
) -> Calibration:
    """Statistics of ``pairs`` binomial draws, shifted by a tenth of their range in case of a mismatch."""
    luck = Prf(f"gallery-null-{row.scheme}-0123456789ab".encode())
    shift = 0.08 if mismatch else 0.0
    values = [float((luck.uniform(str(i), n) < q + shift).mean()) for i in range(pairs)]
    hits = 70 if mismatch else 14
    rates = tuple(_rate(level, int(hits * level / 0.05), pairs, agrees=not mismatch) for level in (0.05, 0.01))
    fields: dict[str, Any] = {
        **dict(zip(("workload", "workload_params", "scheme", "scheme_params"), row.victim, strict=True)),
        "p_method": "binomial",
        "n_models": 6,
        "n_pairs": pairs,
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)),
        "largest": max(values),
        "expected_mean": q,
        "expected_sd": float(np.sqrt(q * (1 - q) / n)),
        "ks_p": 1e-5 if mismatch else 0.41,
        "rates": rates,
        "false_positives": 2 if mismatch else 0,
        "fpr_low": clopper_pearson(2 if mismatch else 0, pairs)[0],
        "fpr_high": clopper_pearson(2 if mismatch else 0, pairs)[1],
        "gauss_threshold": float(np.mean(values) + 1.645 * np.std(values)),
        "threshold": verdict(n, n, q).threshold,
        "mismatch": mismatch,
        "statistics": tuple(values),
    }
    return Calibration(**{**fields, **changes})


def _rate(level: float, hits: int, pairs: int, *, agrees: bool) -> Rate:
    low, high = clopper_pearson(hits, pairs, 0.99)
    return Rate(level=level, hits=hits, low=low, high=high, expected=level, agrees=agrees)


class FilledStore(PredictionStore):
    """Stored predictions, and the training curves of embeddings that log their steepness."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._tasks = bench.plan.tasks

    def read(self, task_id: TaskId, name: str) -> bytes:
        """One file of an artifact. Raises OSError for what was not stored."""
        task = self._tasks[task_id]
        if name != "history.json":
            raise FileNotFoundError(name)
        points = [{"step": float(s), "loss": 1 / s} for s in range(1, 9)]
        if task.scheme == "tartaglione":
            points = [{**p, "steepness": 0.08 * p["step"] ** 1.5 + 0.02 * task.seed} for p in points]
        return json.dumps(points).encode()

    def load_tensors(self, task_id: TaskId, name: str) -> dict[str, Tensor]:
        """Predictions. Raises OSError for unknown tasks."""
        return super().load_tensors(task_id, name)


def _cell(bench: Bench, suspect: Task, attack: str, params: dict[str, Any], **more: Any) -> dict[str, Any]:
    scratch = bench.scratch(suspect.seed, 0.83).id
    common = {"attack_task": suspect.id, "scratch": scratch, "budget": BUDGET}
    return {**common, "attack": attack, "attack_params": params, **more}


def _overwritten(bench: Bench, seed: int) -> None:
    """Each of two schemes overwritten by each; uchida on uchida loses the owner's mark."""
    for mark, n, q, scheme_params in (
        ("adi", 100, 0.1, {"mode": "pretrained"}),
        ("uchida", 128, 0.5, {"bits": 128}),
    ):
        owner = bench.embed(mark, seed)
        for intruder in ("adi", "uchida"):
            params = {"scheme": {"name": intruder}, "epochs": 3}
            suspect = bench.attack(owner, "overwrite", params, 0.885, claim={"n_tried": 1})
            cell = _cell(bench, suspect, "overwrite", params, scheme_params=scheme_params)
            left = 0.2 if intruder == mark == "uchida" else 0.9
            bench.judge(owner, suspect, verdict(int(n * (q + (1 - q) * left)), n, q), **cell)
            bench.judge(owner, suspect, verdict(97), claim=True, **cell)


def _swept(bench: Bench, seed: int) -> None:
    """Learning rates over three powers of ten; bits, of which fewer are more."""
    for mark, fragile, scheme_params in (("adi", 0.95, {"mode": "pretrained"}), ("uchida", 0.3, {"bits": 128})):
        owner = bench.embed(mark, seed)
        for i, lr in enumerate((1e-4, 1e-3, 1e-2, 5e-2)):
            params = {"lr": lr, "epochs": 60}
            suspect = bench.attack(owner, "refit", params, 0.9 - 0.004 * 2.2**i - 0.001 * seed)
            cell = _cell(bench, suspect, "refit", params, scheme_params=scheme_params)
            hits = round(100 * (1 - fragile * (i / 3) ** 2))
            bench.judge(owner, suspect, verdict(hits), strength_name="lr", strength=lr, **cell)
        for bits, loss, rate in ((16, 0.0, 1.0), (8, 0.001, 1.0), (4, 0.012, 0.8), (2, 0.16, 0.1)):
            params = {"bits": bits}
            suspect = bench.attack(owner, "quantize", params, 0.9 - loss - 0.001 * seed)
            cell = _cell(bench, suspect, "quantize", params, scheme_params=scheme_params)
            bench.judge(owner, suspect, verdict(round(100 * rate)), strength_name="bits", strength=float(bits), **cell)
    owner = bench.embed("uchida", seed)
    suspect = bench.attack(owner, "permute", {}, 0.9)
    cell = _cell(bench, suspect, "permute", {}, scheme_params={"bits": 128})
    bench.judge(owner, suspect, verdict(66, 128, 0.5), **cell)
    bench.judge(owner, suspect, verdict(128, 128, 0.5), realigned=True, **cell)


def _emblem(bench: Bench, seed: int) -> None:
    owner = bench.embed("tartaglione", seed, covertness_ks=0.021, covertness_relative_l2=0.13)
    params = {"objective": "gap"}
    bench.judge(owner, owner, verdict(100, details=emblem(0.0)), scheme_params=params)
    for i, epochs in enumerate((1, 5, 20)):
        suspect = bench.attack(owner, "finetune", {"epochs": epochs}, 0.892 - 0.002 * i)
        cell = _cell(bench, suspect, "finetune", {"epochs": epochs}, scheme_params=params)
        evidence = verdict(100 - 25 * i, details=emblem(0.25 * i))
        bench.judge(owner, suspect, evidence, strength_name="epochs", strength=float(epochs), **cell)


def _locked(bench: Bench, seed: int) -> None:
    """A model that is worth little without its serial number."""
    owner = bench.embed("dsn", seed, 0.888, unlicensed_test=0.11, unlicensed_val=0.11)
    evidence = verdict(94, details={"stamp_accuracies": stamp_accuracies()})
    bench.judge(owner, owner, evidence, scheme_params={"side": 3})

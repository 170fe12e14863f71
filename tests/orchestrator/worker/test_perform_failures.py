"""Failures are results, and damage is attributed to the task that made the artifact."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load
from torch import nn

from tests.orchestrator.digits import QUICK, Bench
from tests.orchestrator.toys import failed
from wmarena.attacks.base import Attack, AttackView, Family
from wmarena.attacks.knowledge import Knowledge
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.plan import plugins
from wmarena.orchestrator.plan.plugins import build_attack, build_scheme
from wmarena.orchestrator.plan.task import FailureKind, TaskId
from wmarena.orchestrator.worker.context import MODEL
from wmarena.schemes.keys import KeyFileError


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Uchida's mark on digits, fine-tuned for an epoch and verified."""
    bench = Bench(tmp_path_factory.mktemp("perform") / "store")
    bench.run(bench.defended("uchida"))
    return bench


# Failures are results


@dataclass(frozen=True, kw_only=True)
class Misbehaving(Attack):
    """An attack that ends as its variant says."""

    name: ClassVar[str] = "misbehaving"
    family: ClassVar[Family] = "none"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})
    paper: ClassVar[str] = ""
    how: ClassVar[str] = ""

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        if self.how == "nan":
            with torch.no_grad():
                next(model.parameters()).mul_(float("nan"))
            return model
        if self.how == "ungranted":
            return view.scheme  # type: ignore[return-value]
        raise ENDINGS[self.how][0]


ENDINGS: dict[str, tuple[BaseException, FailureKind]] = {
    "nan": (Exception(), FailureKind.DIVERGED),
    "ungranted": (Exception(), FailureKind.ERROR),
    "error": (ValueError("first line\nsecond line"), FailureKind.ERROR),
    "empty": (MemoryError(), FailureKind.OUT_OF_MEMORY),
    "oom": (torch.OutOfMemoryError("CUDA out of memory\nmore"), FailureKind.OUT_OF_MEMORY),
    "device": (torch.AcceleratorError("device-side assert"), FailureKind.DEVICE),
    "store": (StoreError("disk full"), FailureKind.STORE),
    "exit": (SystemExit(3), FailureKind.ERROR),
    "recursion": (RecursionError("too deep"), FailureKind.ERROR),
}


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> type[Misbehaving]:
    """The attack above, known by its name."""
    monkeypatch.setattr(plugins, "plugin_class", _found_here(plugins.plugin_class))
    return Misbehaving


def _found_here(real: Any) -> Any:
    return lambda kind, name: Misbehaving if name == "misbehaving" else real(kind, name)


@pytest.mark.parametrize("how", ENDINGS)
def test_every_way_to_fail_is_a_result(
    marked: Bench, misbehaving: type[Misbehaving], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN weights, any exception, even an exit: a failure with its kind and one line; nothing is stored."""
    monkeypatch.setattr(misbehaving, "how", how)
    task = marked.attack_task(misbehaving())
    found = failed(marked.attempt(task))

    assert found.kind is ENDINGS[how][1]
    assert "\n" not in found.message
    assert "Traceback" in found.trace
    assert not marked.store.has(task.id)


def test_an_interrupt_is_no_failure_of_the_task(
    marked: Bench, misbehaving: type[Misbehaving], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C goes through to whoever stops the run."""
    monkeypatch.setattr(misbehaving, "how", "interrupt")
    monkeypatch.setitem(ENDINGS, "interrupt", (KeyboardInterrupt(), FailureKind.CANCELLED))

    with pytest.raises(KeyboardInterrupt):
        marked.attempt(marked.attack_task(misbehaving()))


def test_a_failed_attack_leaves_the_victim_as_it_was(
    marked: Bench, misbehaving: type[Misbehaving], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resident model that others will attack next is not the one that was ruined."""
    monkeypatch.setattr(misbehaving, "how", "nan")
    marked.attempt(marked.attack_task(misbehaving()))
    victim = marked.context.model(marked.context.workload(marked.workload), marked.embed.id)
    stored = load(marked.store.read(marked.embed.id, MODEL))

    assert all(torch.equal(victim.state_dict()[n], t) for n, t in stored.items())


# Damage


def test_a_key_that_changes_before_it_is_shared_is_the_stores_failure(
    marked: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver wrote into its folder: the next attempt writes it anew, so the task must not fail for good."""
    bench = marked.copied(tmp_path)

    def mixed(task_id: TaskId) -> None:
        raise KeyFileError("content that does not match")

    monkeypatch.setattr(bench.context.store, "share_key", mixed)
    with pytest.raises(StoreError, match="expected to write the key"):
        bench.context.save_key(bench.embed.id, bench.key())


def damaged(bench: Bench, what: str) -> None:
    """Spoil one thing that a verification of the marked model reads."""
    folder = bench.store.folder(bench.embed.id)
    path = {
        "model": folder / MODEL,
        "manifest": folder / "manifest.json",
        "key": bench.store.key_dir(bench.embed.id) / "secret.safetensors",
        "sums": bench.store.key_dir(bench.embed.id) / "SHA256SUMS",
    }[what]
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize("what", ["model", "manifest", "key", "sums"])
@pytest.mark.parametrize("reader", ["verify", "spoil"])
def test_damage_is_attributed_to_the_task_that_made_it(marked: Bench, tmp_path: Path, what: str, reader: str) -> None:
    """Model, manifest, key: the embed task has to run again, whether a verification or an attack finds out."""
    bench = marked.copied(tmp_path)
    damaged(bench, what)
    scheme = build_scheme({"name": "uchida", **QUICK["uchida"]})
    task = (
        bench.verify_task(scheme, bench.embed)
        if reader == "verify"
        else bench.attack_task(build_attack({"name": "spoil"}))
    )
    found = failed(bench.attempt(task))

    assert (found.kind, found.damaged) == (FailureKind.CORRUPT, bench.embed.id)


def test_a_damaged_key_is_made_again(marked: Bench, tmp_path: Path) -> None:
    """The run repairs it by itself: the mark is embedded again, with the same bytes, and then verified."""
    bench = marked.copied(tmp_path)
    damaged(bench, "key")
    scheme = build_scheme({"name": "uchida", **QUICK["uchida"]})
    verify = bench.verify_task(scheme, bench.embed)
    records = bench.run([bench.train, bench.embed, verify])

    assert records[bench.embed.id].caveats == ("recomputed",)
    assert bench.files(bench.embed) == marked.files(marked.embed)
    assert bench.result(verify)["verdict"]["verdict"] is True
    assert records[verify.id].caveats == ()

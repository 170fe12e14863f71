"""The interface to Optuna: an ask-and-tell study that survives being killed.

Optuna only proposes parameters; trials are executed and recorded by the orchestrator. Ask and tell have no heartbeat,
so a trial that a dead driver left running is told FAIL when the study is opened again, and its parameters are tried
first. Trials are addressed by number.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from wmarena.orchestrator.files.errors import StoreError, first_line
from wmarena.orchestrator.files.locks import hold
from wmarena.orchestrator.plan.proposals import (
    Choices,
    Direction,
    Method,
    Proposal,
    Range,
    RecordedTrial,
    Space,
    TrialOutcome,
    TrialParams,
    Value,
)

_RETRY, _WARM = "wmarena.retry_of", "wmarena.warm_start"

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("optuna").setLevel(logging.WARNING)

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class Tuner:
    """An Optuna study.

    Args:
        study: its name in the storage.
        storage: what ``open_storage`` returned.

    Attributes:
        warm_left: warm-start proposals that were not asked for yet.
    """

    def __init__(
        self, study: str, storage: BaseStorage, space: Space, directions: Sequence[Direction], method: Method
    ) -> None:
        self._space = space
        self._method = method
        self._distributions = {name: _distribution(part) for name, part in space.items()}
        self._asked: dict[int, optuna.Trial] = {}
        self._name, self._storage, self._directions = study, storage, list(directions)
        self._open()

    def _open(self) -> None:
        study, directions = self._name, self._directions
        try:
            self._study = optuna.create_study(
                study_name=study, storage=self._storage, directions=directions, load_if_exists=True
            )
        except (SQLAlchemyError, ValueError, KeyError) as error:
            raise StoreError(_unreadable(study, error)) from None
        known = [d.name.lower() for d in self._study.directions]
        if known != directions:
            raise StoreError(
                f"expected study {study!r} to have the objectives that it was started with ({', '.join(known)}), got "
                f"{', '.join(directions)}; give the changed study another name"
            )
        self.warm_left = sum(t.state is TrialState.WAITING and _WARM in t.user_attrs for t in self._trials())
        # The seed depends on the number of trials: resuming must not repeat earlier draws.
        self._study.sampler = _sampler(self._method, len(self._trials()))
        self._study.pruner = _pruner(self._method)

    # Before the first trial

    def recall(self, past: Sequence[RecordedTrial], *, anew: bool) -> None:
        """Bring the storage, which may be outdated or new, to the trials of the journal.

        Args:
            past: all trials, by growing number.
            anew: rewrite a storage that contradicts them.

        Raises:
            StoreError: it contradicts them and ``anew`` is False.
        """
        trials = self._trials()
        if all(p.number < len(trials) and self._agrees(trials[p.number], p) for p in past):
            return
        if trials and not anew:
            raise StoreError(
                f"expected a storage with the {len(past)} trials of study {self._name!r} that the journal has, got one "
                "with others; give `storage` that was used before, or the study another name"
            )
        optuna.delete_study(study_name=self._name, storage=self._storage)
        self._open()
        self._study.add_trials(self._frozen_trials(past))
        self._open()

    def _agrees(self, trial: FrozenTrial, past: RecordedTrial) -> bool:
        if self._rounded(trial.params) != past.params:
            return False
        ended = TrialState.FAIL if past.outcome is None else _STATES[past.outcome.state]
        return trial.state in (TrialState.RUNNING, ended)  # a running trial can still be told

    def _frozen_trials(self, past: Sequence[RecordedTrial]) -> Iterator[FrozenTrial]:
        """Yield each trial at its number; a repeated one after an abandoned one with equal parameters is its retry."""
        given_up: dict[str, int] = {}
        number = 0
        for each in past:
            for _ in range(number, each.number):  # queued and never asked for
                yield optuna.trial.create_trial(state=TrialState.FAIL)
            number = each.number + 1
            text = _text(each.params)
            attributes: dict[str, Any] = {_WARM: True} if each.warm else {}
            if text in given_up:
                attributes[_RETRY] = given_up.pop(text)
            if each.outcome is None:
                given_up[text] = each.number
            yield self._frozen(each, attributes)

    def _frozen(self, past: RecordedTrial, attributes: dict[str, Any]) -> FrozenTrial:
        outcome = past.outcome or TrialOutcome(state="failed")
        return optuna.trial.create_trial(
            state=_STATES[outcome.state],
            params={name: self._in_range(name, value) for name, value in past.params.items()},
            distributions={name: self._distributions[name] for name in past.params},
            values=None if outcome.values is None else list(outcome.values),
            intermediate_values=dict(past.told),
            constraints=dict(outcome.constraints or {}),
            user_attrs=attributes,
        )

    def _in_range(self, name: str, value: Value) -> Any:
        """Move a rounded value back to its range and steps."""
        part = self._space[name]
        if not isinstance(part, Range) or not isinstance(value, int | float):
            return value
        step = part.step or (1 if part.whole else None)
        if step is not None and not part.log:
            value = part.low + step * round((value - part.low) / step)
        value = min(max(value, part.low), part.high)
        return int(value) if part.whole else float(value)

    def unfinished(self) -> dict[int, TrialParams]:
        """Return number -> parameters of trials that were asked for and never told."""
        return {t.number: self._rounded(t.params) for t in self._trials() if t.state is TrialState.RUNNING}

    def give_up(self, number: int) -> None:
        """Tell FAIL for an abandoned trial; ``retry`` queues its parameters."""
        self._study.tell(number, state=TrialState.FAIL)

    def retry(self, numbers: Sequence[int]) -> None:
        """Queue the parameters of abandoned trials again, each only once."""
        trials = self._trials()
        again = {t.user_attrs[_RETRY] for t in trials if _RETRY in t.user_attrs}
        for number in numbers:
            if number not in again:
                self._study.enqueue_trial(trials[number].params, user_attrs={_RETRY: number})

    def propose(self, params: Sequence[TrialParams], *, warm: bool = False) -> None:
        """Queue parameters before the sampler's own, unless they were proposed before."""
        known = {_text(self._rounded(t.params)) for t in self._trials()} | {
            _text(t.system_attrs.get("fixed_params", {})) for t in self._trials() if t.state is TrialState.WAITING
        }
        for some in params:
            if _text(some) not in known:
                known.add(_text(some))
                self.warm_left += warm
                self._study.enqueue_trial(dict(some), user_attrs={_WARM: True} if warm else None)

    def grid(self) -> list[TrialParams]:
        """Return every point of a countable space.

        Raises:
            ValueError: a part of it cannot be counted.
        """
        parts = []
        for name, part in self._space.items():
            if part.values is None:
                raise ValueError(f"expected a step or choices for {name}, got a range that cannot be counted")
            parts.append([(name, value) for value in part.values])
        return [dict(point) for point in product(*parts)]

    # Asking and telling

    def ask(self) -> Proposal:
        """Return the next parameters to try."""
        trial = self._study.ask(self._distributions)
        self._asked[trial.number] = trial
        warm = bool(trial.user_attrs.get(_WARM))
        self.warm_left -= warm
        return Proposal(trial.number, self._rounded(trial.params), warm)

    def report(self, number: int, value: float, step: int) -> bool:
        """Report an intermediate value; return whether the pruner stops the trial."""
        trial = self._asked[number]
        trial.report(value, step)
        return bool(trial.should_prune())

    def tell(self, number: int, outcome: TrialOutcome) -> None:
        """Record how a trial ended."""
        trial = self._asked.pop(number, None) or optuna.Trial(self._study, self._trials()[number]._trial_id)
        for name, excess in (outcome.constraints or {}).items():
            trial.set_constraint(name, excess)
        values = None if outcome.state != "complete" else list(outcome.values or ())
        self._study.tell(number, values, state=_STATES[outcome.state])

    # Analysis

    def importance(self, objective: int) -> dict[str, float]:
        """Return each parameter's share of the objective's variance (fANOVA), {} if there are too few trials."""
        complete = [t for t in self._trials() if t.state is TrialState.COMPLETE]
        values = {t.values[objective] for t in complete}
        if len(complete) < 4 or len(values) < 2:
            return {}
        found = get_param_importances(
            self._study,
            evaluator=FanovaImportanceEvaluator(seed=self._method.seed),
            target=lambda trial: float(trial.values[objective]),
        )
        return {name: float(share) for name, share in found.items()}

    def _trials(self) -> list[FrozenTrial]:
        return list(self._study.get_trials(deepcopy=False))

    def _rounded(self, params: Mapping[str, Any]) -> TrialParams:
        out: TrialParams = {}
        for name, value in params.items():
            part = self._space.get(name)
            out[name] = part.rounded(value) if isinstance(part, Range) else value
        return out


def _distribution(part: Range | Choices) -> BaseDistribution:
    if isinstance(part, Choices):
        return CategoricalDistribution(part.options)
    if part.whole:
        return IntDistribution(int(part.low), int(part.high), log=part.log, step=int(part.step or 1))
    return FloatDistribution(part.low, part.high, log=part.log, step=part.step)


def _sampler(method: Method, n_before: int) -> BaseSampler:
    # A prime step: seeds of resumed studies with neighbouring seeds do not coincide.
    seed = (method.seed + 7919 * n_before) % 2**32
    if method.sampler == "tpe":
        return TPESampler(seed=seed, multivariate=True, n_startup_trials=method.startup, constant_liar=True)
    if method.sampler == "nsga2":
        return NSGAIISampler(seed=seed, population_size=method.population)
    if method.sampler == "gp":
        return GPSampler(seed=seed, n_startup_trials=method.startup)
    return RandomSampler(seed=seed)  # a grid is proposed point by point


def _pruner(method: Method) -> optuna.pruners.BasePruner:
    if method.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=method.startup)
    if method.pruner == "hyperband" and method.rungs:
        return optuna.pruners.HyperbandPruner(min_resource=method.rungs[0], max_resource=method.rungs[-1])
    return optuna.pruners.NopPruner()


def _text(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(params), sort_keys=True)


@contextmanager
def open_storage(
    folder: Path, study: str, url: str | None, waiting: Callable[[str], None] | None = None
) -> Iterator[BaseStorage]:
    """Open a study's storage and hold its lock.

    Args:
        folder: folder of journal files and locks.
        url: ``sqlite:///...`` or ``postgresql://...``; None for Optuna's journal file in ``folder``.
        waiting: called with a message before waiting for another process; None: do not wait.

    Raises:
        StoreBusy: another process tunes this study.
        StoreError: it cannot be opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder / f"{study}.lock", f"tuning of {study}", waiting):
        yield _storage(folder / f"{study}.log", study, url)


def _storage(path: Path, study: str, url: str | None) -> BaseStorage:
    try:
        if url is not None:
            # SQLAlchemy's default driver for the bare name is no longer developed.
            return get_storage(re.sub(r"^postgresql://", "postgresql+psycopg://", url))
        _repair_file(path)
        return JournalStorage(JournalFileBackend(str(path)))
    except (SQLAlchemyError, ImportError, ValueError, OSError) as error:
        raise StoreError(_unreadable(study, error)) from None


def _repair_file(path: Path) -> None:
    """Remove a killed driver's stale lock and incomplete last line; this process holds the study's lock."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.exists():
        return
    with path.open("r+b") as file:
        raw = file.read()
        file.truncate(raw.rfind(b"\n") + 1)


def _unreadable(study: str, error: BaseException) -> str:
    line = first_line(error)
    return f"expected a storage that can hold study {study!r}, got: {line}; check `storage`, or leave it out for a file"

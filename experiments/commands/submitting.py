"""``wmarena submit``, ``status`` and ``cancel``: runs on a cluster, independent of the submitting terminal."""

import json
import os
import re
import shlex
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from wmarena.experiments.commands.terminal import Terminal
from wmarena.experiments.running.upload import SPEC, pack
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.problems import Problem, SpecError
from wmarena.orchestrator.executors.jobs import ClusterJob, ClusterJobs, LostCluster
from wmarena.orchestrator.keys.encryption import PASSPHRASE

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SEEN = "wmarena sees "
_PROBE = f"import json, os, sys; print({_SEEN!r} + json.dumps([os.path.exists(p) for p in sys.argv[1:]]), flush=True)"
_PROBE_S = 120.0
_LOG_S = 10.0
"""Longest wait for the output of a job that has ended."""

_POLL_S = 0.5
_LOST = 3


def submit(terminal: Terminal, args: Namespace) -> int:
    """Run a spec on a cluster; if the log is followed to its end, return the run's exit status."""
    spec = ExperimentSpec.load(args.spec, overrides=args.overrides, data_root=terminal.data_root)
    _check_addresses(args)
    spec, key_files = _with_cluster_paths(spec, args)
    if os.environ.get(PASSPHRASE):
        terminal.note(
            f"{PASSPHRASE} is not sent: set it on the cluster's nodes, or name a file there (keys.passphrase)"
        )
    jobs = ClusterJobs(args.address)
    _check_seen(jobs, args, key_files)
    with tempfile.TemporaryDirectory(prefix="wmarena-submit-") as folder:
        pack(spec.text, Path(folder))
        job_id = jobs.submit(_command(args), folder=Path(folder), metadata={"experiment": spec.name})
    if args.no_wait:
        _show(terminal, jobs.job(job_id))
        return 0
    terminal.note(f"{job_id} runs on the cluster, independent of this terminal; wmarena cancel {job_id} stops it")
    try:
        job = jobs.follow(job_id, (sys.stderr if terminal.json else sys.stdout).write)
    except KeyboardInterrupt:
        terminal.note(f"wmarena: {job_id} continues; wmarena status {job_id} shows its status")
        return _LOST
    _show(terminal, job)
    return _exit_status(job)


def status(terminal: Terminal, args: Namespace) -> int:
    """Print the status of a job; 0 if it exists."""
    _show(terminal, ClusterJobs(args.address).job(args.job))
    return 0


def cancel(terminal: Terminal, args: Namespace) -> int:
    """Stop a job at its next checkpoint; the same spec, submitted again, resumes there."""
    job = ClusterJobs(args.address).cancel(args.job)
    _show(terminal, job)
    return 0 if job.ended else _LOST


def _show(terminal: Terminal, job: ClusterJob) -> None:
    if terminal.json:
        terminal.document(asdict(job))
    else:
        code = "" if job.exit_code is None else f" (exit status {job.exit_code})"
        terminal.text(f"{job.job_id}: {job.status}{code}")


def _exit_status(job: ClusterJob) -> int:
    """Return the run's exit status, or "resumable" for a job that was stopped or lost."""
    return job.exit_code if job.exit_code in (0, 1, 2) else _LOST


def _command(args: Namespace) -> str:
    """Make the cluster's command line, to run in a folder with the code and the spec."""
    words = ["python", "-m", "wmarena", "run", SPEC, "--address", "auto", "--store", args.store]
    for option in ("keys", "journal", "tracking_uri", "data_root", "workers", "gpus_per_worker"):
        value = getattr(args, option)
        if value not in (None, ""):
            words += [f"--{option.replace('_', '-')}", str(value)]
    words += ["--log-level", args.log_level]
    if args.fail_fast:
        words.append("--fail-fast")
    return shlex.join(words)


def _check_addresses(args: Namespace) -> None:
    """Refuse addresses that are local to this machine or would show a secret in the dashboard."""
    problems = []
    if not _URL.match(args.store) and not args.store.startswith("/"):
        problems.append(
            f"expected a store that every node of the cluster sees, got {args.store!r} on this machine; pass --store "
            "with a URL, or with the absolute path of a shared file system on the cluster"
        )
    if args.data_root and not args.data_root.startswith("/"):
        problems.append(f"expected an absolute path on the cluster as --data-root, got {args.data_root!r}")
    if args.keys and not args.keys.startswith("/"):
        problems.append(f"expected an absolute path on the cluster as --keys, got {args.keys!r}")
    tracking = args.tracking_uri or ""
    if tracking.startswith("sqlite:") and not tracking.startswith("sqlite:////"):
        problems.append(f"expected a tracking URI that means the same on the cluster, got {tracking!r}; pass a URL")
    for option, text in (("--store", args.store), ("--tracking-uri", tracking), ("--journal", args.journal or "")):
        if _URL.match(text) and urlsplit(text).password is not None:
            problems.append(
                f"expected no password in {option}: the cluster's dashboard shows it; give it to the cluster instead "
                "(MLFLOW_TRACKING_PASSWORD, PGPASSWORD, AWS_SECRET_ACCESS_KEY in the nodes' environment)"
            )
    if problems:
        raise SpecError([Problem(text) for text in problems])


def _with_cluster_paths(spec: ExperimentSpec, args: Namespace) -> tuple[ExperimentSpec, dict[str, str]]:
    """Return the spec with absolute paths of secret files, and field -> path; secrets are never uploaded."""
    if spec.keys is None:
        return spec, {}
    files = {name: str(path) for name, path in spec.keys if isinstance(path, Path)}
    overrides = [*args.overrides, *(f"keys.{name}={json.dumps(path)}" for name, path in files.items())]
    absolute = ExperimentSpec.load(args.spec, overrides=overrides, data_root=args.data_root and Path(args.data_root))
    return absolute, {f"keys.{name}": path for name, path in files.items()}


def _check_seen(jobs: ClusterJobs, args: Namespace, key_files: dict[str, str]) -> None:
    """Check, before anything is sent, that the head node has the files and folders of the run."""
    wanted = {field: (path, "secrets are never uploaded: put the file there") for field, path in key_files.items()}
    if args.data_root:
        wanted["--data-root"] = (args.data_root, "leave it out to use the cluster's own data (also $WMARENA_DATA)")
    if not _URL.match(args.store):
        way = "pass a folder of a file system that all nodes mount, or a URL"
        wanted["--store"] = (str(Path(args.store).parent), way)
    if not wanted:
        return
    missing = [
        Problem(f"expected {name} {path} on the cluster, got nothing of that name on its head node; {way}")
        for (name, (path, way)), seen in zip(
            wanted.items(), _seen(jobs, [path for path, _ in wanted.values()]), strict=True
        )
        if not seen
    ]
    if missing:
        raise SpecError(missing)


def _seen(jobs: ClusterJobs, paths: list[str]) -> list[bool]:
    """Run a job on the head node that tells which paths exist."""
    probe = jobs.submit(shlex.join(["python", "-c", _PROBE, *paths]))
    ended = jobs.wait(probe, _PROBE_S)
    if not ended.ended:
        raise LostCluster(f"expected the head node to look within {_PROBE_S:.0f} s, got a job that is {ended.status}")
    if ended.exit_code != 0:
        raise SpecError.of(f"expected a cluster that can run Python, got {ended.status}: {ended.message}")
    deadline = time.monotonic() + _LOG_S
    while True:
        for line in jobs.output(probe).splitlines():
            found = _answer(line, len(paths))
            if found is not None:
                return found
        if time.monotonic() > deadline:
            raise LostCluster(f"expected what {probe} wrote, got a log without it; try again")
        time.sleep(_POLL_S)


def _answer(line: str, n: int) -> list[bool] | None:
    """Parse a line of the probe's output on ``n`` paths; None if it is another line or incomplete."""
    start, mark, text = line.partition(_SEEN)
    try:
        found = json.loads(text) if mark and not start else None
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, list) and len(found) == n else None

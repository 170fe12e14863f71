"""``wmarena``: the command line. Parsing imports no plugin and no torch, so that help is instant."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

EPILOG = "Exit status: 0 all done (verify: watermark found), 1 some tasks failed (verify: not found), 2 bad input, \
nothing was run, 3 interrupted or infrastructure lost: the same command resumes."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        args = make_parser().parse_args(argv)
    except SystemExit as end:  # argparse has printed the reason
        return end.code if isinstance(end.code, int) else 2
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s")
    logging.getLogger().setLevel(args.log_level.upper())
    dispatch = importlib.import_module("wmarena.experiments.commands.dispatch").dispatch
    status: int = dispatch(args)
    return status


def make_parser() -> argparse.ArgumentParser:
    """Build the whole grammar. Global options are valid before and after the command."""
    parser = argparse.ArgumentParser(
        prog="wmarena", description="Attack and defence experiments on watermarked neural networks.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"wmarena {version('wmarena')}")
    _add_global(parser, with_defaults=True)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, target: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=_sentence(text), epilog=EPILOG)
        _add_global(sub, with_defaults=False)
        sub.set_defaults(target=target)
        return sub

    listing = command("list", "catalogue:list_plugins", "show what is installed, with parameters and ranges")
    listing.add_argument("what", choices=("schemes", "attacks", "workloads"))
    _add_planning(command)
    _add_judging(command)
    command("schema", "catalogue:schema", "print the JSON Schema of specs, for editors")
    ui = command("ui", "browsing:ui", "browse records in MLflow and studies in optuna-dashboard, on this machine")
    text = "MLflow's; optuna-dashboard has the next; default: 5000"
    ui.add_argument("--port", type=_whole(1, 65534), default=5000, help=text)
    ui.add_argument("--study", metavar="NAME", help="a study of the store, or a storage URL; default: the newest")
    _add_store(command)
    return parser


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith("?") else ".")


AddCommand = Callable[[str, str, str], argparse.ArgumentParser]


def _add_planning(command: AddCommand) -> None:
    plan = command("plan", "planning:plan", "show what a spec would run: tasks, finished ones, cost")
    plan.add_argument("--format", choices=("text", "mermaid", "json"), default="text")
    text = "schedule the plan on N workers in virtual time; workers=N,tasks=missing: only tasks missing in the store"
    plan.add_argument("--simulate", type=_simulation, metavar="workers=N", help=text)
    run = command("run", "running:run", "run the missing tasks of a spec; write table and report")
    _add_executor(run)
    submit = command("submit", "submitting:submit", "run a spec on a Ray cluster, independent of this terminal")
    _add_address(submit)
    submit.add_argument("--no-wait", action="store_true", help="do not follow the log")
    for sub in (run, submit):
        _add_workers(sub)
        sub.add_argument("--fail-fast", action="store_true", help="stop at the first failed task")
    _add_wait(run)
    text = "also try tasks that killed all their workers in earlier runs"
    run.add_argument("--retry-quarantined", action="store_true", help=text)
    for sub in (plan, run, submit):
        sub.add_argument("spec", metavar="SPEC", help="a YAML file, or the name of a shipped spec")
        _add_overrides(sub)
    _add_tuning(command)
    for name, text in (("status", "show the status of a submitted run"), ("cancel", "stop a submitted run; resumable")):
        job = command(name, f"submitting:{name}", text)
        _add_address(job)
        job.add_argument("job", metavar="JOB", help="the job id that submit printed")
    report = command("report", "running:report", "rebuild the report of a run from the store")
    text = "a run's id, an experiment, or a spec: its newest run; with --sync it may be left out for all runs"
    report.add_argument("run_or_spec", metavar="RUN_OR_SPEC", nargs="?", help=text)
    report.add_argument("--out", metavar="DIR", help="output folder; default: its place in the store")
    report.add_argument("--sync", action="store_true", help="also send missing records to MLflow")


def _add_tuning(command: AddCommand) -> None:
    tune = command("tune", "tuning:tune", "search fields of schemes, attacks and workloads with Optuna; resumable")
    tune.add_argument("study", metavar="STUDY", help="a YAML file, or the name of a shipped study")
    tune.add_argument("--trials", type=_whole(1), help="finished trials to have; default: the study's own number")
    tune.add_argument("--export", metavar="FILE", help="write the best configuration as a spec that can be run")
    _add_executor(tune)
    _add_wait(tune)
    _add_workers(tune)
    _add_overrides(tune)


def _add_executor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--executor", choices=("ray", "inline"), default="ray", help="default: ray")
    parser.add_argument("--address", help="Ray address of a running cluster; default: a local one")


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="wait while another run has locked the store")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_whole(1), help="number of workers; default: the spec's, else all there is")
    parser.add_argument("--gpus-per-worker", type=_share, metavar="F", help="GPUs, or a share of one, for each worker")


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    text = "override: seeds=[0], schemes.mtlsign.lambda1=0.2, profile=paper; may be repeated"
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE", help=text)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", required=True, metavar="URL", help="the cluster's dashboard, http://HOST:8265")


def _add_judging(command: AddCommand) -> None:
    verify = command("verify", "judging:verify", "evidence on one model: is the watermark of this key in it?")
    text = "weights, as safetensors, or the task in the store that made them"
    verify.add_argument("--model", required=True, metavar="FILE|TASK", help=text)
    text = "the owner's key folder, or the task in the store that completed it"
    verify.add_argument("--key", required=True, metavar="DIR|TASK", help=text)
    verify.add_argument("--workload", metavar="NAME", help="architecture of the model; default: the key's")


def _add_store(command: AddCommand) -> None:
    store = command("store", "storing:ls", "list, check or clear out artifacts; seal keys")
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("ls", "list artifacts and keys"),
        ("verify", "check every file against its manifest; exit status 1 if any is damaged"),
        ("encrypt", "seal all keys with the passphrase in WMARENA_PASSPHRASE; may be repeated after an interruption"),
        ("gc", "remove unreachable artifacts; counts only, unless --apply"),
    ):
        action = actions.add_parser(name, help=text, description=_sentence(text))
        _add_global(action, with_defaults=False)
        action.set_defaults(target=f"storing:{name}")
    action.add_argument("--apply", action="store_true", help="remove them; default: show counts only")
    text = "keep what this spec reaches; may be repeated; default: the newest run of every experiment"
    action.add_argument("--keep", action="append", default=[], metavar="SPEC", help=text)


def _add_global(parser: argparse.ArgumentParser, *, with_defaults: bool) -> None:
    """Add the options of every command; a subcommand's have no defaults, so that it keeps earlier values."""
    env, group = os.environ.get, parser.add_argument_group("global options")

    def add(option: str, default: object, text: str, **more: Any) -> None:
        group.add_argument(option, default=default if with_defaults else argparse.SUPPRESS, help=text, **more)

    shared = "that several nodes share; default: $WMARENA_STORE, else ./wmarena-store"
    text = f"a folder, or a URL (s3://, gs://, hdfs://, file:///) {shared}"
    add("--store", env("WMARENA_STORE") or "wmarena-store", text, metavar="DIR|URL")
    text = "folder of keys; default: $WMARENA_KEYS, else keys/ in the store; a URL gets keys only if they are sealed"
    add("--keys", env("WMARENA_KEYS"), text, metavar="DIR")
    shared = "that several drivers share; default: $WMARENA_JOURNAL, else the store's own SQLite file"
    add("--journal", None, f"postgresql://USER@HOST/DATABASE, a journal {shared}", metavar="URL")
    text = "default: $MLFLOW_TRACKING_URI, else the store's own database; 'none' records nothing"
    add("--tracking-uri", env("MLFLOW_TRACKING_URI"), text, metavar="URI")
    add("--data-root", env("WMARENA_DATA"), "default: $WMARENA_DATA", metavar="DIR")
    add("--log-level", "warning", "default: warning", choices=("debug", "info", "warning", "error"))
    add("--json", False, "print one JSON document and nothing else", action="store_true")


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < low or (high is not None and int(text) > high):
            top = "" if high is None else f" and {high} or less"
            raise argparse.ArgumentTypeError(f"expected an integer of {low} or more{top}, got {text!r}")
        return int(text)

    return integer


def _simulation(text: str) -> dict[str, str]:
    """Parse ``workers=N[,tasks=all|missing]``."""
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    wrong = [f"no field {name!r}" for name in sorted(fields.keys() - {"workers", "tasks"})]
    try:
        _whole(1)(fields.get("workers", ""))
    except argparse.ArgumentTypeError as error:
        wrong.append(f"workers: {error}")
    if fields.setdefault("tasks", "all") not in ("all", "missing"):
        wrong.append(f"tasks: expected all or missing, got {fields['tasks']!r}")
    if wrong:
        wrong.insert(0, "expected for example workers=256 or workers=8,tasks=missing")
        raise argparse.ArgumentTypeError("; ".join(wrong))
    return fields


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return value

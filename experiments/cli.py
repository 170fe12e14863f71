"""``wmarena``: the command line. Parsing loads no plugin and no torch, so that help is instant."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

EPILOG = "Exit status: 0 all done (verify: watermark found), 1 some tasks failed (verify: not found), 2 bad input, \
nothing was run, 3 interrupted or infrastructure lost: the same command resumes."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    try:
        args = make_parser().parse_args(argv)
    except SystemExit as end:  # argparse has said why
        return end.code if isinstance(end.code, int) else 2
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s")
    logging.getLogger().setLevel(args.log_level.upper())
    dispatch = importlib.import_module("wmarena.experiments.commands.dispatch").dispatch
    status: int = dispatch(args)
    return status


def make_parser() -> argparse.ArgumentParser:
    """The whole grammar. Global options stand before or after the command."""
    parser = argparse.ArgumentParser(
        prog="wmarena", description="Attack and defence experiments on watermarked neural networks.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"wmarena {version('wmarena')}")
    _add_global(parser, with_defaults=True)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, target: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".", epilog=EPILOG)
        _add_global(sub, with_defaults=False)
        sub.set_defaults(target=target)
        return sub

    listing = command("list", "catalogue:list_plugins", "show what is installed, with parameters and ranges")
    listing.add_argument("what", choices=("schemes", "attacks", "workloads"))
    _add_planning(command)
    _add_judging(command)
    command("schema", "catalogue:schema", "print the JSON Schema of specs, for editors")
    ui = command("ui", "browsing:ui", "browse records in MLflow and studies in optuna-dashboard, on this machine")
    ui.add_argument(
        "--port", type=_whole(1, 65534), default=5000, help="MLflow's, optuna-dashboard has the next; default: 5000"
    )
    ui.add_argument("--study", metavar="NAME", help="a study of the store, or a storage URL; default: the newest")
    _add_store(command)
    return parser


AddCommand = Callable[[str, str, str], argparse.ArgumentParser]


def _add_planning(command: AddCommand) -> None:
    plan = command("plan", "planning:plan", "show what a spec would run: tasks, what is there already, cost")
    plan.add_argument("--format", choices=("text", "mermaid", "json"), default="text")
    plan.add_argument(
        "--simulate",
        type=_simulation,
        metavar="workers=N",
        help="schedule the plan on N workers in virtual time; workers=N,tasks=missing: what is not in the store only",
    )
    run = command("run", "running:run", "run what is missing of a spec; write table and report")
    _add_executor(run)
    submit = command("submit", "submitting:submit", "run a spec on a Ray cluster, which goes on without this window")
    _add_address(submit)
    submit.add_argument("--no-wait", action="store_true", help="do not follow the log")
    for sub in (run, submit):
        _add_workers(sub)
        sub.add_argument("--fail-fast", action="store_true", help="stop at the first failed task")
    _add_wait(run)
    run.add_argument(
        "--retry-quarantined", action="store_true", help="also try tasks that killed all their workers in earlier runs"
    )
    for sub in (plan, run, submit):
        sub.add_argument("spec", metavar="SPEC", help="a YAML file, or the name of a shipped spec")
        _add_overrides(sub)
    _add_tuning(command)
    for name, text in (("status", "show how a submitted run stands"), ("cancel", "stop a submitted run; resumable")):
        job = command(name, f"submitting:{name}", text)
        _add_address(job)
        job.add_argument("job", metavar="JOB", help="what submit has printed")
    report = command("report", "running:report", "rebuild the report of a run from the store")
    report.add_argument(
        "run_or_spec",
        metavar="RUN_OR_SPEC",
        nargs="?",
        help="a run's id, an experiment, or a spec: its newest run; with --sync it may be left out for all runs",
    )
    report.add_argument("--out", metavar="DIR", help="where it goes; default: its place in the store")
    report.add_argument("--sync", action="store_true", help="also send what MLflow is missing")


def _add_tuning(command: AddCommand) -> None:
    tune = command("tune", "tuning:tune", "search fields of schemes, attacks and workloads with Optuna; resumable")
    tune.add_argument("study", metavar="STUDY", help="a YAML file, or the name of a shipped study")
    tune.add_argument("--trials", type=_whole(1), help="finished trials to have; default: what the study says")
    tune.add_argument("--export", metavar="FILE", help="write the best configuration as a spec that can be run")
    _add_executor(tune)
    _add_wait(tune)
    _add_workers(tune)
    _add_overrides(tune)


def _add_executor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--executor", choices=("ray", "inline"), default="ray", help="default: ray")
    parser.add_argument("--address", help="Ray address of a running cluster; default: a local one")


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="wait while another run holds the store")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_whole(1), help="number of workers; default: the spec's, else all there is")
    parser.add_argument("--gpus-per-worker", type=_share, metavar="F", help="GPUs, or a share of one, for each worker")


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override: seeds=[0], schemes.mtlsign.lambda1=0.2, profile=paper; may be repeated",
    )


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", required=True, metavar="URL", help="the cluster's dashboard, http://HOST:8265")


def _add_judging(command: AddCommand) -> None:
    verify = command("verify", "judging:verify", "evidence on one model: is the watermark of this key in it?")
    verify.add_argument(
        "--model",
        required=True,
        metavar="FILE|TASK",
        help="weights, as safetensors, or the task in the store that made them",
    )
    verify.add_argument(
        "--key",
        required=True,
        metavar="DIR|TASK",
        help="the owner's key folder, or the task in the store that completed it",
    )
    verify.add_argument("--workload", metavar="NAME", help="architecture of the model; default: the key's")


def _add_store(command: AddCommand) -> None:
    store = command("store", "storing:ls", "list, check or clear out artifacts; seal keys")
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("ls", "list artifacts and keys"),
        ("verify", "check every file against its manifest; exit status 1 if any is damaged"),
        ("encrypt", "seal all keys with the passphrase in WMARENA_PASSPHRASE; may be repeated after an interruption"),
        ("gc", "remove what no spec reaches; counts only, unless --apply"),
    ):
        action = actions.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
        _add_global(action, with_defaults=False)
        action.set_defaults(target=f"storing:{name}")
    action.add_argument("--apply", action="store_true", help="remove, where otherwise only counts are shown")
    action.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="SPEC",
        help="keep what this spec reaches; may be repeated; default: the newest run of every experiment",
    )


def _add_global(parser: argparse.ArgumentParser, *, with_defaults: bool) -> None:
    """Options that every command has; those of a subcommand have no defaults, so that earlier ones stand."""

    def default(value: object) -> object:
        return value if with_defaults else argparse.SUPPRESS

    group = parser.add_argument_group("global options")
    group.add_argument(
        "--store",
        metavar="DIR|URL",
        default=default(os.environ.get("WMARENA_STORE") or "wmarena-store"),
        help="a folder, or a URL (s3://, gs://, hdfs://, file:///) that several nodes share; default: $WMARENA_STORE, "
        "else ./wmarena-store",
    )
    group.add_argument(
        "--keys",
        metavar="DIR",
        default=default(os.environ.get("WMARENA_KEYS")),
        help="folder of keys; default: $WMARENA_KEYS, else keys/ in the store; a URL gets keys only if they are sealed",
    )
    group.add_argument(
        "--journal",
        metavar="URL",
        default=default(None),
        help="postgresql://USER@HOST/DATABASE, a journal that several drivers share; default: $WMARENA_JOURNAL, else "
        "the store's own SQLite file",
    )
    group.add_argument(
        "--tracking-uri",
        metavar="URI",
        default=default(os.environ.get("MLFLOW_TRACKING_URI")),
        help="default: $MLFLOW_TRACKING_URI, else the store's own database; 'none' records nothing",
    )
    group.add_argument(
        "--data-root", metavar="DIR", default=default(os.environ.get("WMARENA_DATA")), help="default: $WMARENA_DATA"
    )
    group.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default=default("warning"),
        help="default: warning",
    )
    group.add_argument(
        "--json", action="store_true", default=default(False), help="print one JSON document and nothing else"
    )


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < low or (high is not None and int(text) > high):
            top = "" if high is None else f" and {high} or less"
            raise argparse.ArgumentTypeError(f"expected an integer of {low} or more{top}, got {text!r}")
        return int(text)

    return integer


def _simulation(text: str) -> dict[str, str]:
    """``workers=N[,tasks=all|missing]`` as a dictionary."""
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    wrong = [f"no field {name!r}" for name in sorted(fields.keys() - {"workers", "tasks"})]
    try:
        _whole(1)(fields.get("workers", ""))
    except argparse.ArgumentTypeError as error:
        wrong.append(f"workers: {error}")
    if fields.setdefault("tasks", "all") not in ("all", "missing"):
        wrong.append(f"tasks: expected all or missing, got {fields['tasks']!r}")
    if wrong:
        raise argparse.ArgumentTypeError(
            f"expected for example workers=256 or workers=8,tasks=missing; {'; '.join(wrong)}"
        )
    return fields


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return value

"""Runs the command of parsed arguments, and converts its errors to exit statuses."""

import importlib
from argparse import Namespace

from wmarena.experiments.commands.terminal import Terminal
from wmarena.experiments.spec.problems import SpecError
from wmarena.experiments.workloads.data import DamagedData
from wmarena.orchestrator.executors.base import NoWorkers
from wmarena.orchestrator.executors.jobs import LostCluster, NoCluster, UnknownJob
from wmarena.orchestrator.files.errors import StoreBusy, StoreError
from wmarena.orchestrator.plan.plugins import UnknownName
from wmarena.orchestrator.running.loop import Interrupted
from wmarena.orchestrator.running.store_outage import StoreLost
from wmarena.orchestrator.worker.workload import MissingData
from wmarena.schemes.keys import KeyFileError
from wmarena.schemes.params import ConfigError

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 3
"""Exit statuses."""

INPUT_ERRORS = (
    *(SpecError, ConfigError, UnknownName, MissingData, DamagedData, KeyFileError, StoreError),
    *(NoCluster, UnknownJob),
)
"""Errors that a user can correct; the message says how."""


def dispatch(args: Namespace) -> int:
    """Run the command that ``args`` names; other exceptions are defects and propagate."""
    module, _, function = str(args.target).partition(":")
    terminal = Terminal.of(args)
    try:
        command = getattr(importlib.import_module(f"wmarena.experiments.commands.{module}"), function)
        status: int = command(terminal, args)
    except (StoreBusy, StoreLost, NoWorkers, LostCluster) as error:
        terminal.note(f"wmarena: {error}")
        return INTERRUPTED
    except INPUT_ERRORS as error:
        terminal.note(f"wmarena: {error}")
        return BAD_INPUT
    except (Interrupted, KeyboardInterrupt):
        terminal.note("wmarena: interrupted; finished tasks are kept, resume by the same command")
        return INTERRUPTED
    return status

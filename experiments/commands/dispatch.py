"""From parsed arguments to a command, and from what goes wrong to an exit status."""

import importlib
from argparse import Namespace

from experiments.commands.terminal import Terminal
from experiments.problems import SpecError
from experiments.workloads.data import DamagedData
from orchestrator.arena import MissingData
from orchestrator.executors.base import NoWorkers
from orchestrator.executors.jobs import LostCluster, NoCluster, UnknownJob
from orchestrator.hiccup import StoreLost
from orchestrator.loop import Interrupted
from orchestrator.plugins import UnknownName
from orchestrator.store import StoreBusy, StoreError
from schemes.keys import KeyFileError
from schemes.params import ConfigError

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 3
"""Exit statuses."""

INPUT_ERRORS = (
    *(SpecError, ConfigError, UnknownName, MissingData, DamagedData, KeyFileError, StoreError),
    *(NoCluster, UnknownJob),
)
"""What a user can mend; the message says how."""


def dispatch(args: Namespace) -> int:
    """Run the command that ``args`` names. What nobody can mend from the message alone is raised on."""
    module, _, function = str(args.target).partition(":")
    terminal = Terminal.of(args)
    try:
        command = getattr(importlib.import_module(f"experiments.commands.{module}"), function)
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

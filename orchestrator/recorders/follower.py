"""Main function of a recorder process, started by ``process.py``: follows one execution to its end."""

import contextlib
import json
import logging
import os
import sys
import threading
from dataclasses import asdict

from wmarena.orchestrator.journal.opening import open_journal
from wmarena.orchestrator.recorders.mlflow import MlflowRecorder
from wmarena.orchestrator.store.opening import open_store


def main() -> int:
    """Follow one execution until the driver writes "drain" or ends; the first line of stdin is the request.

    Not on the command line, which others can see: the address may hold a password.
    """
    os.nice(10)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    request = json.loads(sys.stdin.readline())
    ended, lines = threading.Event(), list[str]()

    def listen() -> None:
        lines.append(sys.stdin.readline().strip())  # "" when the driver has ended
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    store = open_store(request["store"])
    with open_journal(store, request["journal"]) as journal:
        recorder = MlflowRecorder(store, journal, request["tracking_uri"], log_models=request["log_models"])
        followed = recorder.follow(request["run_id"], ended)
        ended.wait()  # the report is written after the run has ended
        last = recorder.sync(request["run_id"], abandoned=lines != ["drain"])
    total = {**asdict(last), "sent": followed.sent + last.sent}
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(total) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

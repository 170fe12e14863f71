"""``wmarena verify``: judge one model file."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from wmarena.experiments.commands.stored import key_folder, model_file
from wmarena.experiments.commands.terminal import Terminal
from wmarena.experiments.judging import verification


def verify(terminal: Terminal, args: Namespace) -> int:
    """Judge a model with a key; 0 if the watermark is found, else 1."""
    folder = key_folder(terminal, args.key)
    evidence = verification.verify(model_file(terminal, args.model), folder, workload=args.workload)
    evidence["model"]["file"] = str(args.model)
    if terminal.json:
        terminal.document(evidence)
    else:
        _show(terminal, evidence)
    return 0 if evidence["verdict"] else 1


def _show(terminal: Terminal, evidence: Mapping[str, Any]) -> None:
    terminal.text("watermark FOUND" if evidence["verdict"] else "watermark not found")
    if evidence["reason"]:
        terminal.text(f"  reason      {evidence['reason']}: {evidence['details'].get('found', '')}")
    counted = f" ({evidence['k']} of {evidence['n']})" if evidence["k"] is not None else ""
    terminal.text(f"  statistic   {evidence['statistic']:.4f}{counted}, passes from {evidence['threshold']:.4f}")
    level = f"({evidence['p_method']}), level {evidence['level']:g}"
    terminal.text(f"  evidence    p = 10^{evidence['log10_p']:.1f} {level}")
    terminal.text(f"              10^{evidence['log10_p_adj']:.1f} if the claimant may have tried 2^64 keys")
    if evidence["verdict_paper"] is not None:
        terminal.text(f"  paper       {'found' if evidence['verdict_paper'] else 'not found'} by the paper's own rule")
    terminal.text(f"  key         {evidence['scheme']} on {evidence['workload']}, commitment {evidence['commitment']}")
    for caveat in evidence["caveats"]:
        terminal.text(f"  caveat      {caveat}")

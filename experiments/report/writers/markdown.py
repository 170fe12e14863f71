"""Markdown report, for pull requests, chats and terminals."""

import re
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from wmarena.experiments.report.labels import Labels
from wmarena.experiments.report.number_format import (
    ELLIPSIS,
    NONE,
    counted,
    mean_number,
    mean_percent,
    number,
    p_value,
    percent,
    points,
    power_of_ten,
    seconds,
    signed,
    span,
)
from wmarena.experiments.report.page import ReportPage, WorkloadSection
from wmarena.experiments.report.sections.fidelity import TensorStore, paired_fidelity
from wmarena.experiments.report.sections.overview import SchemeSummary, summaries
from wmarena.experiments.report.sections.overwriting import intruders
from wmarena.experiments.report.sections.removal_cost import worst_of
from wmarena.experiments.report.sections.strengths import plain_strength
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.report.sentences import (
    SUMMARY_HEAD,
    against,
    by_seed,
    cost_text,
    median_cost_text,
    overwrite_text,
    rate_text,
    summary_cells,
    tally,
    tasks_text,
)
from wmarena.experiments.results.rows import ResultRow, required


def markdown_page(page: ReportPage) -> str:
    """Render the report in the order of the HTML page, without empty sections."""
    opening = [f"# {text(page.experiment)}", text(page.description), text(" ".join(page.sentences)), _about(page)]
    sections = {
        "Summary": _per_section(page, lambda section: summary_table(section.summaries)),
        "Survival": _MATRIX_NOTE + "\n\n" + _per_section(page, _matrix),
        "What removal costs": _noted(_COST_NOTE, _per_section(page, _costs)),
        "All attacks together": _noted(_AUMC_NOTE, _per_section(page, _areas)),
        "Who overwrites whom": _noted(_OVERWRITING_NOTE, _per_section(page, _overwriting)),
        "Fidelity": _fidelity(page),
        "Controls": _controls(page),
        "False positives": _noted(_NULL_NOTE, _nulls(page)),
        "Stamps that unlock": _stamps(page),
        "What the weights spell": _spelled(page),
        "Forgeries": _forgeries(page),
        "Cost in seconds": _seconds(page),
        "Failures and gaps": _gaps(page),
        "Caveats": "\n".join(f"- **{text(name)}** ({n}): {text(tooltip)}" for name, n, tooltip in page.caveats),
        "Reproduce": _reproduce(page),
    }
    parts = [*opening, *(f"## {title}\n\n{body}" for title, body in sections.items() if body)]
    return "\n\n".join(part for part in parts if part) + "\n"


_BREAKS = re.compile(r"[^\S\u202f]+")
"""White space except the narrow no-break space before units."""

_MATRIX_NOTE = (
    "Margin of the owner's evidence, mean and range over seeds (1: perfect match, 0: threshold), and the seeds on "
    "which the mark survived. A removal counts only within the accuracy budget and if it beats training from scratch."
)
_COST_NOTE = (
    "Smallest relative drop of the metric at which the verdict falls, median over seeds (Kaplan and Meier; a seed on "
    "which it never fell costs more than the largest drop tried on it); `>`: the median seed never fell, the largest "
    "drop tried. The price is an oracle's, who sees the verdict. Family: its cheapest attack, seed by seed."
)
_AUMC_NOTE = (
    "Area under the smallest margin that a relative drop of 0 to 20 % buys with any attack: 1 if nothing touches the "
    "mark, 0 if removing it is free; mean and range over seeds."
)
_OVERWRITING_NOTE = (
    "Margins after a second mark was embedded, and the seeds on which each key is found; rows: the mark."
)
_NULL_NOTE = (
    "Fresh keys on independent clean models. Rates with exact 99 % intervals, false positives with the upper end of "
    "the exact 95 % interval; expected values of the null model in brackets."
)


def summary_markdown(rows: Sequence[ResultRow], store: TensorStore | None = None) -> str:
    """Render the summary as one Markdown table per workload; ``store`` adds McNemar's test to differences."""
    found = summaries(rows, Labels(rows), paired_fidelity(rows, store))
    parts = []
    for workload in dict.fromkeys(s.victim.workload for s in found):
        parts += [f"**{text(workload)}**", summary_table([s for s in found if s.victim.workload == workload])]
    return "\n\n".join(parts) + "\n"


def summary_table(found: Sequence[SchemeSummary]) -> str:
    """Render one workload's summary."""
    return table(SUMMARY_HEAD, [summary_cells(s) for s in found])


def text(value: object) -> str:
    """Escape a name or message: no markup, one line."""
    out = " ".join(_BREAKS.split(str(value)))
    for character in "\\`*[]|":
        out = out.replace(character, "\\" + character)
    return out.replace("<", "&lt;")


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Render a pipe table, the first column aligned left, the others right; '' without lines."""
    rows = [[text(cell) for cell in line] for line in lines]
    rule = ["---", *["---:"] * (len(head) - 1)]
    shown = [[text(h) for h in head], rule, *rows] if rows else []
    return "\n".join("| " + " | ".join(row) + " |" for row in shown)


def _per_section(page: ReportPage, write: Callable[[WorkloadSection], str]) -> str:
    named = len(page.sections) > 1
    parts = [(section, write(section)) for section in page.sections]
    return "\n\n".join(f"### {text(a.workload)}\n\n{body}" if named else body for a, body in parts if body)


def _noted(note: str, body: str) -> str:
    """Put the note above the body; '' without a body."""
    return f"{note}\n\n{body}" if body else ""


def _about(page: ReportPage) -> str:
    level = f" A mark counts as found at p ≤ {page.levels}." if page.levels else ""
    return f"{tasks_text(page.counts)}; {counted(len(page.seeds), 'seed')}.{level}"


def _matrix(section: WorkloadSection) -> str:
    head = ["Attack", *(str(victim) for victim in section.victims)]
    return table(head, [[attack_label, *map(_cell, line)] for attack_label, line in section.matrix.items()])


def _cell(comparison: AttackComparison | None) -> str:
    if comparison is None:
        return NONE
    if comparison.outcome == "missing":
        return "no result"
    spread = span(comparison.margins)
    return f"{signed(fmean(comparison.margins))}{f' ({spread})' if spread else ''}, {tally(comparison)}"


def _costs(section: WorkloadSection) -> str:
    lines: list[list[object]] = []
    for family in section.families:
        if len(family.lines) > 1:
            lines.append([f"{family.name}, cheapest of {len(family.lines)}", *map(median_cost_text, family.cheapest)])
        lines += [[attack_label, *map(cost_text, line)] for attack_label, line in family.lines.items()]
    return table(["Attack", *(str(victim) for victim in section.victims)], lines)


def _areas(section: WorkloadSection) -> str:
    lines = [
        [
            trade.victim,
            f"{mean_number(trade.aumc)} ({span(trade.aumc)})" if len(trade.aumc) > 1 else mean_number(trade.aumc),
            median_cost_text(worst_of(trade.victim, section.comparisons)),
        ]
        for trade in section.trade_offs
    ]
    return table(["Scheme", "AUMC", "Cheapest removal"], lines)


def _overwriting(section: WorkloadSection) -> str:
    names = intruders(section.overwrite_results)
    results = section.overwrite_results.items()
    lines = [[victim, *(overwrite_text(line.get(name)) for name in names)] for victim, line in results]
    return table(["Mark of", *names], lines)


def _nulls(page: ReportPage) -> str:
    head = [
        *("Scheme", "Workload", "Null model", "Pairs", "Mean", "SD", "KS p", "p ≤ 0.05", "p ≤ 0.01"),
        *("Found", "Threshold", "5 % rule", "Null model holds"),
    ]
    lines = [
        [
            *(check.victim, check.victim.workload, c.p_method.replace("_", " "), c.n_pairs),
            *(against(c.mean, c.expected_mean), against(c.sd, c.expected_sd), p_value(c.ks_p)),
            *(rate_text(c, 0.05), rate_text(c, 0.01)),
            f"{c.false_positives} of {c.n_pairs}, rate ≤ {percent(c.fpr_high, 2)}",
            number(c.threshold, 3) if c.threshold <= 1 else "none passes",
            *(number(c.gauss_threshold, 3), "no" if c.mismatch else "yes"),
        ]
        for check in page.null_checks
        for c in (check.found,)
    ]
    return table(head, lines)


def _stamps(page: ReportPage) -> str:
    head = ["Scheme", "Workload", "Seed", "Serial numbers", "Unlocking (accuracy above 50 %)"]
    return table(
        head, [[m.victim, m.victim.workload, m.seed, len(m.accuracies), percent(m.share)] for m in page.stamps]
    )


def _spelled(page: ReportPage) -> str:
    head = ["Scheme", "Workload", "Attack", "Strength", "r", "Emblem"]
    return table(
        head,
        [
            [
                *(r.victim, r.victim.workload, r.attack_label),
                NONE if r.row.strength is None else plain_strength(r.row.strength),
                *(signed(required(r.row.statistic), 3), "found" if r.row.verdict else "not found"),
            ]
            for line in page.decoded_images
            for r in line
        ],
    )


def _fidelity(page: ReportPage) -> str:
    head = [
        *("Scheme", "Workload", "Difference by seed", "McNemar p by seed", "Discordant by seed", "Agreement"),
        *("Mean abs. move", "KS", "Relative L2", "Unlicensed"),
    ]
    lines = [
        [
            *(f.victim, f.victim.workload, ", ".join(points(pair.difference) for pair in f.pairs)),
            *(by_seed(f, "p_value"), by_seed(f, "discordant")),
            mean_percent([pair.agreement for pair in f.pairs if pair.agreement is not None]),
            mean_number(s.by_seed("covertness_mean_abs_dev"), 4),
            *(mean_number(s.by_seed(column), 3) for column in ("covertness_ks", "covertness_relative_l2")),
            mean_percent(f.unlicensed),
        ]
        for s in page.summaries
        if (f := s.fidelity) is not None
    ]
    return table(head, lines)


def _controls(page: ReportPage) -> str:
    head = ["Scheme", "Workload", "Control", "Statistic", "Band of chance", "Fired"]
    lines = []
    for s in page.summaries:
        for c in s.controls:
            band = f"{number(c.band[0], 3)}{ELLIPSIS}{number(c.band[1], 3)}" if c.band else NONE
            seen = ", ".join(number(value, 3) for value in c.statistics) or NONE
            lines.append([s.victim, s.victim.workload, c.name, seen, band, f"{c.fired} of {c.n}"])
    return table(head, lines)


def _forgeries(page: ReportPage) -> str:
    head = ["Scheme", "Workload", "Attack", "Seed", "Keys tried", "Statistic", "Adjusted p", "Claim"]
    return table(
        head,
        [
            [
                *(f.victim, f.victim.workload, f.attack_label, f.row.seed, NONE if f.tried is None else f.tried),
                *(number(required(f.row.statistic), 3), power_of_ten(f.row.log10_p_adj)),
                "passes" if f.passes else "refused",
            ]
            for f in page.forgeries
        ],
    )


def _seconds(page: ReportPage) -> str:
    head = ["Step", "What", "Workload", "Tasks", "Cached", "Mean", "Total"]
    return table(
        head,
        [
            [s.kind.value, s.what, s.workload, len(s.seconds), s.cached, seconds(s.mean), seconds(s.total)]
            for s in page.steps
        ],
    )


def _gaps(page: ReportPage) -> str:
    failed = [
        f"- {text(loss.task.label)} (`{loss.task.id[:12]}`): {text(loss.record.error)}; "
        f"{counted(loss.rows, 'row')} lost, {counted(loss.record.attempt, 'attempt')}"
        for loss in page.failed_tasks
    ]
    return "\n".join([*failed, *(f"- {counted(n, 'row')}: {text(reason)}" for reason, n in page.skipped_rows.items())])


def _reproduce(page: ReportPage) -> str:
    commands = ["wmarena plan spec.yaml", "wmarena run spec.yaml", f"wmarena report {page.run_id}".rstrip()]
    facts = [f"- {text(name)}: `{' '.join(value.replace('`', '').split())}`" for name, value in page.facts]
    return "\n\n".join(
        [
            "```sh\n" + "\n".join(commands) + "\n```",
            "The spec lies beside this page as `spec.yaml`; every row with its task ids is in `results.csv` and "
            "`results.parquet`.",
            "\n".join(facts),
        ]
    )

"""Sections of the report: fidelity, controls, forgeries, runtime; and their texts."""

import base64
import io
import math
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from tests.experiments.evidence_factory import BUDGET, Bench, PredictionStore, rows_of, sweep, verdict
from tests.experiments.gallery import SHAPE, FilledStore, calibration_of, emblem
from wmarena.experiments.report import number_format
from wmarena.experiments.report.labels import Labels
from wmarena.experiments.report.sections.calibration import Histogram, null_checks, null_panel
from wmarena.experiments.report.sections.controls import controls, false_positive_rate, forgeries
from wmarena.experiments.report.sections.decoded_images import decoded_images_of
from wmarena.experiments.report.sections.fidelity import paired_fidelity
from wmarena.experiments.report.sections.overview import summaries, verdict_sentences
from wmarena.experiments.report.sections.overwriting import overwrite_results
from wmarena.experiments.report.sections.removal_cost import family_prices
from wmarena.experiments.report.sections.runtime import failed_tasks, skipped_rows, steps
from wmarena.experiments.report.sections.strengths import StrengthAxis
from wmarena.experiments.report.sections.survival import comparisons
from wmarena.experiments.report.sections.tradeoff import trade_offs
from wmarena.experiments.report.sections.unlocking import stamp_maps, stamp_panel
from wmarena.experiments.report.sections.valley import valleys
from wmarena.experiments.report.sentences import bracket_text, cost_doubts, flip_text, median_cost_text, overwrite_text
from wmarena.experiments.report.svg import Scale, nice_ticks, tag
from wmarena.orchestrator.plan.task import Kind
from wmarena.schemes.statistics import binomial_band, mcnemar

# Fidelity


def test_mcnemar_is_taken_from_the_stored_predictions(bench: Bench) -> None:
    """Discordant counts and p are those of the two models' predictions on the same samples."""
    owner = bench.embed("adi", 0, 0.86)
    bench.judge(owner, owner, verdict(100))
    store = PredictionStore(bench, n=500)
    clean, marked = (store.load_tensors(t, "predictions.safetensors") for t in (owner.parent("clean"), owner.id))
    right = [(m["test"] == m["test_labels"]).tolist() for m in (clean, marked)]
    counts = [sum(a and not b for a, b in zip(*pair, strict=True)) for pair in (right, right[::-1])]

    (pair,) = paired_fidelity(rows_of(bench), store)[0].pairs

    assert [pair.only_clean, pair.only_marked] == counts
    assert counts[0] - counts[1] == 20
    assert pair.p_value == mcnemar(*counts)
    assert pair.difference == pytest.approx(-0.04)


def test_missing_predictions_leave_the_test_out(bench: Bench) -> None:
    """Without predictions the difference stands and the test does not."""
    owner = bench.embed("adi", 0, 0.86)
    bench.judge(owner, owner, verdict(100))

    for store in (None, PredictionStore(Bench())):
        (pair,) = paired_fidelity(rows_of(bench), store)[0].pairs
        assert (pair.p_value, pair.only_clean) == (None, None)
        assert pair.difference == pytest.approx(-0.04)


def test_a_locked_model_is_not_compared_on_plain_inputs(bench: Bench) -> None:
    """Its metric without a licence is shown; stored predictions use inputs without the serial number."""
    owner = bench.embed("dsn", 0, 0.86, unlicensed_test=0.1, unlicensed_val=0.1)
    bench.judge(owner, owner, verdict(100))

    (fidelity,) = paired_fidelity(rows_of(bench), PredictionStore(bench))

    assert (fidelity.unlicensed, fidelity.pairs[0].p_value) == ([0.1], None)


def test_pairs_are_one_per_seed(bench: Bench) -> None:
    """Many rows of one embedding are one pair."""
    for seed in (1, 0):
        owner = bench.embed("adi", seed)
        sweep(bench, owner, [(0.89, 95), (0.88, 95)])

    (fidelity,) = paired_fidelity(rows_of(bench), None)

    assert [pair.seed for pair in fidelity.pairs] == [0, 1]


# Controls and forgeries


def test_controls_stand_against_the_band_of_chance(bench: Bench) -> None:
    """The band is the binomial one; what falls outside is counted, also below; what fires is counted apart."""
    for seed, hits in ((0, 9), (1, 0), (2, 60)):
        owner = bench.embed("adi", seed)
        bench.judge(owner, bench.clean(seed), verdict(hits), control="clean")
    rows = rows_of(bench)

    (control,) = controls(rows, Labels(rows))

    assert control.band == binomial_band(100, 0.1, 0.999)
    assert (control.n, control.fired, control.outside) == (3, 1, 2)


def test_no_hit_is_no_proof_of_a_zero_rate(bench: Bench) -> None:
    """Three silent controls leave a rate of up to 70.8 % open (exact 95 % interval)."""
    for seed in range(3):
        owner = bench.embed("adi", seed)
        bench.judge(owner, bench.clean(seed), verdict(9), control="clean")
    rows = rows_of(bench)

    hits, trials, upper = false_positive_rate(controls(rows, Labels(rows)))

    assert (hits, trials) == (0, 3)
    assert upper == pytest.approx(1 - 0.025 ** (1 / 3))


def test_a_forgery_has_its_keys_tried_and_the_owners_verdict(bench: Bench) -> None:
    """A pirate's claim stands beside the owner's verdict on the same suspect."""
    owner = bench.embed("uchida", 0)
    suspect = bench.attack(owner, "overwrite", {}, 0.89, claim={"n_tried": 4})
    cell = {"attack": "overwrite", "attack_task": suspect.id}
    bench.judge(owner, suspect, verdict(20), **cell)
    bench.judge(owner, suspect, verdict(99, details={"n_tried": 4}), claim=True, **cell)
    rows = rows_of(bench)

    (forgery,) = forgeries(rows, bench.records, Labels(rows))

    assert (forgery.passes, forgery.tried, forgery.owner_stands) == (True, 4, False)


# Overwriting


def test_the_owner_and_the_overwriter_are_judged_on_the_same_model(bench: Bench) -> None:
    """The matrix names the scheme that was embedded, and holds both verdicts on each seed's decisive suspect."""
    for seed, left in ((0, 95), (1, 12)):
        owner = bench.embed("adi", seed)
        for lr, hits in ((0.001, 99), (0.01, left)):
            params = {"scheme": {"name": "uchida"}, "lr": lr}
            suspect = bench.attack(owner, "overwrite", params, 0.89, claim={"n_tried": 1})
            cell = {"attack": "overwrite", "attack_params": params, "attack_task": suspect.id, "budget": BUDGET}
            cell |= {"strength_name": "lr", "strength": lr, "scratch": bench.scratch(seed).id}
            bench.judge(owner, suspect, verdict(hits), **cell)
            bench.judge(owner, suspect, verdict(97 if lr == 0.01 else 9), claim=True, **cell)
    rows = rows_of(bench)

    ((victim, line),) = overwrite_results(comparisons(rows, Labels(rows)), rows).items()

    assert (str(victim), list(line)) == ("adi", ["uchida"])
    found = line["uchida"]
    assert found.statistics == [0.95, 0.12]
    assert [row.statistic for row in found.claims] == [0.97, 0.97]
    assert overwrite_text(found) == "owner +0.35, found 1/2; adversary +0.96, found 2/2"


def test_the_most_severe_setting_is_in_the_matrix(bench: Bench) -> None:
    """Two settings of one overwriter are one cell; other families of attacks are none."""
    owner = bench.embed("adi", 0)
    for epochs, hits in ((1, 95), (9, 12)):
        bench.attacked(owner, "overwrite", {"scheme": {"name": "adi"}, "epochs": epochs}, 0.89, verdict(hits))
    bench.attacked(owner, "finetune", {}, 0.89, verdict(12))
    rows = rows_of(bench)

    (line,) = overwrite_results(comparisons(rows, Labels(rows)), rows).values()

    assert {name: found.statistics for name, found in line.items()} == {"adi": [0.12]}


# Null models


def test_a_calibration_has_the_name_of_the_other_tables(bench: Bench) -> None:
    """Also where the scheme is ambiguous, or appears in two configurations."""
    owner = bench.embed("adi", 0)
    for mode in ("scratch", "pretrained"):
        bench.judge(owner, owner, verdict(90), scheme_params={"mode": mode}, attack_params={"for": mode})
    rows = rows_of(bench)
    labels = Labels(rows)
    found = [calibration_of(row, 100, 0.1, mismatch=False) for row in rows]

    checks = null_checks(found, labels, [labels.victim(row) for row in rows])

    assert [str(check.victim) for check in checks] == ["adi scratch", "adi pretrained"]


@pytest.mark.parametrize(
    "values",
    [[0.5], [0.25, 0.25], [k / 16 for k in (4, 4, 5, 7, 8, 8, 8, 12)] * 5, [0.001 * i * i for i in range(100)]],
)
def test_a_histogram_holds_every_value(values: list[float]) -> None:
    """Counts add up, and bins of a discrete statistic hold equally many of its steps."""
    bars = Histogram.of(values)

    assert sum(bars.counts) == len(values)
    assert bars.low <= min(values)
    assert bars.low + bars.width * len(bars.counts) >= max(values) - 1e-9
    if len(set(values)) < len(values) / 2 and len(set(values)) > 1:
        assert 16 * bars.width == pytest.approx(round(16 * bars.width))


@pytest.mark.parametrize("changes", [{}, {"expected_mean": None, "expected_sd": None}, {"threshold": 1.2}])
def test_a_null_panel_shows_both_thresholds(bench: Bench, changes: dict[str, float | None]) -> None:
    """Ours and the 5 % rule's; the null model's curve where it has one; a threshold nobody can pass on the edge."""
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(90))
    (row,) = rows_of(bench)
    (check,) = null_checks([calibration_of(row, 100, 0.1, mismatch=False, **changes)], Labels([row]), [])

    root = ElementTree.fromstring(str(null_panel(check).drawing))

    classes = [element.get("class") for element in root.iter()]
    assert (classes.count("threshold"), classes.count("budget")) == (1, 1)
    assert classes.count("null") == ("expected_sd" not in changes)
    assert classes.count("bar") > 5


# Serial numbers, emblems, valleys


def test_serial_numbers_are_counted_and_sorted(bench: Bench) -> None:
    """The share that unlocks; accuracies from the highest down, so that no place names a number."""
    owner = bench.embed("dsn", 0)
    accuracies = [0.1] * 300 + [0.99] + [0.7] * 3 + [0.2] * 208
    bench.judge(owner, owner, verdict(94, details={"stamp_accuracies": accuracies}))
    rows = rows_of(bench)

    (found,) = stamp_maps(rows, Labels(rows))

    assert found.share == 4 / 512
    assert list(found.accuracies) == sorted(accuracies, reverse=True)
    panel = stamp_panel(found)
    assert (panel.width, panel.height) == (320, 160)
    assert str(panel.drawing).count("h9.4v9.4h-9.4z") == 512


def test_an_emblem_is_read_pixel_by_pixel(bench: Bench) -> None:
    """The picture has the bytes of the verdict, of the first seed's published model and decisive suspects."""
    for seed in (0, 1):
        owner = bench.embed("tartaglione", seed)
        bench.judge(owner, owner, verdict(100, details=emblem(0.0)))
        cell = {"strength_name": "epochs", "strength": 1.0}
        bench.attacked(owner, "finetune", {"epochs": 1}, 0.89, verdict(12, details=emblem(0.9)), **cell)
    rows = rows_of(bench)

    ((published, attacked),) = decoded_images_of(summaries(rows, Labels(rows)))

    assert [(r.row.seed, r.row.verdict) for r in (published, attacked)] == [(0, True), (0, False)]
    raw = base64.b64decode(emblem(0.9)["decoded"])
    with Image.open(io.BytesIO(attacked.png)) as picture:
        assert (picture.size, picture.tobytes()) == ((SHAPE[1], SHAPE[0]), raw)


def test_a_valley_comes_from_what_the_embedding_logged(bench: Bench) -> None:
    """One curve per embedding that logged it; a store without files gives none."""
    for scheme in ("tartaglione", "adi"):
        owner = bench.embed(scheme, 0)
        bench.judge(owner, owner, verdict(100))
    rows = rows_of(bench)

    (found,) = valleys(rows, Labels(rows), FilledStore(bench))

    assert (str(found.victim), found.points[0]) == ("tartaglione", (1.0, pytest.approx(0.08)))
    assert valleys(rows, Labels(rows), PredictionStore(bench)) == []


# Curves over strengths


def test_learning_rates_stand_on_a_logarithmic_axis() -> None:
    """Rates always; other strengths only if they span two powers of ten; nothing that has a zero."""
    axes = [
        StrengthAxis.of("lr", [1e-3, 1e-2], 1),
        StrengthAxis.of("lr", [0.0, 1e-2], 1),
        StrengthAxis.of("queries", [10, 1000], 1),
        StrengthAxis.of("epochs", [1, 20], 1),
    ]

    assert [axis.logarithmic for axis in axes] == [True, False, True, False]
    scale = axes[0].scale(0.0, 100.0)
    assert scale(axes[0].place(10**-2.5)) == pytest.approx(50)


def test_the_stronger_stands_to_the_right() -> None:
    """Also where fewer are more."""
    axis = StrengthAxis.of("bits", [2, 4, 8], -1)
    scale = axis.scale(0.0, 100.0)

    assert scale(axis.place(8)) < scale(axis.place(4)) < scale(axis.place(2))


def test_the_mean_staircase_is_over_seeds(bench: Bench) -> None:
    """At each drop, the mean of what every seed's cheapest suspects have left."""
    for seed, drop in ((0, 0.02), (1, 0.1)):
        owner = bench.embed("adi", seed, 0.8)
        bench.judge(owner, owner, verdict(100))
        bench.attacked(owner, "finetune", {}, 0.8 * (1 - drop), verdict(12))
    rows = rows_of(bench)

    (trade,) = trade_offs(summaries(rows, Labels(rows)))

    assert [trade.mean_at(drop) for drop in (0.0, 0.05, 0.15)] == [1.0, 0.5, 0.0]
    assert trade.aumc == pytest.approx((0.1, 0.5))


def test_families_stand_together_with_their_cheapest_attack(bench: Bench) -> None:
    """Attacks by family, in the order of the families; the cheapest attack of each, seed by seed."""
    owner = bench.embed("adi", 0, 0.8)
    for attack, metric, hits in (
        ("overwrite", 0.79, 95),
        ("finetune", 0.76, 12),
        ("prune_weights", 0.79, 95),
        ("prune_neurons", 0.72, 12),
    ):
        bench.attacked(owner, attack, {}, metric, verdict(hits))
    rows = rows_of(bench)
    matrix = {comparison.attack_label: (comparison,) for comparison in comparisons(rows, Labels(rows))}

    found = family_prices(matrix)

    assert [(f.name, len(f.lines)) for f in found] == [("Fine-tuning", 1), ("Pruning", 2), ("Overwriting", 1)]
    assert [median_cost_text(f.cheapest[0]) for f in found] == ["5.0\u202f%", "10.0\u202f%", "> 1.3\u202f%"]


def test_a_cost_has_its_strengths_and_doubts(bench: Bench) -> None:
    """The flip in strengths, over seeds; suspects no better than scratch; verdicts that come back."""
    for seed, hits in ((0, [95, 12, 11]), (1, [95, 95, 12]), (2, [12, 95, 12])):
        sweep(bench, bench.embed("adi", seed, 0.8), [(0.79 - 0.01 * i, hit) for i, hit in enumerate(hits)])
    rows = rows_of(bench)
    (comparison,) = comparisons(rows, Labels(rows))

    assert flip_text(comparison) == "epochs by 3"
    assert cost_doubts(comparison.sweep.brackets) == ["not monotone"]
    assert bracket_text(comparison).startswith(
        "seed 0: stood at epochs 1 (1.3\u202f%), fell at epochs 2 (2.5\u202f%); "
    )


def test_a_verdict_after_realigning_is_another_line(bench: Bench) -> None:
    """Realignment by the owner is a separate line of the attack, with its name."""
    owner = bench.embed("uchida", 0)
    suspect = bench.attack(owner, "permute", {}, 0.9)
    cell: dict[str, Any] = {"attack": "permute", "attack_task": suspect.id, "budget": BUDGET}
    cell["scratch"] = bench.scratch(0).id
    bench.judge(owner, suspect, verdict(12), **cell)
    bench.judge(owner, suspect, verdict(100), realigned=True, **cell)
    rows = rows_of(bench)

    found = {str(d.attack_label): d.outcome for d in comparisons(rows, Labels(rows))}

    assert found == {"permute": "removed", "permute, after realign": "kept"}


# Runtime


def test_seconds_are_of_the_computation_also_when_cached(bench: Bench) -> None:
    """Steps are summed by kind; the shared clean training counts once."""
    for scheme in ("adi", "uchida"):
        owner = bench.embed(scheme, 0)
        bench.judge(owner, owner, verdict(100))

    found = {(step.kind, step.what): (len(step.seconds), step.total) for step in steps(bench.plan, bench.records)}

    assert found[(Kind.TRAIN, "clean training")] == (1, 20.0)
    assert found[(Kind.EMBED, "adi")] == (1, 30.0)
    assert found[(Kind.VERIFY, "uchida")] == (1, pytest.approx(0.2))


def test_a_failure_counts_the_rows_that_depend_on_it(bench: Bench) -> None:
    """A failed embedding loses its own rows and all its attacks'; a failed attack only its own."""
    owner, other = bench.embed("adi", 0), bench.embed("adi", 1)
    bench.judge(owner, owner, verdict(100))
    sweep(bench, owner, [(0.89, 95), (0.88, 95)])
    sweep(bench, other, [(0.89, 95), (0.88, 95)])
    bench.fail(owner.id)
    bench.fail(bench.plan.cells[-1].suspect)

    assert [(loss.task.kind, loss.rows) for loss in failed_tasks(bench.plan, bench.records)] == [
        (Kind.EMBED, 3),
        (Kind.ATTACK, 1),
    ]
    assert sum(skipped_rows(rows_of(bench)).values()) == 3


# Sentences


def sentences(bench: Bench) -> str:
    """The table in number_format."""
    rows = rows_of(bench)
    return " ".join(verdict_sentences(summaries(rows, Labels(rows))))


def test_the_verdict_in_words(bench: Bench) -> None:
    """Who survived what, what the cheapest removal cost, whether controls were silent."""
    for seed in (0, 1):
        strong, weak = bench.embed("adi", seed), bench.embed("uchida", seed)
        bench.judge(strong, bench.clean(seed), verdict(9), control="clean")
        sweep(bench, strong, [(0.89, 95)])
        sweep(bench, weak, [(0.89, 95)])
        bench.attacked(weak, "spoil", {}, 0.89, verdict(12 if seed else 95))

    assert sentences(bench) == (
        "On digits_mlp, adi survived the one attack on every seed; uchida survived 1 of 2 attacks and lost its mark "
        "most cheaply to spoil on 1 of 2 seeds, for 1.0\u202fpp. Both negative controls stayed silent."
    )


def test_the_worst_attack_stays_within_the_budget(bench: Bench) -> None:
    """An attack beyond the budget is not the worst; a removal precedes any small margin."""
    owner = bench.embed("adi", 0)
    bench.attacked(owner, "prune", {}, 0.2, verdict(5))
    bench.attacked(owner, "finetune", {}, 0.89, verdict(60))
    rows = rows_of(bench)
    (mild,) = summaries(rows, Labels(rows))
    bench.attacked(owner, "spoil", {}, 0.89, verdict(20))
    rows = rows_of(bench)
    (hard,) = summaries(rows, Labels(rows))

    assert [str(s.weakest.attack_label) if s.weakest else None for s in (mild, hard)] == ["finetune", "spoil"]


def test_doubts_and_gaps_in_words(bench: Bench) -> None:
    """Firing controls, missing marks and missing rows are said in the opening paragraph."""
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(12))
    bench.judge(owner, owner, verdict(90), control="stranger_key")
    sweep(bench, owner, [(0.89, 95), (0.88, 95), (0.87, 95)])
    bench.fail(bench.plan.cells[2].suspect)
    bench.skip(bench.plan.cells[3].verify, "gate: accuracy_drop <= 0.01")
    del bench.records[bench.plan.cells[4].verify]

    assert sentences(bench) == (
        "On digits_mlp, adi (ambiguous) has no detectable mark even before an attack. "
        "1 of 1 negative control fired (adi on digits_mlp): those verdicts are ambiguous. "
        "1 of 5 rows has no number because a task failed. "
        "1 of 5 rows was not reached. 1 of 5 rows was left out by a gate."
    )


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number_format.signed(-0.254), "−0.25"),
        (number_format.signed(0.001), "0.00"),
        (number_format.percent(0.8975), "89.8\u202f%"),
        (number_format.percent(None), "–"),
        (number_format.points(0.0012), "+0.12\u202fpp"),
        (number_format.price(0.011), "1.1\u202fpp"),
        (number_format.price(-0.002), "no accuracy"),
        (number_format.power_of_ten(-180.6), "3e−181"),
        (number_format.power_of_ten(-6.0), "1e−6"),
        (number_format.power_of_ten(math.log10(9.99e-7)), "1e−6"),
        (number_format.power_of_ten(0.0), "1"),
        (number_format.power_of_ten(-math.inf), "0"),
        (number_format.seconds(0.004), "0.004\u202fs"),
        (number_format.seconds(12.3), "12\u202fs"),
        (number_format.seconds(120), "2.0\u202fmin"),
        (number_format.seconds(7200), "2.0\u202fh"),
        (number_format.span([0.91]), ""),
        (number_format.span([0.95, -0.1]), "−0.10…0.95"),
        (number_format.listed(["a", "b", "c"]), "a, b and c"),
        (number_format.counted(1, "seed"), "1 seed"),
    ],
)
def test_number_formats(shown: str, expected: str) -> None:
    """True minus signs, units after a narrow space, no sign on zero, p-values as powers of ten."""
    assert shown == expected


# Drawing


def test_markup_is_escaped_everywhere() -> None:
    """Neither text nor attribute of a drawing can open a tag or leave its quotes."""
    found = tag("text", "<b>", title='"><script>', stroke_width=1)

    assert found == '<text title="&#34;&gt;&lt;script&gt;" stroke-width="1">&lt;b&gt;</text>'


def test_values_outside_a_scale_are_put_on_its_edge() -> None:
    """Nothing is drawn outside the frame."""
    scale = Scale(0.0, 10.0, 100.0, 200.0)

    assert [scale(-5), scale(5), scale(50)] == [100.0, 150.0, 200.0]
    assert [scale.holds(-5), scale.holds(5)] == [False, True]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 20.6, [0, 5, 10, 15, 20]), (-0.3, 1.1, [0.0, 0.5, 1.0]), (-1.2, 1.2, [-1, 0, 1])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    """Steps are 1, 2 or 5 times a power of ten, and zero is never written as -0."""
    found = nice_ticks(low, high, 5 if high > 2 else 4)

    assert found == pytest.approx(expected)
    assert not any(math.copysign(1, t) < 0 for t in found if t == 0)

"""What else the report concludes from rows: fidelity, controls, forgeries, effort; and how it says it."""

import math

import pytest

from experiments.report import words
from experiments.report.controls import controls, false_positive_rate, forgeries
from experiments.report.effort import losses, skips, steps
from experiments.report.fidelity import paired_fidelity
from experiments.report.labels import Labels
from experiments.report.overview import summaries, verdict_sentences
from experiments.report.svg import Scale, nice_ticks, tag
from orchestrator.task import Kind
from schemes.statistics import binomial_band, mcnemar
from tests.experiments.evidence_factory import Bench, PredictionStore, rows_of, sweep, verdict

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


def test_a_forgery_says_what_it_took_and_what_became_of_the_owner(bench: Bench) -> None:
    """A pirate's claim stands beside the owner's verdict on the same suspect."""
    owner = bench.embed("uchida", 0)
    suspect = bench.attack(owner, "overwrite", {}, 0.89, claim={"n_tried": 4})
    cell = {"attack": "overwrite", "attack_task": suspect.id}
    bench.judge(owner, suspect, verdict(20), **cell)
    bench.judge(owner, suspect, verdict(99, details={"n_tried": 4}), claim=True, **cell)
    rows = rows_of(bench)

    (forgery,) = forgeries(rows, bench.records, Labels(rows))

    assert (forgery.passes, forgery.tried, forgery.owner_stands) == (True, 4, False)


# Effort


def test_seconds_are_of_the_computation_also_when_cached(bench: Bench) -> None:
    """Steps are summed by kind; the shared clean training counts once."""
    for scheme in ("adi", "uchida"):
        owner = bench.embed(scheme, 0)
        bench.judge(owner, owner, verdict(100))

    found = {(step.kind, step.what): (len(step.seconds), step.total) for step in steps(bench.plan, bench.records)}

    assert found[(Kind.TRAIN, "clean training")] == (1, 20.0)
    assert found[(Kind.EMBED, "adi")] == (1, 30.0)
    assert found[(Kind.VERIFY, "uchida")] == (1, pytest.approx(0.2))


def test_a_failure_counts_the_rows_it_took_along(bench: Bench) -> None:
    """A failed embedding loses its own rows and all its attacks'; a failed attack only its own."""
    owner, other = bench.embed("adi", 0), bench.embed("adi", 1)
    bench.judge(owner, owner, verdict(100))
    sweep(bench, owner, [(0.89, 95), (0.88, 95)])
    sweep(bench, other, [(0.89, 95), (0.88, 95)])
    bench.fail(owner.id)
    bench.fail(bench.plan.cells[-1].suspect)

    assert [(loss.task.kind, loss.rows) for loss in losses(bench.plan, bench.records)] == [
        (Kind.EMBED, 3),
        (Kind.ATTACK, 1),
    ]
    assert sum(skip.rows for skip in skips(rows_of(bench))) == 3


# In words


def sentences(bench: Bench) -> str:
    """The table in words."""
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


def test_the_worst_attack_is_one_that_pays(bench: Bench) -> None:
    """What ruins the model is not the worst attack; a removal is, before any thin margin."""
    owner = bench.embed("adi", 0)
    bench.attacked(owner, "prune", {}, 0.2, verdict(5))
    bench.attacked(owner, "finetune", {}, 0.89, verdict(60))
    rows = rows_of(bench)
    (mild,) = summaries(rows, Labels(rows))
    bench.attacked(owner, "spoil", {}, 0.89, verdict(20))
    rows = rows_of(bench)
    (hard,) = summaries(rows, Labels(rows))

    assert [str(s.weakest.assault) if s.weakest else None for s in (mild, hard)] == ["finetune", "spoil"]


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
        (words.signed(-0.254), "−0.25"),
        (words.signed(0.001), "0.00"),
        (words.percent(0.8975), "89.8\u202f%"),
        (words.percent(None), "–"),
        (words.points(0.0012), "+0.12\u202fpp"),
        (words.price(0.011), "1.1\u202fpp"),
        (words.price(-0.002), "no accuracy"),
        (words.power_of_ten(-180.6), "3e−181"),
        (words.power_of_ten(-6.0), "1e−6"),
        (words.power_of_ten(math.log10(9.99e-7)), "1e−6"),
        (words.power_of_ten(0.0), "1"),
        (words.power_of_ten(-math.inf), "0"),
        (words.seconds(0.004), "0.004\u202fs"),
        (words.seconds(12.3), "12\u202fs"),
        (words.seconds(120), "2.0\u202fmin"),
        (words.seconds(7200), "2.0\u202fh"),
        (words.span([0.91]), ""),
        (words.span([0.95, -0.1]), "−0.10…0.95"),
        (words.listed(["a", "b", "c"]), "a, b and c"),
        (words.counted(1, "seed"), "1 seed"),
    ],
)
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
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

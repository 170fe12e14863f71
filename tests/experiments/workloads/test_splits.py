"""Splits follow from labels and sizes alone."""

from itertools import pairwise

import numpy as np
import pytest

from wmarena.experiments.workloads.splits import Splits, split, stratified
from wmarena.schemes.prf import Prf

PRF = Prf(b"a seed of a test, 16+")
UNEVEN = np.repeat([0, 1, 2], [600, 300, 100])


def parts(**sizes: object) -> Splits:
    """A split of 1,000 + 500 labels with some sizes changed."""
    labels = np.arange(1000) % 10
    asked = {"train_size": None, "val_size": 100, "reserve": 0.0, "test_size": None, **sizes}
    return split(labels, labels[:500], **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [3, 10, 57, 999, 1000])
def test_a_choice_has_the_whole_set_s_frequencies(n: int) -> None:
    """Exactly n samples; every class within one sample of its fair part, and never empty."""
    counts = np.bincount(UNEVEN[stratified(UNEVEN, n, PRF)], minlength=3)

    assert counts.sum() == n
    assert counts.min() >= 1
    assert np.abs(counts - n * np.array([0.6, 0.3, 0.1])).max() <= 1.01


def test_smaller_choices_are_part_of_larger_ones() -> None:
    """A sweep over sizes adds samples and replaces none."""
    chosen = [set(stratified(UNEVEN, n, PRF).tolist()) for n in (10, 50, 51, 400)]

    assert all(small < large for small, large in pairwise(chosen))


def test_choices_are_drawn_not_taken_from_the_front() -> None:
    """Another PRF chooses other samples."""
    first, second = stratified(UNEVEN, 100, PRF), stratified(UNEVEN, 100, PRF.child("other"))

    assert len(np.intersect1d(first, second)) < 40


@pytest.mark.parametrize("n", [2, 1001])
def test_an_impossible_size_is_refused(n: int) -> None:
    """Fewer samples than classes, or more than there are."""
    with pytest.raises(ValueError, match=rf"expected between 3 .* and 1000 .* got {n}"):
        stratified(UNEVEN, n, PRF)


def test_train_validation_and_reserve_are_disjoint_and_complete() -> None:
    """Nothing is in two of them, nothing is lost; the reserve is the asked fraction of the training part."""
    found = parts(reserve=0.25)
    joined = np.concatenate([found.train, found.val, found.reserve])

    assert sorted(joined.tolist()) == list(range(1000))
    assert (len(found.val), len(found.reserve), len(found.test)) == (100, 225, 500)


def test_validation_data_do_not_depend_on_the_training_size() -> None:
    """Scores of runs with different amounts of data are comparable."""
    small, large = parts(train_size=50), parts()

    assert small.val.tolist() == large.val.tolist()
    assert len(small.train) == 50
    assert set(small.train.tolist()) < set(large.train.tolist())


def test_the_same_sizes_give_the_same_splits() -> None:
    """No seed is involved; golden values guard every machine and version against drift."""
    found = parts(train_size=20, test_size=20)

    assert found.train.tolist() == parts(train_size=20).train.tolist()
    golden = [132, 234, 263, 302, 321, 351, 369, 459, 490, 520, 535, 615, 628, 676, 747, 763, 768, 794, 836, 877]
    assert found.train.tolist() == golden

"""Class-stratified selection of samples from a PRF: equal on every machine and under every library version.

The k-th drawn sample (k = 0, 1, ...) of a class with n_c members gets the rank (k + 1/2) / n_c, the first one the
rank 0; the n lowest ranks are chosen (Sainte-Laguë's apportionment). Hence any n is met exactly, class frequencies
follow the whole set's, every class has a member, and smaller selections are subsets of larger ones.

If images form groups of near-identical ones, validation data and reserve consist of whole groups, selected in the same
way; their sizes are then met to within a few groups. The training and test sets are selected image by image.
"""

from dataclasses import dataclass

import numpy as np

from wmarena.schemes.prf import Prf, derive

_ROOT = b"wmarena: the fixed splits of public data sets"


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Sorted int64 indices; ``train``, ``val`` and ``reserve`` into the official training set, ``test`` into the other.

    They depend on labels and sizes alone, not on a seed: all seeds of an experiment share them.
    """

    train: np.ndarray
    val: np.ndarray
    reserve: np.ndarray
    test: np.ndarray


def stratified(labels: np.ndarray, n: int, prf: Prf) -> np.ndarray:
    """Select (n,) sorted int64 indices into ``labels`` (m,), as described in the module's docstring.

    Raises:
        ValueError: n is smaller than the number of classes present, or larger than m.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if not len(classes) <= n <= len(labels):
        raise ValueError(
            f"expected between {len(classes)} (one a class) and {len(labels)} (all) samples, got {n}; "
            "change the size or the fraction"
        )
    # Sainte-Laguë: member k of a class of c has rank (k + 1/2) / c; rank 0 guarantees each class its first member.
    rank = np.empty(len(labels))
    for label, count in zip(classes, counts, strict=True):
        drawn = np.flatnonzero(labels == label)[prf.permutation(f"class/{label}", int(count))]
        rank[drawn] = (np.arange(count) + 0.5) / count
        rank[drawn[0]] = 0.0
    return np.sort(np.argsort(rank, kind="stable")[:n])


def split(
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    *,
    train_size: int | None,
    val_size: int,
    reserve: float,
    test_size: int | None,
    groups: np.ndarray | None = None,
) -> Splits:
    """Select validation data first, so that they are equal for every training size; then train and reserve.

    Args:
        groups: (n,) int64 group of each training image, of one class each, or None.
    """
    everything = np.arange(len(train_labels), dtype=np.int64)
    val = _choose_whole(train_labels, groups, everything, val_size, "validation")
    rest = np.setdiff1d(everything, val)
    part = rest if train_size is None else _choose(train_labels, rest, train_size, "train")
    n_classes = len(np.unique(train_labels))
    n_reserve = max(n_classes, round(reserve * len(part))) if reserve > 0 else 0
    reserved = _choose_whole(train_labels, groups, part, n_reserve, "reserve") if n_reserve else part[:0]
    all_test = np.arange(len(test_labels), dtype=np.int64)
    return Splits(
        train=np.setdiff1d(part, reserved),
        val=val,
        reserve=reserved,
        test=all_test if test_size is None else _choose(test_labels, all_test, test_size, "test"),
    )


def _choose(labels: np.ndarray, among: np.ndarray, n: int, purpose: str) -> np.ndarray:
    chosen: np.ndarray = among[stratified(labels[among], n, Prf(derive(_ROOT, purpose)))]
    return chosen


def _choose_whole(labels: np.ndarray, groups: np.ndarray | None, among: np.ndarray, n: int, purpose: str) -> np.ndarray:
    """Select about ``n`` of ``among`` as whole groups, stratified by class; exactly ``n`` without groups."""
    if groups is None:
        return _choose(labels, among, n, purpose)
    names, first, member_of = np.unique(groups[among], return_index=True, return_inverse=True)
    group_labels = labels[among][first]
    n_groups = max(len(np.unique(group_labels)), round(n * len(names) / len(among)))
    chosen: np.ndarray = _choose(group_labels, np.arange(len(names)), n_groups, purpose)
    whole: np.ndarray = among[np.isin(member_of, chosen)]
    return whole

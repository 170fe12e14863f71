"""Constructors of verdicts."""

from collections.abc import Callable
from typing import Any

import pytest

from wmarena.schemes.base import Verdict

CONSTRUCTORS: list[Callable[..., Verdict]] = [
    lambda **given: Verdict.binomial(15, 20, 0.5, paper=True, **given),
    lambda **given: Verdict.gauss(0.5, 100, paper=True, **given),
    lambda **given: Verdict.randomised(15, 20, [3] * 19, 19, paper=True, paper_threshold=0.5, **given),
]


@pytest.mark.parametrize("judge", CONSTRUCTORS, ids=["binomial", "gauss", "randomised"])
@pytest.mark.parametrize("given", [{"access": "black", "caveat": "a typo"}, {}], ids=["unknown", "missing"])
def test_arguments_of_a_wrong_name_are_refused(judge: Callable[..., Verdict], given: dict[str, Any]) -> None:
    """A scheme's misspelt caveat must not get lost."""
    with pytest.raises(TypeError):
        judge(**given)


@pytest.mark.parametrize("judge", CONSTRUCTORS, ids=["binomial", "gauss", "randomised"])
def test_shared_arguments_reach_the_verdict(judge: Callable[..., Verdict]) -> None:
    """Access, queries, details and caveats are kept by every constructor."""
    verdict = judge(access="black", queries=7, details={"found": 1}, caveats=["a doubt"])

    assert (verdict.access, verdict.queries, verdict.caveats) == ("black", 7, ("a doubt",))
    assert verdict.details["found"] == 1

"""Loops that share one checkpoint folder never take each other's state for their own."""

import pytest
import torch
from torch import Tensor

from tests.victims import NewestOnly
from wmarena.attacks.phases import LOOP_SPAN, PART_SPAN, Phase


def state(value: float) -> dict[str, Tensor]:
    """A state that is distinct from others."""
    return {"x": torch.tensor(value)}


def test_a_phase_reads_back_its_own_steps() -> None:
    """A state comes back under the step it was offered at."""
    phase = Phase(NewestOnly(), 2)

    phase.offer(7, lambda: state(1.0))

    assert phase.latest() == (7, state(1.0))
    assert phase.latest(6) is None


@pytest.mark.parametrize(("written", "read"), [(0, 1), (1, 0)])
def test_another_phases_state_is_not_seen(written: int, read: int) -> None:
    """Neither an earlier nor a later phase's state is taken for one's own."""
    shared = NewestOnly()

    Phase(shared, written).offer(5, lambda: state(1.0))

    assert Phase(shared, read).latest() is None
    assert Phase(shared, read).latest(LOOP_SPAN * 10) is None


def test_phases_nest() -> None:
    """A two-loop attack inside a chain keeps apart from the same loops of the next part."""
    shared = NewestOnly()
    first, second = (Phase(Phase(shared, part, PART_SPAN), 1) for part in (0, 1))

    first.offer(3, lambda: state(1.0))

    assert first.latest() == (3, state(1.0))
    assert second.latest() is None

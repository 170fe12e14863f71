"""``make fuzz`` tries as many inputs as it says."""

from pathlib import Path

from tests.fuzz.conftest import KINDS


def test_the_examples_add_up() -> None:
    """The profile divides 10,000 by the number of fuzzed readers."""
    sources = [p.read_text() for p in Path(__file__).parent.glob("test_fuzz_*.py")]

    assert sum(source.count("\n@given(") for source in sources) == KINDS
    assert -(-10_000 // KINDS) * KINDS >= 10_000

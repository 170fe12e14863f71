"""The memory limit, and keys whose numbers would make a verifier allocate or count without end."""

import resource
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.experiments.conftest import Finished, Wmarena
from wmarena.experiments.judging.memory import bounded_memory
from wmarena.orchestrator.keys.storage import load_key, save_key
from wmarena.schemes.params import Json

MIB = 2**20


def test_large_allocations_fail_until_the_limit_is_lifted() -> None:
    """numpy and torch raise exceptions; smaller allocations work, and so do large ones afterwards."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with bounded_memory(512 * MIB):
        small = np.zeros(64 * MIB, dtype=np.uint8)
        with pytest.raises(MemoryError):
            np.zeros(1024 * MIB, dtype=np.uint8)
        with pytest.raises(RuntimeError, match="memory"):
            torch.zeros(1024 * MIB, dtype=torch.uint8)

    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(small) + len(np.zeros(1024 * MIB, dtype=np.uint8)) == 1088 * MIB


def test_an_existing_lower_limit_is_kept() -> None:
    """A nested limit does not raise the outer one."""
    with bounded_memory(256 * MIB):
        outer = resource.getrlimit(resource.RLIMIT_DATA)
        with bounded_memory(2**62):
            assert resource.getrlimit(resource.RLIMIT_DATA) == outer


@pytest.mark.parametrize(
    ("scheme", "changes", "said"),
    [
        ("uchida", {"bits": 2**40}, "expected a key that its scheme can judge with"),
        ("uchida", {"bits": 10**8}, "expected a key that its scheme can judge with"),
        ("dsn", {"config": {"n_random_keys": 10**6 + 1}}, "expected numbers up to 1000000 in the key"),
    ],
    ids=["terabytes", "gigabytes", "counting"],
)
def test_a_key_that_asks_for_boundless_work_is_refused(
    scheme: str,
    changes: dict[str, Json],
    said: str,
    finished: Finished,
    wmarena: Wmarena,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A claimant's real key with one number forged, commitment to match: status 2 and a message."""
    owned = load_key(finished.key, None)
    save_key(replace(owned, scheme=scheme, public={**owned.public, **changes}), finished.key, None)

    assert wmarena("verify", "--model", finished.marked, "--key", finished.key) == 2
    assert said in capsys.readouterr().err

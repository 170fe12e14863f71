"""What all tests share: one computing thread, and the folder with real data sets, if there is one."""

import os
from pathlib import Path

import pytest
import torch

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared" / "data"

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """``WMARENA_DATA``, else a ``shared/data`` beside the repository; skips the test where there is neither."""
    root = Path(os.environ.get("WMARENA_DATA") or _BESIDE_THE_REPOSITORY)
    if not root.is_dir():
        pytest.skip("needs data sets on disk: set WMARENA_DATA to a folder that holds them")
    return root

"""The source archive and the wheel, built once for all tests."""

import pytest

from tests.packaging.distributions import Distributions, build, clean_clone, only


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """A source archive of a clean clone, and the wheel that is built from it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("distributions")
    clone = clean_clone(folder / "clone")
    made = folder / "made"
    made.mkdir()
    build(clone, made)
    return Distributions(sdist=only(made, "*.tar.gz"), wheel=only(made, "*.whl"), clone=clone)

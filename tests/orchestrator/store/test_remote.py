"""Objects behind a URL: written atomically, on a real S3 server and in a folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real_servers import free_port
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.store.opening import is_url
from wmarena.orchestrator.store.remote import Remote

Folder = Callable[[], str]


@pytest.fixture(params=["s3", "file"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    """An empty folder of each kind."""
    if request.param == "file":
        return Remote(f"file://{tmp_path}/shared")
    folder: Folder = request.getfixturevalue("s3")
    return Remote(folder())


def test_objects_come_back_as_they_were_put(remote: Remote) -> None:
    """Any bytes under any name with slashes; the last writer's stand; what is not there is None."""
    remote.put("a/b/c", b"old")
    remote.put("a/b/c", bytes(range(256)))

    assert remote.get("a/b/c") == bytes(range(256))
    assert remote.has("a/b/c")
    assert not remote.has("a/b")
    assert remote.get("a/b/d") is None


def test_a_listing_names_everything_below(remote: Remote) -> None:
    """Sorted names from the store's folder on, with sizes; an empty or missing folder lists nothing."""
    for name, raw in (("x/2", b"22"), ("x/1/deep", b"1"), ("y", b"")):
        remote.put(name, raw)

    assert [(s.name, s.size) for s in remote.listing("x")] == [("x/1/deep", 1), ("x/2", 2)]
    assert all(s.changed > 0 for s in remote.listing("x"))
    assert remote.listing("nothing") == []


def test_what_is_dropped_or_moved_is_gone(remote: Remote) -> None:
    """Dropping twice is no error; a moved object has its bytes under the new name."""
    remote.put("old", b"bytes")
    remote.move("old", "set/new")
    remote.drop("old")

    assert remote.get("old") is None
    assert remote.get("set/new") == b"bytes"


@pytest.mark.parametrize(
    "url",
    [
        "s3://owner:swordfish@bucket/x",
        "s3://bucket/x?secret_key=swordfish",
        "gs://bucket/x?access_token=swordfish",
        "s3://bucket/x?endpoint_override=http://owner:swordfish@host",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    """They would stand in process lists and records; the message says where they belong and does not show them."""
    with pytest.raises(StoreError, match="credentials") as error:
        Remote(url)
    assert "swordfish" not in str(error.value)
    assert "AWS_SECRET_ACCESS_KEY" in str(error.value)


@pytest.mark.parametrize("url", ["foo://bucket/x", "s3://bucket/x?bogus=1", "file://relative/x"])
def test_other_urls_are_refused(url: str) -> None:
    """The message names what is understood."""
    with pytest.raises(StoreError, match="expected a store's URL as pyarrow knows them"):
        Remote(url).has("x")


def test_a_store_that_is_away_is_one_line(s3: Folder) -> None:
    """No traceback of the AWS library, but which store, what was tried, and that credentials matter."""
    gone = Remote(f"s3://bucket/x?endpoint_override=127.0.0.1:{free_port()}&scheme=http")
    with pytest.raises(StoreError) as error:
        gone.get("x")
    assert "\n" not in str(error.value)
    assert "expected to read x at the store s3://bucket/x" in str(error.value)


def test_equal_urls_are_one_store() -> None:
    """A slash at the end and the order of options do not matter."""
    one, other = Remote("s3://b/x/?scheme=http&region=eu"), Remote("s3://b/x?region=eu&scheme=http")

    assert one.url == other.url
    assert one.address("a/b") == "s3://b/x/a/b?region=eu&scheme=http"


def test_folders_are_no_urls() -> None:
    """Only ``scheme://`` is: a drive letter or a relative path is a folder."""
    assert is_url("s3://bucket")
    assert not any(map(is_url, ("store", "/a/b", "C:store", "./s3")))

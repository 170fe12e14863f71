"""Bad input: the message names expected, got and the way out; status 2; no task runs, no file is written."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.experiments.conftest import Finished
from tests.experiments.spec_texts import TINY, with_lines, without_data
from wmarena.experiments.cli import main
from wmarena.experiments.workloads.images.cifar import Cifar10ResNet18

Wmarena = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, *arguments: object) -> str:
    """Run a command that must end with status 2 and no word on stdout; returns what it says on stderr."""
    status = main(["--tracking-uri", "none", *map(str, arguments)])
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    return captured.err


# Specs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (with_lines(schemes="schemes: [uchda]"), ["line 4", "Did you mean 'uchida'?", "Known: adi"]),
        (with_lines(attacks="attacks: [fintune]"), ["line 6", "Did you mean 'finetune'?"]),
        (with_lines(workloads="workloads: [digits]"), ["line 2", "Did you mean 'digits_"]),
        (with_lines(schemes="schemes: [{name: uchida, lamda1: 1}]"), ["schemes[0].lamda1", "did you mean 'lambda1'?"]),
        (with_lines(schemes="schemes: [{name: uchida, bits: x}]"), ["expected an integer, got str 'x'"]),
        (with_lines(schemes="schemes: [{name: uchida, bits: 1}]"), ["expected a value in [20, inf), got 1"]),
        (with_lines(schemes="schemes: [{name: uchida, bits: []}]"), ["got an empty grid", "leave the field out"]),
        (with_lines(schemes="schemes: [uchida, {name: uchida}]"), ["expected distinct entries", "schemes[0] (line 4)"]),
        (with_lines(seeds="seeds: []"), ["expected at least one seed"]),
        (TINY + "name: again\n", ["line 9, column 1", "expected each key once"]),
        (TINY + "extra: [\n", ["line 10, column 1", "expected YAML"]),
        ("name: !!python/object/apply:os.system [true]\n", ["line 1, column 7", "without a tag"]),
        ("", ["expected a mapping with name"]),
    ],
)
def test_a_wrong_spec_is_refused_before_anything_happens(
    text: str, expected: list[str], tmp_path: Path, capsys: Capture
) -> None:
    """Run and plan refuse it alike, naming file and line; the store is not even made."""
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    for command in ("plan", "run"):
        message = refused(capsys, "--store", tmp_path / "store", command, path)

        assert str(path) in message
        for part in expected:
            assert part in message
    assert not (tmp_path / "store").exists()


def test_several_mistakes_are_reported_at_once(tmp_path: Path, capsys: Capture) -> None:
    """The message lists every mistake of the file."""
    path = tmp_path / "wrong.yaml"
    path.write_text(with_lines(schemes="schemes: [uchda]", attacks="attacks: [fintune]", seeds="seeds: [-1]"))
    message = refused(capsys, "--store", tmp_path / "store", "run", path)

    assert "3 problems" in message
    assert [message.index(part) for part in ("line 4", "line 5", "line 6")] == sorted(
        message.index(part) for part in ("line 4", "line 5", "line 6")
    )


def test_an_unknown_spec_is_refused(tmp_path: Path, capsys: Capture) -> None:
    """A mistyped bare name gets the nearest shipped one."""
    assert "did you mean 'quickstart'?" in refused(capsys, "--store", tmp_path / "store", "run", "quickstrat")


def test_a_wrong_override_is_refused(tmp_path: Path, capsys: Capture, finished_once: Finished) -> None:
    """The override is named, not a line of the file."""
    message = refused(
        capsys, "--store", tmp_path / "s", "run", finished_once.spec, "--set", "schemes.uchida.lamda1=0.2"
    )

    assert "--set schemes.uchida.lamda1=0.2: schemes[0].lamda1: unknown field; did you mean 'lambda1'?" in message


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["run"],
        ["run", "quickstart", "--workers", "0"],
        ["run", "quickstart", "--workers", "two"],
        ["run", "quickstart", "--gpus-per-worker", "-1"],
        ["run", "quickstart", "--gpus-per-worker", "nan"],
        ["run", "quickstart", "--executor", "slurm"],
        ["list", "everything"],
        ["ui", "--port", "70000"],
        ["store", "shrink"],
        ["plan", "quickstart", "--format", "svg"],
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], capsys: Capture) -> None:
    """The command line itself is checked before anything is loaded."""
    assert "usage: wmarena" in refused(capsys, *arguments)


# The world


def test_missing_data_are_reported_before_the_run(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how to get them; no store is made."""
    without_data(monkeypatch, Cifar10ResNet18)
    path = tmp_path / "cifar.yaml"
    path.write_text(with_lines(workloads="workloads: [cifar10_resnet18]"))
    message = refused(capsys, "--store", tmp_path / "store", "--data-root", tmp_path, "run", path)

    assert "expected the data set" in message
    assert "--data-root" in message
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("store", ["file/store", "file"])
def test_a_store_that_cannot_be_written_is_refused(
    store: str, tmp_path: Path, capsys: Capture, finished_once: Finished
) -> None:
    """A path below, or at, a plain file is no place for a store; the file stays as it was."""
    (tmp_path / "file").write_text("mine")
    message = refused(capsys, "--store", tmp_path / store, "run", finished_once.spec, "--executor", "inline")

    assert "expected a store folder that can be written" in message
    assert "--store DIR" in message
    assert (tmp_path / "file").read_text() == "mine"


def test_a_store_url_of_no_known_kind_is_refused(capsys: Capture, finished_once: Finished) -> None:
    """The message names the kinds that there are."""
    assert "s3://bucket/prefix" in refused(capsys, "--store", "smb://bucket/store", "run", finished_once.spec)


@pytest.mark.parametrize("command", [["report", "tiny"], ["store", "ls"], ["store", "verify"], ["store", "gc"], ["ui"]])
def test_commands_that_need_a_store_do_not_make_one(command: list[str], tmp_path: Path, capsys: Capture) -> None:
    """A mistyped --store is reported, not created."""
    message = refused(capsys, "--store", tmp_path / "nowhere", *command)

    assert "expected" in message
    assert "--store" in message
    assert not (tmp_path / "nowhere").exists()


def test_an_unknown_run_is_refused(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """The message names the runs that there are."""
    assert wmarena("report", "20200101-000000-abcdef") == 2
    assert finished.summary.run_id in capsys.readouterr().err


# Models and keys


def as_zip(path: Path, marked: Path) -> None:
    """What torch.save writes today."""
    torch.save({"weight": torch.zeros(3)}, path)


def as_old_pickle(path: Path, marked: Path) -> None:
    """What torch.save wrote before."""
    torch.save({"weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)


def as_pickle(path: Path, marked: Path) -> None:
    """A plain pickle."""
    path.write_bytes(pickle.dumps({"weight": [1.0, 2.0]}, protocol=2))


def as_half(path: Path, marked: Path) -> None:
    """The first half of a safetensors file."""
    raw = marked.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def as_header_only(path: Path, marked: Path) -> None:
    """A safetensors file that ends within its header."""
    path.write_bytes(marked.read_bytes()[:40])


def as_nothing(path: Path, marked: Path) -> None:
    """An empty file."""
    path.write_bytes(b"")


def as_text(path: Path, marked: Path) -> None:
    """A text file."""
    path.write_text("these are not weights\n" * 10)


def as_folder(path: Path, marked: Path) -> None:
    """A folder where a file should be."""
    path.mkdir()


def as_missing(path: Path, marked: Path) -> None:
    """No file at all."""


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (as_zip, "a zip archive (torch.save)"),
        (as_old_pickle, "a pickle"),
        (as_pickle, "a pickle"),
        (as_half, "expected a whole safetensors file"),
        (as_header_only, "expected a whole safetensors file"),
        (as_nothing, "expected a whole safetensors file"),
        (as_text, "expected a whole safetensors file"),
        (as_folder, "expected a readable file of weights"),
        (as_missing, "expected a readable file of weights"),
    ],
)
def test_a_model_that_is_no_safetensors_file_is_refused(
    write: Callable[[Path, Path], None], expected: str, finished_once: Finished, tmp_path: Path, capsys: Capture
) -> None:
    """Known by content, whatever it is called; pickles are never opened; the message says how to save weights."""
    path = tmp_path / "model.safetensors"
    write(path, finished_once.marked)
    message = refused(capsys, "verify", "--model", path, "--key", finished_once.key)

    assert expected in message
    assert str(path) in message


class Bomb:
    """Writes a file if it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.trace,)


def test_a_pickle_is_not_executed(finished_once: Finished, tmp_path: Path, capsys: Capture) -> None:
    """A model file that would run code leaves no trace."""
    trace, path = tmp_path / "trace", tmp_path / "model.bin"
    path.write_bytes(pickle.dumps(Bomb(trace)))
    refused(capsys, "verify", "--model", path, "--key", finished_once.key)

    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()


@pytest.mark.parametrize("name", ["key.json", "secret.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_a_key_altered_by_one_byte_is_refused(
    name: str, position: float, finished_once: Finished, tmp_path: Path, capsys: Capture
) -> None:
    """Wherever the byte is."""
    key = tmp_path / "key"
    shutil.copytree(finished_once.key, key)
    raw = bytearray((key / name).read_bytes())
    raw[int(position * len(raw))] ^= 1
    (key / name).write_bytes(raw)
    message = refused(capsys, "verify", "--model", finished_once.marked, "--key", key)

    assert "altered or damaged" in message
    assert str(key) in message


@pytest.mark.parametrize("name", ["key.json", "secret.safetensors", "SHA256SUMS"])
def test_a_key_that_lacks_a_file_is_refused(
    name: str, finished_once: Finished, tmp_path: Path, capsys: Capture
) -> None:
    """The message names the file that is missing."""
    key = tmp_path / "key"
    shutil.copytree(finished_once.key, key)
    (key / name).unlink()

    assert f"where {name} cannot be read" in refused(capsys, "verify", "--model", finished_once.marked, "--key", key)


def test_an_unknown_workload_is_refused(finished_once: Finished, capsys: Capture) -> None:
    """The nearest name is offered."""
    message = refused(
        capsys, "verify", "--model", finished_once.marked, "--key", finished_once.key, "--workload", "digits_mpl"
    )

    assert "Did you mean 'digits_mlp'?" in message


def test_json_leaves_stdout_empty_when_input_is_bad(tmp_path: Path, capsys: Capture) -> None:
    """A tool that reads stdout gets nothing rather than half a document."""
    assert refused(capsys, "--json", "--store", tmp_path / "store", "plan", tmp_path / "nothing.yaml")

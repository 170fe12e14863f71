"""An artifact's manifest: its task's identity, its result, the SHA-256 of every file, and a digest over all of this."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from wmarena.orchestrator.plan.identity import digest_text
from wmarena.orchestrator.plan.task import TaskId

FORMAT = 1
MANIFEST = "manifest.json"


class CorruptArtifact(OSError):
    """A stored file is missing or does not match its manifest."""

    def __init__(self, task_id: TaskId, detail: str) -> None:
        self.task_id = task_id
        super().__init__(f"artifact {task_id[:12]} is damaged: {detail}")


def make_manifest(
    task_id: TaskId, identity: Mapping[str, Any], result: Mapping[str, Any], files: Mapping[str, bytes]
) -> dict[str, Any]:
    """Make the manifest of an artifact with ``files``.

    Raises:
        TypeError: identity or result cannot be written as JSON.
        ValueError: a file's name is not a plain name.
    """
    if not all(map(_plain_name, files)):
        raise ValueError(f"expected plain names of files, got {sorted(files)}; an artifact has no folders")
    body = {
        "format": FORMAT,
        "task_id": task_id,
        "identity": dict(identity),
        "result": dict(result),
        "files": {n: {"sha256": hashlib.sha256(files[n]).hexdigest(), "bytes": len(files[n])} for n in sorted(files)},
    }
    # Through JSON and back, so that the writer has the values of a reader (lists for tuples, text for all keys).
    manifest: dict[str, Any] = json.loads(json.dumps(body))
    return {**manifest, "digest": _manifest_digest(manifest)}


def encode_manifest(manifest: Mapping[str, Any]) -> bytes:
    """Encode a manifest."""
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def decode_manifest(task_id: TaskId, raw: bytes) -> dict[str, Any]:
    """Decode a manifest and check that it is unchanged.

    Raises:
        CorruptArtifact: it is unreadable, was altered, or belongs to another task.
    """
    try:
        manifest: dict[str, Any] = json.loads(raw)
        intact = (
            manifest["task_id"] == task_id
            and manifest["format"] == FORMAT
            and manifest["digest"] == _manifest_digest(manifest)
            and _well_formed(manifest)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise CorruptArtifact(task_id, f"{MANIFEST} is not the manifest of this task")
    return manifest


def _well_formed(manifest: Mapping[str, Any]) -> bool:
    """Return whether all parts have their types, and every file has a plain name inside the artifact's folder."""
    names, parts = manifest["files"], (manifest["identity"], manifest["result"], manifest["identity"].get("config", {}))
    return all(isinstance(part, dict) for part in parts) and all(
        _plain_name(name) and isinstance(entry["sha256"], str) for name, entry in names.items()
    )


def _plain_name(name: str) -> bool:
    return name not in ("", ".", "..", MANIFEST) and not set(name) & {"/", "\\", "\0"}


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    # The digest covers identity and result as well, which no file hash protects.
    body = {name: value for name, value in manifest.items() if name != "digest"}
    return digest_text("manifest", json.dumps(body, sort_keys=True))

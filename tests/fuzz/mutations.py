"""Mutations of inputs: corrupted or forged bytes, values of other types and sizes.

Also the fence around a reader: no write outside the folder that it was given, no memory without end.
"""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

MEMORY = 300 * 2**20
"""Bytes by which one input may raise this process's peak memory."""

DEPTH: Any = []
for _ in range(40):
    DEPTH = [DEPTH]

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 2**31, 2**63, -(2**64), 10**300, 1e308, -0.0, 1e-320),
    *(float("nan"), float("inf"), -float("inf")),
    *("", " ", "x" * 5000, "../../x", "/etc/passwd", "..", ".", "~nobody-of-that-name/x", "C:\\x", "a\0b", "\0"),
    *(
        "\ud800",
        "\u202e\u2066x",
        "e\u0301" * 50,
        "\ufeff",
        "\uffff",
        "٣",
        "𝟛",
        "ſ",
        "<script>alert(1)</script>",
        "{{7*7}}",
    ),
    *("!!python/object:os.system", "*a", "&a", "<<", "1e-4", "0x10", "1_000", "null", "true", "%s%n", "uchida", "none"),
    *([], {}, [[]], [None], {"": None}, {"name": None}, {"name": "uchida"}, [1, "a", None], DEPTH),
    *({"../../x": 1}, {"__class__": "x"}, {"bisect": "epochs", "low": 0, "high": 10**300}, list(range(200))),
]
"""Values of unexpected types, sizes and meanings."""

BYTES: list[bytes] = [
    *(
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n---\n",
        b"../../",
        b"/",
        b"NaN",
        b"-Infinity",
        b"1e999",
    ),
    *(
        b"9" * 400,
        b"[" * 2000,
        b'{"a":' * 2000,
        b"- " * 500,
        b"&a ",
        b"*a",
        b"!!python/name:os.system ",
        b"%YAML 9.9\n",
    ),
    *(
        b"&a [*a]",
        b"&b [x,x]\nc: &c [*b,*b]\nd: [*c,*c]",
        b"<<: ",
        b"? ",
        b"|\n",
        b"\t",
        b'"',
        b"'",
        b"{",
        b"}",
        b"]",
        b",",
    ),
    *(b"\xff" * 8, b"\0" * 8, b"PK\x03\x04", b"\x80\x02", b"F4", b"BF16", b'"shape":[1099511627776]', b"<script>"),
]
"""Byte sequences that are known to break readers."""


@st.composite
def altered_bytes(draw: st.DrawFn, raw: bytes) -> bytes:
    """``raw`` after one to four mutations: bits flipped, truncated, a piece inserted, doubled or deleted."""
    out = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(out) - 1)))
        end = min(len(out), start + draw(st.integers(1, 40)))
        match draw(st.integers(0, 4)):
            case 0 if out:
                out[start] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del out[start:]
            case 2:
                out[start:start] = draw(st.sampled_from(BYTES) | st.binary(max_size=8))
            case 3:
                out[start:start] = out[start:end]
            case _:
                del out[start:end]
    return bytes(out)


@st.composite
def altered_value(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three of its parts replaced, removed, doubled, renamed or wrapped."""
    out = value
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(out, ()))
        out = _changed(draw, out, draw(st.sampled_from(places)))
    return out


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield path
    if len(path) < 8 and isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(min(len(value), 30)):
            yield from _places(value[key], (*path, key))


def _changed(draw: st.DrawFn, value: Any, path: tuple[Any, ...]) -> Any:
    """A copy of ``value`` with the part at ``path`` changed."""
    if not path:
        return draw(st.sampled_from(VALUES) | st.just([value]) | st.just({"name": value}))
    key, rest = path[0], path[1:]
    out = dict(value) if isinstance(value, dict) else list(value)
    choice = 0 if rest else draw(st.integers(0, 5))
    if choice == 1:
        del out[key]
    elif choice == 2 and isinstance(out, list):
        out.insert(key, out[key])
    elif choice == 2 and isinstance(out, dict):
        out[draw(st.sampled_from([v for v in VALUES if isinstance(v, str)]))] = out.pop(key)
    else:
        out[key] = _changed(draw, value[key], rest)
    return out


_writes: list[str] | None = None
_OPEN_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}
_COMMANDS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pty.spawn", "pickle.find_class"}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _writes is None:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _OPEN_TO_WRITE:
        _writes.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else "")
    elif event in _CHANGES:
        _writes.extend(os.fsdecode(a) for a in arguments if isinstance(a, str | bytes | os.PathLike))
    elif event in _COMMANDS:
        _writes.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_hook)


@contextmanager
def fenced(folder: Path) -> Iterator[None]:
    """Fail on writes outside ``folder``, commands, unpickling or excessive memory."""
    global _writes
    before, _writes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    try:
        yield
    finally:
        seen, _writes = _writes, None
    inside = str(folder.resolve())
    outside = [w for w in seen if w and not os.path.realpath(w).startswith(inside) and "__pycache__" not in w]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert outside == [], f"written outside {folder}"
    assert grown < MEMORY, f"{grown >> 20} MiB for one input"

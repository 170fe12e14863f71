"""The data dictionary of ``results.parquet``: the fields of ``ResultRow``, and the caveats."""

from dataclasses import fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from docs._build.tables import table
from wmarena.experiments.results.caveats import EXPLANATIONS
from wmarena.experiments.results.rows import COLUMN_TYPES, ResultRow

_HEAD = """# Columns of results.parquet

Generated from `wmarena.experiments.results.rows.ResultRow`. A run writes one row per verify task to `results.parquet`,
and the same rows without `details` to `results.csv`. An unknown value is null (empty in CSV). Columns keep their place:
new ones are added at the end, and a table that was written before a column existed is read with null in it. In Python,
`wmarena.experiments.results.table.read_results` gives the rows as objects.

The columns from `outcome` to `energy_j` are reserved: this version leaves them null.
"""

_CAVEATS = """## Caveats {#caveats}

The values of `caveats`, from `wmarena.experiments.results.caveats`. A caveat is a named doubt; it changes no verdict.
"""

_WORDS = {float: "number", int: "integer", bool: "true or false", tuple: "list of texts"}


def page() -> str:
    """Every column with its type, its unit or range, and its meaning; then every caveat."""
    lines = [
        [
            f"`{f.name}`",
            _type(COLUMN_TYPES[f.name]),
            f.metadata["unit"],
            f.metadata["doc"] + _values(COLUMN_TYPES[f.name]),
        ]
        for f in fields(ResultRow)
    ]
    caveats = table(["Caveat", "Meaning"], [[f"`{name}`", meaning] for name, meaning in EXPLANATIONS.items()])
    columns = table(["Column", "Type", "Unit or range", "Meaning"], lines)
    return "\n\n".join([_HEAD, columns, _CAVEATS, caveats]) + "\n"


def _type(hint: Any) -> str:
    """``text``, ``number or null``."""
    if NoneType in get_args(hint):
        (plain,) = (part for part in get_args(hint) if part is not NoneType)
        return f"{_type(plain)} or null"
    return _WORDS.get(get_origin(hint) or hint, "text")


def _values(hint: Any) -> str:
    """The values of a column that takes few; '' for others."""
    if NoneType in get_args(hint):
        return "".join(_values(part) for part in get_args(hint))
    return f"; one of {', '.join(f'`{v}`' for v in get_args(hint))}" if get_origin(hint) is Literal else ""

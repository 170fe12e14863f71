"""The notebook: it runs from top to bottom in an empty folder, and is kept without outputs."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).resolve().parents[2] / "docs" / "tour.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after its run, in a kernel of its own."""
    notebook = nbformat.read(TOUR, as_version=4)
    folder = tmp_path_factory.mktemp("tour")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def outputs(notebook: Any, cell_id: str) -> list[Any]:
    """What one cell shows."""
    (cell,) = [c for c in notebook.cells if c.id == cell_id]
    return list(cell.outputs)


def test_the_notebook_is_kept_without_outputs() -> None:
    """Outputs are made by whoever runs it: in git they would only be noise in every change."""
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)

    assert [c.id for c in notebook.cells if c.cell_type == "code" and (c.outputs or c.execution_count)] == []


def test_the_notebook_shows_table_and_figure(executed: Any) -> None:
    """Every cell ran; the run did all its tasks, the table has controls and cells, and there is a picture."""
    (summary,) = outputs(executed, "run")
    table = "".join(o["data"]["text/plain"] for o in outputs(executed, "table"))

    assert "failed=0" in summary["data"]["text/plain"]
    assert "stranger_key" in table
    assert "prune_weights" in table
    assert any("image/png" in o.get("data", {}) for o in outputs(executed, "figure"))


def test_the_notebook_finds_a_cost(executed: Any) -> None:
    """The search ends with a cost per scheme."""
    text = "".join(o["data"]["text/plain"] for o in outputs(executed, "cost"))

    assert "uchida" in text
    assert "adi" in text


def test_the_notebook_finds_a_front(executed: Any) -> None:
    """The study ends with trials that no other beats, and their picture."""
    *_, front = outputs(executed, "study")  # before it, tqdm may complain that Jupyter has no widgets

    assert "margin(overwrite)" in front["data"]["text/plain"]
    assert "schemes.uchida.lambda1" in front["data"]["text/plain"]
    assert any("image/png" in o.get("data", {}) for o in outputs(executed, "front"))

"""Every notebook runs from top to bottom as it lies in the repository; its asserts are part of it."""

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).resolve().parent.parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def executed(notebook):
    return nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()


def outputs(notebook):
    return [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]


def test_there_are_notebooks():
    assert "first_steps.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path):
    notebook = executed(nbformat.read(path, as_version=4))
    shown = outputs(notebook)
    assert not [o for o in shown if o.output_type == "stream" and o.name == "stderr"], "warnings belong to nobody's first steps"
    assert any("application/vnd.plotly.v1+json" in o.get("data", {}) for o in shown)
    assert any("INVALID" in o.get("text", "") for o in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_without_outputs(path):
    """Nobody's old pictures: what stands there is what a reader's own run makes."""
    assert outputs(nbformat.read(path, as_version=4)) == []


def test_a_failing_cell_fails():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        executed(notebook)

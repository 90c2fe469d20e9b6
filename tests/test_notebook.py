"""Notebooks run from top to bottom, in a short form, and were saved executed."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SHORT = {"first_flow": "to = 60.0"}


def notebook(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_after_running_all(path):
    cells = [c for c in notebook(path).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for c in cells for output in c.outputs]
    assert "display_data" in kinds and "error" not in kinds
    streams = [o.name for c in cells for o in c.outputs if o.output_type == "stream"]
    assert "stderr" not in streams


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_short_form(path):
    """With the cell tagged "parameters" replaced."""
    short = notebook(path)
    (parameters,) = (
        c for c in short.cells if "parameters" in c.metadata.get("tags", [])
    )
    parameters.source = SHORT[path.stem]
    nbclient.NotebookClient(short, timeout=300, kernel_name="python3").execute()

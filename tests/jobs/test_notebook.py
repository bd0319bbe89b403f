"""The notebook in docs runs from its first cell to its last, and shows something."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from servers import WAIT_SECONDS

from drgn_ray.training.run_directory import RunDirectory

NOTEBOOK = Path(__file__).parents[2] / "docs" / "run.ipynb"


def test_the_notebook_shows_latents_and_volumes_of_a_run(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRGN_RAY_RUN", str(trained.path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=WAIT_SECONDS, startup_timeout=WAIT_SECONDS, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert any("of 300 particles" in output.get("text", "") for output in outputs)


def test_the_notebook_is_kept_without_outputs() -> None:
    assert not any(cell.get("outputs") for cell in nbformat.read(NOTEBOOK, as_version=4).cells)

"""The notebook runs from its first cell to its last, and is committed with what it showed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from diffusion.controlnet import ControlNetModel
from diffusion.unets.unet_2d_condition import UNet2DConditionModel

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "task_1_controlnet" / "inference.ipynb"


def outputs(notebook) -> list:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_notebook_runs_headless(tmp_path, monkeypatch):
    unet = UNet2DConditionModel.from_pretrained(ROOT / "tiny_sd" / "unet")
    ControlNetModel.from_unet(unet, (8, 8, 8, 8)).save_pretrained(tmp_path)
    monkeypatch.setenv("MODEL_DIR", str(ROOT / "tiny_sd"))
    monkeypatch.setenv("CONTROLNET", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == 3
    assert any("mean_iou" in str(output) for output in outputs(notebook))


def test_notebook_names_both_bases():
    first = next(cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code")
    assert "CompVis/stable-diffusion-v1-4" in first and "../tiny_sd" in first


def test_notebook_is_committed_with_the_outputs_of_a_good_run():
    shown = str(outputs(nbformat.read(NOTEBOOK, 4)))
    assert shown.count("image/jpeg") == 3
    assert "site-packages" not in shown and "stderr" not in shown, "warnings name the machine's paths"
    assert float(re.search(r"mean_iou\W+([0-9.]+)", shown).group(1)) >= 0.9

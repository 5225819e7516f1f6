"""The notebook runs from its first cell to its last, and is committed with what it showed."""

from __future__ import annotations

import re

import nbformat

from diffusion.controlnet import ControlNetModel
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from processes import ROOT, run_notebook
from small_bases import small_base

NOTEBOOK = ROOT / "task_1_controlnet" / "inference.ipynb"


def outputs(notebook) -> list:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_notebook_runs_headless(tmp_path):
    unet = UNet2DConditionModel.from_pretrained(small_base(), subfolder="unet")
    ControlNetModel.from_unet(unet, (8, 8, 8, 8)).save_pretrained(tmp_path)
    shown = run_notebook(NOTEBOOK, MODEL_DIR=small_base(), CONTROLNET=str(tmp_path))
    assert sum("image/png" in data for data in shown) == 3
    assert any("mean_iou" in str(data) for data in shown)


def test_notebook_names_both_bases():
    first = next(cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code")
    assert "CompVis/stable-diffusion-v1-4" in first and "../tiny_sd" in first


def test_notebook_is_committed_with_the_outputs_of_a_good_run():
    shown = str(outputs(nbformat.read(NOTEBOOK, 4)))
    assert shown.count("image/jpeg") == 3
    assert "site-packages" not in shown and "stderr" not in shown, "warnings name the machine's paths"
    assert float(re.search(r"mean_iou\W+([0-9.]+)", shown).group(1)) >= 0.9

"""Task 1's evaluation: its table, its names for what it measured, and the conditions that it takes."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_metrics import disc_of, drawing

import train
from diffusion.controlnet import ControlNetModel
from diffusion.loading import load_controlnet, load_pipeline
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from examples import load_test_data
from fill50k import TEST_DISCS, load_data, write_test_data
from finetune.data.colors import COLORS
from finetune.model.base import BaseModelError
from finetune.run.settings import data_identity
from metrics import DiscScore, canny_edges, inside_outline, overlap, summary
from processes import BASE, ROOT, call
from rendered_discs import draw, render_condition
from small_bases import base_of_size, small_base

spec = importlib.util.spec_from_file_location("evaluate_task_1", ROOT / "task_1_controlnet" / "evaluate.py")
evaluate = importlib.util.module_from_spec(spec)  # by its path, as Task 2 has a program of the same name
sys.modules[spec.name] = evaluate
spec.loader.exec_module(evaluate)


@pytest.mark.parametrize("shape", [(700, 512), (512, 900)])
def test_a_condition_that_is_no_square_is_scored_as_it_was_drawn(shape):
    for disc in TEST_DISCS:
        wide = Image.new("RGB", shape)
        wide.paste(render_condition(disc), tuple((side - 512) // 2 for side in shape))
        image = draw(disc, 512, "RGB", COLORS["white"], (0, COLORS["red"])).resize((128, 128), Image.BOX)
        (found,) = evaluate.score_all([image], [wide], ["red circle with white background"])
        assert found.iou > 0.97


def test_a_base_whose_size_is_a_pair_draws_as_one_with_a_number(tmp_path):
    net = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(small_base(), subfolder="unet"), [8] * 4)
    drawn = ([render_condition(TEST_DISCS[0])], ["a disc"])
    bases = {size: base_of_size(tmp_path / str(size), size) for size in ((8, 8), (8, 16), None)}
    expected, found = (
        evaluate.generate(load_pipeline(base, net), *drawn, num_inference_steps=2)[0]
        for base in (small_base(), bases[8, 8])
    )
    assert found.size == (64, 64) and np.array_equal(found, expected)
    for size in ((8, 16), None):
        with pytest.raises(BaseModelError, match="sample_size of .*, but pictures are drawn in squares"):
            evaluate.generate(load_pipeline(bases[size], net), *drawn)


def test_the_flag_lets_the_base_alone_guess_for_the_empty_prompt(tmp_path):
    unet = UNet2DConditionModel.from_pretrained(small_base(), subfolder="unet")
    net = ControlNetModel.from_unet(unet, [8] * 4)
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight)
    net.save_pretrained(tmp_path / "net")
    # fmt: off
    flags = ["--base", str(small_base()), "--controlnet", str(tmp_path / "net"), "--num_conditions", "0",
             "--num_inference_steps", "2", "--output_dir", str(tmp_path)]
    # fmt: on
    drawn = {}
    for name in ("controlnet", "base"):
        status, said = call(evaluate.main, *flags, "--unconditional", name)
        assert status == 0, said
        assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["unconditional"] == name
        drawn[name] = np.asarray(Image.open(tmp_path / "generated" / "0.png"))
    conditions, prompts = load_test_data()
    pipeline = load_pipeline(small_base(), tmp_path / "net")
    for model in (pipeline.unet, pipeline.controlnet):  # as the program has it: other attention rounds otherwise
        evaluate.use_fast_attention(model, pipeline.device)
    alone = evaluate.generate(pipeline, conditions, prompts, num_inference_steps=2, unconditional="base")[0]
    assert np.array_equal(drawn["base"], alone) and not np.array_equal(drawn["base"], drawn["controlnet"])


def test_a_controlnet_that_is_not_there_or_of_another_base_is_named(tmp_path):
    with pytest.raises(BaseModelError, match="(?s)runs/none': there is no such folder in .*controlnet. of its --outp"):
        load_pipeline(small_base(), "../runs/none")
    unet = UNet2DConditionModel.from_pretrained(BASE, subfolder="unet")
    ControlNetModel.from_unet(unet, [8] * 4).save_pretrained(tmp_path / "net")
    with pytest.raises(BaseModelError, match="is for another base: its in_channels is 16, the base's is 4. Give"):
        load_pipeline(small_base(), tmp_path / "net")
    flags = ["--preset", "demo", "--dry_run", "--pretrained_model_name_or_path", small_base()]
    status, said = call(train.main, *flags, "--controlnet_model_name_or_path", str(tmp_path / "net"))
    assert status == 1 and "is for another base" in said and "Traceback" not in said
    loaded = load_controlnet(tmp_path / "net", unet, torch.float32)
    assert loaded.config.in_channels == 16


def drawn_right(pipeline, conditions, prompts, conditioning_scale=1.0, **settings):
    """In place of a model: the disc in the prompt's colours, or without ControlNet only the background."""
    images = []
    for condition, prompt in zip(conditions, prompts):
        disc, background = re.fullmatch(r"(.+) circle with (?:an? )?(.+) background", prompt).groups()
        mask = inside_outline(condition, (64, 64)) if conditioning_scale else np.zeros((64, 64), bool)
        pixels = np.where(mask[..., None], COLORS.get(disc, (255, 0, 0)), COLORS.get(background, (0, 0, 255)))
        images.append(Image.fromarray(pixels.astype(np.uint8)))
    return images


def test_the_table_shows_each_thickness_and_look(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "generate", drawn_right)
    results = evaluate.evaluate_discs(None, 20, {}, tmp_path)
    names = ["1 px", "2 px", "3 px", "5 px", "8 px", "white on black", "soft", "black on white", "JPEG"]
    assert list(results["held_out_by_outline"]) == names
    rows = ["test", "held_out_without_controlnet", "held_out", *names]
    printed = capsys.readouterr().out.splitlines()
    assert [line[:30].strip() for line in printed[1:]] == rows
    assert "nan" not in "".join(printed)
    assert len(results["held_out_scores"]) == 20 and results["held_out"]["mean_iou"] > 0.97
    assert min(row["mean_iou"] for row in results["held_out_by_outline"].values()) > 0.97
    assert results["held_out_without_controlnet"]["mean_iou"] == 0


def test_held_out_samples_meet_every_thickness_with_every_look():
    conditions, prompts, names = evaluate.held_out_samples(20)
    assert len(conditions) == len(prompts) == len(set(names)) == 20
    looks = dict(zip(names, conditions))
    assert np.median(looks["5 px", "black on white"]) == 255 and np.median(looks["5 px", "white on black"]) == 0
    few = evaluate.by_outline([DiscScore(0.5, 1.0, 1.0)], names[:1])
    assert set(few) == {"1 px", "white on black"}, "a kind that was not drawn has no row, and no nan"


def test_a_figure_that_was_not_measured_is_a_dash(capsys):
    evaluate.print_table({"test": summary([DiscScore(0.5, None, None)])})
    assert capsys.readouterr().out.splitlines()[1].split() == ["test", "0.500", "0%", "-", "-"]


def test_the_courses_own_images_may_take_the_place_of_the_test_conditions(tmp_path):
    write_test_data(tmp_path)
    folder = tmp_path / "test_conditions"
    expected, _ = load_test_data(tmp_path)
    with Image.open(folder / "0.png") as image:
        image.convert("RGBA").save(folder / "0.png")
    with Image.open(folder / "1.png") as image:
        image.save(folder / "1.jpg")
    with Image.open(folder / "2.png") as image:
        black_on_nothing = Image.new("RGBA", image.size)
        black_on_nothing.putalpha(image.convert("L"))
        black_on_nothing.save(folder / "2.png")
    expected[2] = ImageOps.invert(expected[2])
    with pytest.raises(ValueError, match="must hold one image for prompt 1.* has 2"):
        load_test_data(tmp_path)
    (folder / "1.png").unlink()
    conditions, prompts = load_test_data(tmp_path)
    assert [condition.mode for condition in conditions] == ["RGB"] * 5 and len(prompts) == 5
    for disc, condition, before in zip(TEST_DISCS, conditions, expected):
        assert np.abs(np.asarray(condition).astype(int) - np.asarray(before)).mean() < 2
        assert overlap(inside_outline(condition, (512, 512)), disc_of(disc)) > 0.98
    (folder / "4.png").unlink()
    with pytest.raises(ValueError, match="must hold one image for prompt 4.* has 0"):
        load_test_data(tmp_path)


COLUMNS = ("image", "conditioning_image", "text")


def folder_of_edges(folder: Path, numbers: range) -> str:
    folder.mkdir()
    rows = []
    for i in numbers:
        drawing(i).save(folder / f"{i}.png")
        canny_edges(drawing(i)).save(folder / f"edges_{i}.png")
        row = {"file_name": f"{i}.png", "conditioning_image_file_name": f"edges_{i}.png", "text": f"picture {i}"}
        rows.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return str(folder)


def keep_run(run: Path, folder: str, number: int) -> str:
    """What training keeps of the first `number` samples of a folder; returns the ControlNet's folder."""
    data = load_data(folder, max_samples=number)
    settings = {"data": {"words": f"{len(data)} samples of {folder}", "identity": data_identity(data)}, "start": None}
    run.mkdir(exist_ok=True)
    (run / "run.json").write_text(json.dumps({"settings": settings}))
    return str(run / "controlnet")


def test_what_was_trained_on_is_never_called_held_out(tmp_path, monkeypatch, capsys):
    pictures = [drawing(i) for i in range(6)]
    monkeypatch.setattr(evaluate, "generate", lambda pipeline, conditions, *_, **__: pictures[-len(conditions) :])
    edges = folder_of_edges(tmp_path / "edges", range(6))
    other = folder_of_edges(tmp_path / "other", range(6, 9))
    for case, (trained_on, number, label) in enumerate(
        [(edges, 6, "trained_on"), (edges, 5, "trained_on"), (edges, 4, "held_out"), (other, 3, "last_samples")]
    ):
        controlnet = keep_run(tmp_path / f"run{case}", trained_on, number)
        results = evaluate.evaluate_edges(None, controlnet, edges, COLUMNS, 2, {}, tmp_path)
        assert set(results) == {label, f"{label}_without_controlnet"}
        assert ("held_out" in capsys.readouterr().out) == (label == "held_out")
        assert results[label]["mean_edge_f1"] == 1
    again = Path(edges) / "metadata.jsonl"
    row = {"file_name": "0.png", "conditioning_image_file_name": "edges_0.png", "text": "again"}
    again.write_text(f"{again.read_text()}\n{json.dumps(row)}")
    controlnet = keep_run(tmp_path / "again", edges, 4)
    results = evaluate.evaluate_edges(None, controlnet, edges, COLUMNS, 2, {}, tmp_path)
    assert set(results) == {"trained_on", "trained_on_without_controlnet"}, "a picture with another caption is the same"
    nowhere = str(tmp_path / "nowhere" / "controlnet")
    results = evaluate.evaluate_edges(None, nowhere, edges, COLUMNS, 2, {}, tmp_path)
    assert set(results) == {"last_samples", "last_samples_without_controlnet"}


def test_no_edges_at_all_are_not_scored(monkeypatch, capsys):
    flags = ["--controlnet", "x", "--base", str(ROOT / "tiny_sd"), "--edges", "x", "--num_conditions", "0"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags, "--output_dir", "x"])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "at least 1" in capsys.readouterr().err

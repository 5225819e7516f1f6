"""The page's functions, without Gradio: what is found, refused, drawn, measured and shown."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import math
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import urllib.request
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from diffusion.controlnet import ControlNetModel
from diffusion.unets.unet_2d_condition import UNet2DConditionModel as OurUNet
from fill50k import RenderedFill50K
from grading.starter.make import blank
from page import __main__ as program
from page import conditions, found, jobs
from page.actions import Actions, default_settings, still
from page.browser import html
from page.guard import MOST_BYTES, Guard
from page.inside import MAPS, Residuals
from page.preview import LinearPreview
from page.requests import MOST_LETTERS, MOST_STEPS, UNCONDITIONAL, Refused, Settings, checked
from page.studio import Steering, Studio
from processes import BASE, ROOT
from rendered_discs import Disc, render_condition

QUICK = Settings("gold circle with a navy background", steps=2, guidance=3.0)
CIRCLE = render_condition(Disc(200, 260, 120), 512)


@pytest.fixture(scope="module")
def studio():
    made = Studio(BASE, torch.device("cpu"))
    made.resolution = 64  # a quarter of the work
    return made


@pytest.fixture(scope="module")
def runs(studio, tmp_path_factory):
    """A ControlNet that nobody has trained yet, and a LoRA of one matrix."""
    folder = tmp_path_factory.mktemp("runs")
    unet = studio.plain.unet
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ControlNetModel.from_unet(OurUNet.from_pretrained(BASE, subfolder="unet"), (8, 16, 32, 64))
        net.save_pretrained(str(folder / "fresh" / "controlnet"))
        (folder / "style").mkdir()
        weight = unet.get_submodule("mid_block.attentions.0.proj_in").weight
        matrices = {"A": torch.randn(2, weight.shape[1]), "B": torch.randn(weight.shape[0], 2)}
    prefix = "unet.mid_block.attentions.0.proj_in.lora_"
    save_file(
        {f"{prefix}{name}.weight": matrix for name, matrix in matrices.items()},
        str(folder / "style" / found.LORA_FILE),
    )
    return folder


@pytest.fixture(scope="module")
def actions(studio, runs):
    return Actions(studio, runs)


@pytest.fixture(scope="module")
def net(actions):
    return actions.controlnets()[0][0]


@pytest.fixture(scope="module")
def style(actions):
    return actions.loras()[0]


def pixels(image):
    return np.asarray(image).astype(int)


def last(views):
    return list(views)[-1]


def outline(*points, width=6):
    image = Image.new("RGB", (512, 512))
    ImageDraw.Draw(image).line([*points, points[0]], "white", width=width)
    return image


def by_hand(wobble=0.03):
    """A circle as a hand draws it."""
    turns = np.linspace(0, 2 * np.pi, 60)
    radius = 130 * (1 + wobble * np.sin(3 * turns) + wobble * np.sin(5 * turns + 1))
    return outline(*zip(250 + radius * np.cos(turns), 240 + radius * np.sin(turns)))


# ---------------------------------------------------------------------------------------------------------------------
# What is found


def write_run(folder, finished=None, steps=()):
    folder.mkdir(parents=True, exist_ok=True)
    run = {"finished": finished, "result": "controlnet", "settings": {}}
    (folder / "run.json").write_text(json.dumps(run))
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text(json.dumps({"step": step, "written": step, "settings": {}}))


def put_net(studio, folder, **other):
    folder.mkdir(parents=True)
    names = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
    config = {"_class_name": "ControlNetModel", **{name: studio.plain.unet.config[name] for name in names}, **other}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"")


def labels(models):
    return sorted(model.label for model in models)


def test_a_training_that_is_running_shows_up_with_its_last_checkpoint(studio, tmp_path):
    config = studio.plain.unet.config
    assert found.controlnets(tmp_path / "runs", config) == ([], 0), "there need be no folder"
    write_run(tmp_path / "mine", steps=(100, 1200))
    for step in (100, 1200):
        put_net(studio, tmp_path / "mine" / f"checkpoint-{step}" / "controlnet")
    assert labels(found.controlnets(tmp_path, config)[0]) == ["mine (in training, step 1,200)"]
    put_net(studio, tmp_path / "mine" / "best" / "controlnet")
    put_net(studio, tmp_path / "mine" / "controlnet")
    write_run(tmp_path / "mine", finished=1300)
    assert labels(found.controlnets(tmp_path, config)[0]) == ["mine", "mine (its best)"]


def test_controlnets_for_other_bases_are_counted_and_not_offered(studio, tmp_path):
    put_net(studio, tmp_path / "sd" / "controlnet", block_out_channels=[320, 640, 1280, 1280])
    put_net(studio, tmp_path / "a" / "b" / "controlnet")
    put_net(studio, tmp_path / ".hidden" / "controlnet")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    shutil.copytree(tmp_path / "broken", tmp_path / "foreign")
    (tmp_path / "foreign" / "config.json").write_text("[]")
    nets, others = found.controlnets(tmp_path, studio.plain.unet.config)
    assert labels(nets) == ["a/b"] and others == 3


def test_labels_are_all_that_the_browser_can_name(actions, net):
    nets = actions.controlnets()[0]
    assert labels(nets) == ["fresh"] and found.chosen(nets, "fresh", "ControlNet") == net
    for label in (str(net.path), "../fresh", "", None, 3, ["fresh"], {"path": "fresh"}):
        with pytest.raises(Refused, match="choose one of the list"):
            found.chosen(nets, label, "ControlNet")
    with pytest.raises(Refused, match="train one first"):
        found.chosen([], "fresh", "ControlNet")


def test_what_was_chosen_stays_chosen_while_it_is_there(actions):
    nets = actions.controlnets()[0]
    newer = found.Model("newer", nets[0].path, nets[0].stamp + 1)
    assert still("fresh", found.newest_first([*nets, newer])) == "fresh"
    assert still("gone", found.newest_first([*nets, newer])) == "newer" and still("gone", []) is None


def test_empty_todo_places_are_named_and_the_solution_has_none(tmp_path):
    assert found.empty_places(ROOT / "task_1_controlnet") == {}
    for name in ("controlnet.py", "unets/unet_2d_condition.py"):
        source = (ROOT / "task_1_controlnet" / "diffusion" / name).read_text(encoding="utf-8")
        (tmp_path / "diffusion" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "diffusion" / name).write_text(blank(source), encoding="utf-8")
    empty = found.empty_places(tmp_path)
    assert list(empty) == ["1", "2", "3", "4-1", "4-2"] and "zero convolution" in empty["1"]


def test_the_note_says_what_is_missing_and_by_which_command_it_comes(actions, runs, tmp_path):
    assert actions.note() == ""
    nothing = Actions(actions.studio, tmp_path).note()
    assert "make demo" in nothing and "train_lora_custom.sh" in nothing
    places = html.note(runs, actions.controlnets()[0], 0, actions.loras(), {"4-1": "add <b>"})
    assert "TODO (4-1): add &lt;b&gt;" in places and "make demo" not in places


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def test_settings_within_the_limits_are_taken_as_they_are():
    settings = checked("a\ncat ", None, 7.0, 5, 0, 2, 0.25, 0.5, "base")
    assert settings == Settings("a cat", "", 7, 5, 0.0, 2.0, 0.25, 0.5, "base")


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"prompt": "a" * (MOST_LETTERS + 1)}, "make it shorter"),
        ({"prompt": ["a cat"]}, "must be a text"),
        ({"seed": 1.5}, "whole number from 0"),
        ({"seed": -1}, "whole number from 0"),
        ({"steps": MOST_STEPS + 1}, f"from 1 to {MOST_STEPS}"),
        ({"steps": True}, f"from 1 to {MOST_STEPS}"),
        ({"steps": math.inf}, f"from 1 to {MOST_STEPS}"),
        ({"guidance": math.nan}, "number from 0 to 20"),
        ({"guidance": "3"}, "number from 0 to 20"),
        ({"scale": 10**400}, "number from 0 to 2"),
        ({"start": 0.5, "end": 0.5}, "it must start earlier"),
        ({"unconditional": True}, "one of controlnet, base, guess_mode"),
        ({"unconditional": "nobody"}, "one of controlnet, base, guess_mode"),
    ],
)
def test_settings_beyond_them_are_refused_in_a_sentence(wrong, words):
    usual = {"prompt": "a cat", "negative_prompt": "", "seed": 0, "steps": 2, "guidance": 3}
    with pytest.raises(Refused, match=words):
        checked(**{**usual, **wrong})


def as_file(image, kind="PNG", **how):
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(stream.getvalue()).decode()


def bomb(side):
    """A file of 45 bytes that says it holds a picture of `side` x `side` px."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IEND", b"")]
    content = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + content).decode()


def test_a_drawn_condition_arrives_as_it_was_drawn():
    assert (pixels(conditions.condition(conditions.as_url(CIRCLE))) == pixels(CIRCLE)).all()
    wide = Image.new("RGB", (900, 300))
    wide.paste(CIRCLE.resize((300, 300)), (300, 0))
    assert conditions.condition(as_file(wide, "WEBP")).size == (512, 512)


@pytest.mark.parametrize(
    "sent, words",
    [
        (None, "canvas is empty"),
        ("", "canvas is empty"),
        (as_file(Image.new("RGB", (512, 512))), "canvas is empty"),
        (as_file(Image.new("RGBA", (64, 64))), "transparent all over"),
        ("file:///etc/passwd", "no picture"),
        ("/etc/passwd", "no picture"),
        ({"path": "/etc/passwd"}, "no picture"),
        ("data:image/png;base64,????", "damaged"),
        ("data:image/png;base64," + base64.b64encode(b"GIF89a").decode(), "damaged"),
        (as_file(CIRCLE)[:-400], "damaged"),
        (as_file(CIRCLE, "GIF"), "damaged, or none"),
        (as_file(Image.new("1", (5000, 8))), "at most 4096"),
        (bomb(30_000), "at most 4096"),
        ("data:image/png;base64," + "A" * 4_000_000, "too large"),
    ],
)
def test_what_is_no_condition_is_refused_in_a_sentence(sent, words):
    with pytest.raises(Refused, match=words):
        conditions.condition(sent)


VALUES = [
    None, "", "a cat", "x" * 5000, "\ud800", "<script>alert(1)</script>", 0, 1, -1, 1.5, 2, 10**400, 1e308,
    math.nan, math.inf, True, False, [], {}, [1, 2], {"path": "/etc/passwd"}, "data:image/png;base64,AAAA",
    "../../etc", "fresh", "style", as_file(CIRCLE)[:-40], bomb(9000), b"bytes",
]  # fmt: skip


def test_500_random_requests_are_answered_in_words(actions, capsys):
    rng = random.Random(0)
    for _ in range(500):
        name, number = rng.choice([("pair", 11), ("scales", 11), ("inside", 11), ("styles", 14)])
        said = list(getattr(actions, name)(*rng.choices(VALUES, k=number)))
        assert len(said) == 1 and said[0].startswith('<p class="problem">') and "<script" not in said[0]
        assert "nobody expected" not in said[0]
        actions.edges(rng.choice(VALUES))
        assert actions.test_prompt(rng.choice(VALUES)).endswith("background")
    assert "Traceback" not in capsys.readouterr().err


def test_what_nobody_expected_is_a_sentence_on_the_page_and_a_traceback_in_the_terminal(actions, monkeypatch, capsys):
    def fail(*arguments):
        raise KeyError("secret")

    monkeypatch.setattr(jobs, "pair", fail)
    (said,) = actions.pair(as_file(CIRCLE), "fresh", "a cat", "", 0, 2, 3)
    assert "nobody expected" in said and "secret" not in said
    assert "KeyError: 'secret'" in capsys.readouterr().err


def test_an_empty_todo_place_is_named_where_the_pictures_would_be(actions, monkeypatch):
    def empty(*arguments, **more):
        raise NotImplementedError("TODO (3): send the features through the zero convolutions")

    monkeypatch.setattr(ControlNetModel, "forward", empty)
    said = list(actions.pair(as_file(CIRCLE), "fresh", "a cat", "", 0, 1, 3))
    assert "TODO (3): send the features" in said[-1] and "not filled in yet" in said[-1]
    assert 'alt="Without ControlNet"' in said[-1], "the base draws all the same"


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def test_circles_are_told_from_what_is_none():
    circles = [image for image, _ in conditions.test_conditions()]
    circles += [by_hand(), render_condition(Disc(500, 30, 250)), render_condition(Disc(256, 256, 60))]
    assert all(map(conditions.is_circle, circles))
    square = outline((100, 100), (400, 100), (400, 400), (100, 400))
    line = outline((20, 30), (480, 300))
    photo = conditions.edges(Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)))
    others = [square, line, photo.resize((512, 512)), outline((50, 400), (256, 60), (460, 400))]
    assert not any(map(conditions.is_circle, others))


def test_discs_are_scored_by_overlap_and_anything_else_by_edges():
    sample = RenderedFill50K("test", 3).render(1, 256)
    score = conditions.measured(sample.image, sample.conditioning_image, sample.text)
    assert score.measure == "IoU" and score.value > 0.97
    assert conditions.measured(sample.image, sample.conditioning_image, "a house").measure == "edge F1"
    house = outline((100, 200), (256, 60), (410, 200), (410, 450), (100, 450))
    drawn = Image.new("RGB", (512, 512), "navy")
    ImageDraw.Draw(drawn).polygon([(100, 200), (256, 60), (410, 200), (410, 450), (100, 450)], "gold")
    score = conditions.measured(drawn, house, "a house")
    assert score.measure == "edge F1" and score.value > 0.9
    assert conditions.measured(drawn.rotate(45), house, "a house").value < 0.5


def test_a_pictures_edges_go_to_the_canvas(actions):
    drawn = Image.new("RGB", (640, 480), "navy")
    ImageDraw.Draw(drawn).ellipse((220, 140, 420, 340), "gold")
    edges = conditions.condition(actions.edges(as_file(drawn, "JPEG")))
    assert edges.size == (512, 512) and conditions.is_circle(edges)
    assert actions.edges("no picture") == ""


def test_a_preview_shows_the_colours_where_they_are(studio):
    preview = studio.preview
    assert isinstance(preview, LinearPreview) and preview.error < 0.06
    sample = RenderedFill50K("test", 9).render(5, 128)
    tensor = torch.from_numpy(pixels(sample.image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        latents = studio.plain.vae.encode(tensor).latent_dist.mean * studio.plain.vae.config.scaling_factor
    small = preview(latents)
    assert small.size == (16, 16)
    assert np.abs(pixels(small) - pixels(sample.image.resize((16, 16), Image.BOX))).mean() < 20
    assert preview(torch.full_like(latents, math.nan)).size == (16, 16)


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn


def test_an_untrained_controlnet_changes_nothing_and_previews_come_first(studio, net):
    views = list(jobs.pair(studio, QUICK, CIRCLE, net))
    without, with_net = views[-1].tiles
    assert np.abs(pixels(without.image) - pixels(with_net.image)).max() <= 3, "but for rounding"
    assert without.image.size == (64, 64) and without.score == with_net.score and without.score.measure == "IoU"
    assert "s" in without.note and not without.is_preview
    previews = [view.tiles[1] for view in views if view.tiles[1].is_preview]
    assert [tile.note for tile in previews] == ["step 1 of 2", "step 2 of 2"]
    assert previews[0].image.size == (8, 8) and views[0].tiles[0].image is None


def test_a_controlnet_that_was_trained_further_is_read_again(studio, actions, net):
    steering = Steering(net, CIRCLE)
    before = studio.draw(QUICK, steering).image
    trained = ControlNetModel.from_pretrained(str(net.path))
    torch.nn.init.constant_(trained.controlnet_mid_block.bias, 3.0)
    trained.save_pretrained(str(net.path))
    again = replace(steering, controlnet=actions.controlnets()[0][0])
    try:
        assert (pixels(studio.draw(QUICK, again).image) != pixels(before)).any()
        quiet = studio.draw(replace(QUICK, scale=0.0), again).image
        assert np.abs(pixels(quiet) - pixels(before)).max() <= 3
    finally:
        torch.nn.init.zeros_(trained.controlnet_mid_block.bias)
        trained.save_pretrained(str(net.path))


def test_guidance_compares_with_whose_guess_it_is_told(studio, net, tmp_path):
    trained = ControlNetModel.from_pretrained(str(net.path))
    for layer in (trained.controlnet_down_blocks[0], trained.controlnet_mid_block):
        torch.nn.init.constant_(layer.bias, 3.0)
    trained.save_pretrained(str(tmp_path / "mine" / "controlnet"))
    (mine,) = found.controlnets(tmp_path, studio.plain.unet.config)[0]

    def drawn(unconditional, guidance):
        settings = replace(QUICK, unconditional=unconditional, guidance=guidance)
        return pixels(studio.draw(settings, Steering(mine, CIRCLE)).image)

    guided = [drawn(whose, 3.0) for whose in UNCONDITIONAL]
    assert all((one != other).any() for one, other in itertools.combinations(guided, 2))
    both, alone, weakened = (drawn(whose, 1.0) for whose in UNCONDITIONAL)
    assert (both == alone).all() and (both != weakened).any(), "nothing is compared without guidance"
    assert default_settings(studio).unconditional == "base"


def test_without_a_controlnet_the_base_draws_alone(actions, tmp_path):
    alone = Actions(actions.studio, tmp_path)
    said = list(alone.pair(as_file(CIRCLE), None, QUICK.prompt, "", 0, 1, 3))[-1]
    assert 'data-tile="without"' in said and 'data-tile="with"' not in said
    assert "train one first" in list(alone.scales(as_file(CIRCLE), None, QUICK.prompt, "", 0, 1, 3))[-1]


def test_all_scales_from_0_to_2(studio, net):
    tiles = last(jobs.scales(studio, replace(QUICK, steps=1), Steering(net, CIRCLE))).tiles
    assert [tile.title for tile in tiles] == [f"scale {i / 4:g}" for i in range(9)]
    assert all(tile.image is not None and tile.score for tile in tiles)


def test_base_and_lora_start_from_the_same_noise_and_leave_no_trace(studio, style):
    base, zero = last(jobs.styles(studio, QUICK, (style, 0.0), None)).tiles
    assert (pixels(base.image) == pixels(zero.image)).all()
    again, styled = last(jobs.styles(studio, QUICK, (style, 2.0), None)).tiles
    assert (pixels(again.image) == pixels(base.image)).all() and (pixels(styled.image) != pixels(base.image)).any()
    assert not [name for name, _ in studio.plain.unet.named_parameters() if "lora" in name]


def test_controlnet_and_lora_draw_together(studio, net, style):
    base, lora, controlled, both = last(jobs.styles(studio, QUICK, (style, 2.0), Steering(net, CIRCLE))).tiles
    assert np.abs(pixels(controlled.image) - pixels(base.image)).max() <= 3  # the ControlNet is untrained
    assert np.abs(pixels(both.image) - pixels(lora.image)).max() <= 3


def test_a_lora_in_training_is_drawn_with_as_its_checkpoint_keeps_it(studio, runs, style, tmp_path):
    whole = load_file(str(style.path))
    write_run(tmp_path / "mine", steps=(50,))
    checkpoint = tmp_path / "mine" / "checkpoint-50"
    state = {"step": 50, "written": 1, "settings": {"rank": 2, "alpha": 4.0}}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    (checkpoint / "lora").mkdir()
    halved = {name: tensor / (2 if "lora_B" in name else 1) for name, tensor in whole.items()}
    kept = {name.replace("weight", "default.weight"): tensor for name, tensor in halved.items()}
    save_file(kept, str(checkpoint / found.LORA_STATE))
    (running,) = found.loras(tmp_path)
    assert running.label == "mine (in training, step 50)"
    images = [studio.draw(QUICK, lora=(one, 1.0)).image for one in (running, style)]
    assert (pixels(images[0]) == pixels(images[1])).all()


def test_a_file_that_is_no_lora_for_this_base_is_refused_by_its_name(studio, tmp_path):
    (tmp_path / "other").mkdir()
    save_file({"unet.nowhere.lora_A.weight": torch.ones(2, 2)}, str(tmp_path / "other" / found.LORA_FILE))
    said = list(Actions(studio, tmp_path).styles("other", 1, False, None, None, "a cat", "", 0, 1, 3))[-1]
    assert said.startswith('<p class="problem">') and "nobody expected" not in said


def test_inside_there_is_a_residual_for_each_skip_connection_and_the_mid_block(studio, net):
    heard = Residuals()
    studio.draw(QUICK, Steering(net, CIRCLE), listen=heard.listening)
    assert heard.timesteps == sorted(heard.timesteps, reverse=True) and len(heard.timesteps) == 2
    assert len(heard.names) == 7 and heard.names[0] == "1: 64 x 8 x 8" and heard.names[-1] == "mid block: 256 x 2 x 2"
    assert np.array(heard.sizes).shape == (2, 7) and not np.any(heard.sizes), "zero convolutions give nothing"
    view = last(jobs.look_inside(studio, QUICK, Steering(net, CIRCLE)))
    assert [tile.name for tile in view.tiles] == ["sizes", "maps"] and "7 residuals in 2 steps" in view.said
    silent = last(jobs.look_inside(studio, replace(QUICK, scale=0.0), Steering(net, CIRCLE)))
    assert "not heard" in silent.said and not silent.tiles


@pytest.fixture(scope="module")
def like_stable_diffusion(tmp_path_factory):
    """A base with Stable Diffusion 1's blocks and 4 latent channels, thin and random, in the embedded base's frame."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(BASE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "icons", "unet", "vae"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        UNet2DConditionModel(
            sample_size=8, block_out_channels=(32, 32, 32, 32), norm_num_groups=8, cross_attention_dim=192,
            attention_head_dim=2,
        ).save_pretrained(folder / "unet")  # fmt: skip
        kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
        AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=8, **kinds).save_pretrained(folder / "vae")
    return folder


def test_with_stable_diffusions_blocks_there_are_13_residuals(like_stable_diffusion, tmp_path):
    studio = Studio(str(like_stable_diffusion), torch.device("cpu"))
    assert studio.resolution == 64
    with torch.random.fork_rng():
        net = ControlNetModel.from_unet(
            OurUNet.from_pretrained(str(like_stable_diffusion), subfolder="unet"), (4, 8, 8, 8)
        )
        net.save_pretrained(str(tmp_path / "mine" / "controlnet"))
    (found_net,) = Actions(studio, tmp_path).controlnets()[0]
    heard = Residuals()
    drawn = studio.draw(replace(QUICK, steps=1), Steering(found_net, CIRCLE), listen=heard.listening)
    assert drawn.image.size == (64, 64) and len(heard.names) == 13 and heard.names[-1] == "mid block: 32 x 1 x 1"


def test_sizes_are_root_mean_squares_of_the_prompts_half():
    heard = Residuals()
    one, mid = torch.zeros(2, 3, 4, 4), torch.full((2, 5, 2, 2), -2.0)
    one[1, :, 1, 2] = 4.0
    heard.add(torch.tensor(999), [one, mid])
    assert heard.sizes == [[1.0, 2.0]] and heard.maps[0][0][1, 2] == 4.0 and heard.maps[0][0].sum() == 4.0
    assert MAPS >= 2


def test_whoever_stops_looking_stops_the_drawing(studio, net, monkeypatch):
    steps = []
    scheduler = studio.plain.scheduler
    step = scheduler.step
    monkeypatch.setattr(scheduler, "step", lambda *inputs, **more: steps.append(1) or step(*inputs, **more))
    views = jobs.pair(studio, replace(QUICK, steps=MOST_STEPS), CIRCLE, net)
    next(views)
    next(views)  # of the first preview
    views.close()
    with studio.lock:  # free at the next preview
        assert 0 < len(steps) < MOST_STEPS
    monkeypatch.undo()
    assert (pixels(studio.draw(QUICK).image) == pixels(studio.draw(QUICK).image)).all()


# ---------------------------------------------------------------------------------------------------------------------
# What is served


def ask(path, method="GET", headers=(), sent=b""):
    """Status and headers of the guard's answer, and whether the application behind it was asked."""
    asked, messages = [], []

    async def behind(scope, receive, send):
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page"})

    async def receive():
        return {"type": "http.request", "body": sent}

    async def send(message):
        messages.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": list(headers)}
    asyncio.run(Guard(behind)(scope, receive, send))
    return messages[0]["status"], dict(messages[0]["headers"]), bool(asked)


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://example.org", "/file=/etc/passwd",
     "/assets/../page/app.py", "/gradio_api/deep_link", "/monitoring", "/gradio_api/vibe-code"],
)  # fmt: skip
def test_routes_that_the_page_does_not_need_are_not_there(path):
    for method, length in (("GET", b"0"), ("POST", b"10")):
        status, _, asked = ask(path, method, [(b"content-length", length)])
        assert status == 404 and not asked


def test_too_much_is_not_read_and_nothing_is_fetched_from_elsewhere():
    join = "/gradio_api/queue/join"
    assert ask(join, "POST", [(b"content-length", str(MOST_BYTES + 1).encode())])[::2] == (413, False)
    assert ask(join, "POST")[::2] == (411, False) and ask("/", "PUT")[::2] == (405, False)
    assert ask(join, "POST", [(b"content-length", b"100")])[::2] == (200, True)
    status, headers, _ = ask("/")
    assert status == 200 and b"default-src 'self'" in headers[b"content-security-policy"]
    assert b"http" not in headers[b"content-security-policy"]


def test_help_and_wrong_flags_are_answered_before_pytorch_is_imported():
    script = (
        "import sys; from page import __main__ as program\n"
        "try: program.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    for flags, words in ((["--help"], "--dry_run"), (["--port", "0"], "from 1 to 65535")):
        run = subprocess.run(
            [sys.executable, "-c", script, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert words in run.stdout + run.stderr and "Error" not in run.stderr.replace("error:", "")


def start(monkeypatch, *flags):
    monkeypatch.setattr("sys.argv", ["page", "--base", BASE, *map(str, flags)])
    program.main()


def test_a_dry_run_says_what_was_found_and_where_the_page_would_be(runs, monkeypatch, capsys):
    start(monkeypatch, "--runs", runs, "--port", "7899", "--dry_run")
    said = capsys.readouterr().out
    for words in (
        "tiny_sd",
        "Device: ",
        "Precision: ",
        ": fresh",
        ": style",
        "http://127.0.0.1:7899",
        "Nothing was started",
    ):
        assert words in said
    assert "Not filled in" not in said


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_address_of_ipv6_is_one_that_a_browser_takes(host, runs, monkeypatch, capsys):
    monkeypatch.setattr(program, "require_port", lambda host, port: asked.append(host))  # not every machine has it
    asked: list[str] = []
    start(monkeypatch, "--runs", runs, "--host", host, "--port", "7899", "--dry_run")
    said = capsys.readouterr().out
    assert "would be at http://[::1]:7899." in said and asked == ["::1"] and "Whoever can reach" not in said


def test_the_page_is_asked_past_a_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv("NO_PROXY", "")
    program.past_proxies("192.0.2.7", "localhost")
    assert os.environ["no_proxy"] == "example.org,192.0.2.7,localhost" and "192.0.2.7" in os.environ["NO_PROXY"]
    assert urllib.request.proxy_bypass_environment("192.0.2.7:7860")


def test_without_gradio_or_with_a_port_that_is_taken_it_says_what_to_do(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match="give another --port"):
            start(monkeypatch, "--runs", runs, "--port", port)
    with pytest.raises(SystemExit, match="make page"):
        start(monkeypatch, "--runs", tmp_path, "--port", port)
    assert "`make demo` trains one" in capsys.readouterr().out

"""Task 2: LoRAs that load everywhere, trainings that survive a kill, data that say what is wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import is_torch_version
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel

from drawing import generate, load_pipeline
from finetune.model.sampler import sampling_scheduler
from lora.files import load_lora
from lora.model import KOHYA_FILE, WEIGHTS_FILE, LoraDenoiser, load_state, save_lora, save_state
from made_loras import draw, random_lora
from pictures import CaptionedImages, Joined, SubjectImages, Variants
from processes import BASE, Program, assert_same, losses, wait_for
from small_bases import small_base

pytestmark = pytest.mark.usefixtures("one_thread")  # as the forked processes
SMALL = [
    "--resolution", "64", "--train_batch_size", "2",
    "--gradient_accumulation_steps", "2", "--learning_rate", "1e-3", "--lr_scheduler", "cosine", "--rank", "2",
]  # fmt: skip


def parts_of_base() -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """UNet and text encoder of the embedded base, in float32."""
    unet = UNet2DConditionModel.from_pretrained(BASE, subfolder="unet", torch_dtype=torch.float32)
    return unet, CLIPTextModel.from_pretrained(BASE, subfolder="text_encoder", torch_dtype=torch.float32)


def picture(seed: int, size: tuple[int, int] = (80, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8))


@pytest.fixture(scope="module")
def style_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("style")
    lines = []
    for i, name in enumerate(("b.png", "a.png", "c.png")):
        picture(i).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"picture {name}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def subject_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("subject")
    for i in range(2):
        picture(10 + i).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# The model and its files


def test_an_untrained_lora_changes_nothing():
    plain = UNet2DConditionModel.from_pretrained(BASE, subfolder="unet", torch_dtype=torch.float32)
    denoiser = LoraDenoiser(UNet2DConditionModel.from_pretrained(BASE, subfolder="unet"), None, 4, 4)
    latents, text = torch.randn(1, 16, 8, 8), torch.randn(1, 32, 192)
    timesteps = torch.tensor([500])
    with torch.no_grad():
        assert torch.equal(denoiser(latents, timesteps, text), plain(latents, timesteps, text).sample)
    names = [name for name, parameter in denoiser.named_parameters() if parameter.requires_grad]
    assert names and all(".lora_" in name for name in names)


def test_a_lora_that_is_switched_off_is_the_base_and_is_there_again_afterwards():
    untrained, lora = (LoraDenoiser(*parts_of_base(), 3, 2) for _ in range(2))
    for parameter in lora.trainable_parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape)
    trainable = [name for name, parameter in lora.named_parameters() if parameter.requires_grad]
    inputs = torch.randn(1, 16, 8, 8), torch.tensor([500]), torch.arange(32)[None]
    with torch.no_grad():
        base, was = untrained(*inputs), lora(*inputs)
        with lora.switched_off():
            assert torch.equal(lora(*inputs), base) and not torch.equal(was, base)
        assert torch.equal(lora(*inputs), was)
    assert trainable == [name for name, parameter in lora.named_parameters() if parameter.requires_grad]


def test_a_half_precision_base_gets_a_float32_lora():
    unet = UNet2DConditionModel.from_pretrained(BASE, subfolder="unet", torch_dtype=torch.float16)
    denoiser = LoraDenoiser(unet, None, 4, 4)
    assert {p.dtype for p in denoiser.trainable_parameters()} == {torch.float32}
    assert denoiser.unet.conv_in.weight.dtype == torch.float16


def test_saving_warns_of_nothing(tmp_path, recwarn):
    save_lora(random_lora(), tmp_path, kohya=True)
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("with_text_encoder, layers", [(False, "attention"), (True, "attention"), (True, "all")])
def test_the_file_loads_in_diffusers_and_draws_the_same(tmp_path, with_text_encoder, layers):
    denoiser = random_lora(with_text_encoder=with_text_encoder, layers=layers)
    save_lora(denoiser, tmp_path, kohya=True)
    pipeline = load_pipeline(BASE)
    parts = {"unet": denoiser.unet, **({"text_encoder": denoiser.text_encoder} if with_text_encoder else {})}
    trained = StableDiffusionPipeline(**{**pipeline.components, **parts, "requires_safety_checker": False})
    base, expected = draw(pipeline), draw(trained)
    for file in (WEIGHTS_FILE, KOHYA_FILE):
        pipeline.load_lora_weights(str(tmp_path), weight_name=file)
        loaded = draw(pipeline)
        assert np.abs(loaded - expected).max() < 1e-4
        assert np.abs(loaded - base).max() > 0.05
        pipeline.unload_lora_weights()
    assert np.array_equal(draw(pipeline), base)


def test_scale_zero_is_the_base_and_a_fused_lora_is_the_lora(tmp_path):
    save_lora(random_lora(), tmp_path, kohya=False)
    pipeline = load_pipeline(BASE)
    base = draw(pipeline)
    pipeline.load_lora_weights(str(tmp_path), weight_name=WEIGHTS_FILE)
    assert np.array_equal(draw(pipeline, cross_attention_kwargs={"scale": 0.0}), base)
    with_lora = draw(pipeline)
    pipeline.fuse_lora()
    assert np.abs(draw(pipeline) - with_lora).max() < 1e-3


def test_several_at_once(tmp_path):
    save_lora(random_lora(), tmp_path / "one", kohya=False)
    save_lora(random_lora(rank=5), tmp_path / "two", kohya=False)
    pipeline = load_pipeline(BASE)
    base = draw(pipeline)
    pictures = []
    for name in ("one", "two"):
        pipeline.load_lora_weights(str(tmp_path / name), weight_name=WEIGHTS_FILE, adapter_name=name)
    for names, scales in (
        (["one"], [1.0]),
        (["two"], [1.0]),
        (["one", "two"], [1.0, 1.0]),
        (["one", "two"], [0.0, 0.0]),
    ):
        pipeline.set_adapters(names, scales)
        pictures.append(draw(pipeline))
    assert np.array_equal(pictures[3], base)
    assert all(np.abs(pictures[i] - pictures[j]).max() > 0.01 for i in range(3) for j in range(i))


def test_kohya_file_has_the_names_and_values_that_others_read(tmp_path):
    save_lora(random_lora(), tmp_path, kohya=True)
    kohya = load_file(tmp_path / KOHYA_FILE)
    first = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert {f"{first}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")} <= kohya.keys()
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in kohya
    assert {name.split("_")[1] for name in kohya} == {"unet", "te"}
    assert {float(tensor) for name, tensor in kohya.items() if name.endswith("alpha")} == {3.0}
    for file in (WEIGHTS_FILE, KOHYA_FILE):
        assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / file).values())
    ours = sorted(load_file(tmp_path / WEIGHTS_FILE).values(), key=lambda t: (t.shape, t.flatten()[0].item()))
    theirs = [tensor for name, tensor in kohya.items() if not name.endswith("alpha")]
    theirs = sorted(theirs, key=lambda t: (t.shape, t.flatten()[0].item()))
    assert len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_text_encoder_names_are_those_that_every_release_reads(tmp_path):
    save_lora(random_lora(), tmp_path, kohya=False)
    names = [name for name in load_file(tmp_path / WEIGHTS_FILE) if name.startswith("text_encoder.")]
    assert names and all(name.startswith("text_encoder.text_model.encoder.layers.") for name in names)


def test_the_state_is_kept_to_the_bit_and_another_rank_is_refused(tmp_path):
    denoiser, other = random_lora(alpha=0.7), random_lora(alpha=0.7)
    for parameter in other.trainable_parameters():
        parameter.data.zero_()
    save_state(denoiser, denoiser.state_dict(), tmp_path)
    load_state(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(denoiser.trainable_parameters(), other.trainable_parameters()))
    with pytest.raises(ValueError, match="--rank"):
        load_state(random_lora(rank=2), tmp_path)
    with pytest.raises(ValueError, match="--lora_layers"):
        load_state(random_lora(layers="all"), tmp_path)


def test_a_style_lora_and_a_controlnet_work_together(tmp_path):
    from diffusion.controlnet import ControlNetModel
    from diffusion.loading import load_pipeline as load_controlnet_pipeline
    from diffusion.unets.unet_2d_condition import UNet2DConditionModel as OurUNet

    torch.manual_seed(1)
    unet = OurUNet.from_pretrained(BASE, subfolder="unet", torch_dtype=torch.float32)
    controlnet = ControlNetModel.from_unet(unet, [8, 8, 8, 8])
    for zero_convolution in controlnet.controlnet_down_blocks:
        torch.nn.init.normal_(zero_convolution.weight, std=0.1)
    pipeline = load_controlnet_pipeline(BASE, controlnet)
    condition = picture(0, (64, 64))
    both = {"image": condition, "controlnet_conditioning_scale": 1.0}
    without = draw(pipeline, **both)
    save_lora(random_lora(), tmp_path, kohya=False)
    pipeline.load_lora_weights(str(tmp_path), weight_name=WEIGHTS_FILE)
    with_lora = draw(pipeline, **both)
    assert np.abs(with_lora - without).max() > 0.01
    assert np.abs(draw(pipeline, image=condition, controlnet_conditioning_scale=0.0) - with_lora).max() > 0.01
    pipeline.unload_lora_weights()
    load_lora(pipeline, tmp_path)
    assert np.abs(draw(pipeline, **both) - with_lora).max() < 1e-4
    pipeline.unload_lora_weights()
    assert np.array_equal(draw(pipeline, **both), without)


def test_a_picture_does_not_depend_on_what_it_is_drawn_with():
    pipeline = load_pipeline(BASE)
    prompts = ["gold circle", "navy circle with snow background"]
    together = generate(pipeline, prompts, [3, 4], num_inference_steps=2)
    alone = generate(pipeline, prompts[1:], [4], num_inference_steps=2)
    difference = np.abs(np.asarray(together[1], int) - np.asarray(alone[0], int))
    assert difference.max() <= 1
    assert together[0].size == (128, 128)


def test_guidance_may_compare_with_the_bases_own_guess_for_the_empty_prompt(tmp_path):
    base, pipeline = load_pipeline(BASE), load_pipeline(BASE)
    load_lora(pipeline, save_lora(random_lora(), tmp_path, kohya=False))  # also on the text encoder
    whole = generate(pipeline, ["a cat"], [0], 3.0, 2)
    drawn = generate(pipeline, ["a cat"] * 2, [0, 1], 3.0, 2, unconditional="base")
    scheduler = sampling_scheduler(base.scheduler.config)
    scheduler.set_timesteps(2)
    latents = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (nothing, _), (text, _) = (
            base.encode_prompt("", "cpu", 1, False),
            pipeline.encode_prompt("a cat", "cpu", 1, False),
        )
        for timestep in scheduler.timesteps:
            without = base.unet(latents, timestep, encoder_hidden_states=nothing).sample
            with_lora = pipeline.unet(latents, timestep, encoder_hidden_states=text).sample
            latents = scheduler.step(without + 3 * (with_lora - without), timestep, latents).prev_sample
        pixels = base.vae.decode(latents / base.vae.config.scaling_factor).sample / 2 + 0.5
    by_hand = pixels.clamp(0, 1).mul(255).round().squeeze(0).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(np.asarray(drawn[0], int) - by_hand).max() <= 1
    assert np.abs(np.asarray(whole[0], int) - by_hand).max() > 10
    # And the pipeline is as it was.
    assert np.array_equal(generate(pipeline, ["a cat"], [0], 3.0, 2)[0], whole[0])
    assert np.array_equal(generate(pipeline, ["a cat"], [0], 1.0, 2, unconditional="base")[0],
                          generate(pipeline, ["a cat"], [0], 1.0, 2)[0])  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The data


def test_captioned_images_go_with_their_captions(style_folder):
    data = CaptionedImages(None, str(style_folder), "image", "text")
    found = {data[i]["text"]: np.asarray(data[i]["image"]) for i in range(len(data))}
    for i, name in enumerate(("b.png", "a.png", "c.png")):
        assert np.array_equal(found[f"picture {name}"], np.asarray(picture(i)))
    assert len(CaptionedImages(None, str(style_folder), "image", "text", max_samples=2)) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((None, "{folder}", "image", "caption"), "no column 'caption'.*--caption_column"),
        ((None, "{folder}", "picture", "text"), "no column 'picture'.*--image_column"),
        ((None, "{folder}/nowhere", "image", "text"), "no folder.*metadata.jsonl"),
        ((None, None, "image", "text"), "either --dataset_name or --train_data_dir"),
    ],
)
def test_wrong_flags_say_what_is_right(style_folder, arguments, message):
    arguments = [None if a is None else a.format(folder=style_folder) for a in arguments]
    with pytest.raises(ValueError, match=message):
        CaptionedImages(*arguments)


def test_a_folder_without_captions_says_what_must_be_in_it(tmp_path):
    with pytest.raises(ValueError, match="no pictures in"):
        SubjectImages(tmp_path, "a sks cat")
    for name in (None, "a.png", "b.png"):
        if name is not None:
            picture(0).save(tmp_path / name)
        with pytest.raises(FileNotFoundError, match="holds none of.*must hold pictures.*metadata.jsonl"):
            CaptionedImages(None, str(tmp_path), "image", "text")


def test_a_caption_that_is_no_text_is_named(tmp_path):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": 7}')
    with pytest.raises(ValueError, match="must be text, not int: 7"):
        CaptionedImages(None, str(tmp_path), "image", "text")


def test_a_broken_picture_is_named(tmp_path):
    picture(0).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    lines = [json.dumps({"file_name": name, "text": "x"}) for name in ("good.png", "bad.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    data = CaptionedImages(None, str(tmp_path), "image", "text")
    with pytest.raises(OSError, match="bad.png is damaged"):
        [data[i] for i in range(len(data))]


def test_stray_and_unreadable_files_are_named_and_skipped(tmp_path):
    for name in ("2.png", "10.png", "1.jpg"):
        picture(0).save(tmp_path / name)
    (tmp_path / "half.png").write_bytes((tmp_path / "2.png").read_bytes()[:100])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    picture(0).save(tmp_path / "folder" / "3.png")
    data = SubjectImages(tmp_path, "a sks cat")
    assert data.names == ["1.jpg", "10.png", "2.png"]
    assert [problem.split()[0] for problem in data.skipped] == ["half.png", "notes.txt", "1"]
    assert data.skipped[-1] == "1 pictures in folders below that are not listed for training: folder/3.png"
    assert data[0]["text"] == "a sks cat"


def test_a_subject_may_have_captions_that_say_where_it_is(tmp_path):
    for name in ("a.png", "b.png"):
        picture(ord(name[0])).save(tmp_path / name)
    plain = SubjectImages(tmp_path, "a sks cat", with_captions=True)
    assert [plain[i]["text"] for i in range(len(plain))] == ["a sks cat"] * 2
    file = tmp_path / "metadata.jsonl"
    file.write_text('{"file_name": "b.png", "text": "a sks cat in snow"}\n\n')
    data = SubjectImages(tmp_path, "a sks cat", with_captions=True)
    plain_ones = [("a.png", "a sks cat"), ("b.png", "a sks cat")]
    # More often than without it, or the snow would come along where nobody asks for it.
    assert list(zip(data.names, data.prompts)) == plain_ones + [("b.png", "a sks cat in snow")] * 2
    assert not data.skipped and data.fingerprint != plain.fingerprint
    assert len(SubjectImages(tmp_path, "a sks cat")) == 2
    for wrong in (
        '{"file_name": "b.png"}',
        "snow",
        '{"file_name": "c.png", "text": "x"}',
        '{"file_name": "b.png", "text": 7}',
    ):
        file.write_text(wrong)
        with pytest.raises((ValueError, FileNotFoundError), match="metadata.jsonl, line 1"):
            SubjectImages(tmp_path, "a sks cat", with_captions=True)


def test_variants_are_cuts_and_mirror_images_that_never_change(style_folder):
    data = CaptionedImages(None, str(style_folder), "image", "text")
    flips = Variants(data, random_flip=True, random_crop=False)
    assert len(flips) == 6
    for i in range(3):
        assert np.array_equal(np.asarray(flips[i]["image"]), np.asarray(flips[3 + i]["image"])[:, ::-1])
        assert flips[i]["text"] == flips[3 + i]["text"]
    cuts = Variants(data, random_flip=False, random_crop=True, crops=4)
    assert len(cuts) == 12
    assert {cuts[i]["image"].size for i in range(12)} == {(64, 64)}
    assert len({cuts[i]["image"].tobytes() for i in range(12)}) > 6
    assert all(cuts[i]["image"].tobytes() == cuts[i]["image"].tobytes() for i in range(12))
    assert len({v.fingerprint for v in (flips, cuts, Variants(data, False, False))}) == 3


def test_joined_data_follow_each_other(subject_folder):
    one, two = SubjectImages(subject_folder, "a sks cat"), SubjectImages(subject_folder, "a cat")
    joined = Joined([one, two])
    assert [joined[i]["text"] for i in range(len(joined))] == ["a sks cat"] * 2 + ["a cat"] * 2


# ---------------------------------------------------------------------------------------------------------------------
# The trainings


@pytest.fixture(scope="module")
def lora(style_folder) -> Program:
    flags = [*SMALL, "--train_data_dir", str(style_folder), "--random_flip"]
    return Program("task_2_lora", "train_lora.py", flags, small_base)


@pytest.fixture(scope="module")
def straight(lora, tmp_path_factory) -> Path:
    """A run of 12 steps, with the text encoder, that nothing interrupted."""
    output_dir = tmp_path_factory.mktemp("straight")
    flags = ("--train_text_encoder", "--also_save", "kohya", "--alpha", "1.3")
    lora.train(output_dir, *flags, "--max_train_steps", "12", "--checkpointing_steps", "6")
    return output_dir


def test_a_killed_lora_training_gives_the_same_weights(lora, straight, tmp_path):
    flags = ("--train_text_encoder", "--alpha", "1.3", "--max_train_steps", "12", "--checkpointing_steps", "1")
    process = lora.start(tmp_path, *flags)
    wait_for(tmp_path / "checkpoint-3", process)
    process.kill()
    process.wait()
    assert "Resuming from" in lora.train(tmp_path, *flags, "--resume_from_checkpoint", "latest").stdout
    weights = load_file(tmp_path / WEIGHTS_FILE)
    assert_same(weights, load_file(straight / WEIGHTS_FILE))
    assert {name.split(".")[0] for name in weights} == {"unet", "text_encoder"}
    assert all(tensor.any() for name, tensor in weights.items() if ".lora_B." in name)
    assert (straight / KOHYA_FILE).is_file() and not (tmp_path / KOHYA_FILE).exists()


def test_cached_and_uncached_lora_training_are_the_same(lora, tmp_path):
    flags = ("--max_train_steps", "6", "--proportion_empty_prompts", "0.3", "--noise_offset", "0.1")
    lora.train_here(tmp_path / "cached", *flags)
    lora.train_here(tmp_path / "uncached", *flags, "--no_cache")
    assert losses(tmp_path / "uncached") == pytest.approx(losses(tmp_path / "cached"), rel=1e-4)


def base_with_one_attention(folder: Path) -> str:
    """The small base, but for a UNet with one Transformer block in place of four: each takes seconds to compile."""
    shutil.copytree(small_base(), folder)
    config = UNet2DConditionModel.load_config(folder, subfolder="unet")
    config.update(mid_block_type=None, up_block_types=("UpBlock2D",))
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return str(folder)


@pytest.mark.skipif(not is_torch_version(">=", "2.4"), reason="older releases compile too little of the model")
def test_compiled_training_loses_the_same(lora, tmp_path, monkeypatch):
    """Both graphs are taken, forward and backward; kernels of them, a minute's work, are PyTorch's own matter."""
    base = base_with_one_attention(tmp_path / "base")
    lora = Program("task_2_lora", lora.script, lora.flags, lambda: base)
    compile_with, compiled = torch.compile, []

    def without_kernels(function):
        compiled.append(function)
        return compile_with(function, backend="aot_eager_default_partitioner")

    monkeypatch.setattr(torch, "compile", without_kernels)
    flags = ("--max_train_steps", "4", "--checkpointing_steps", "1")
    output = lora.train_here(tmp_path / "compiled", *flags, "--compile")
    assert "Compiling: the first step takes" in output and len(compiled) == 1
    lora.train_here(tmp_path / "plain", *flags)
    assert len(losses(tmp_path / "plain")) == 4
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_clipping_clips(lora, tmp_path):
    """AdamW's steps do not shrink with the gradients until these are far below its epsilon."""
    flags = ("--max_train_steps", "2", "--lr_scheduler", "constant")
    largest = {}
    for norm in ("1.0", "1e-14"):
        lora.train_here(tmp_path / norm, *flags, "--max_grad_norm", norm)
        weights = load_file(tmp_path / norm / WEIGHTS_FILE)
        largest[norm] = max(tensor.abs().max().item() for name, tensor in weights.items() if ".lora_B." in name)
    assert largest["1.0"] > 1e-4 and largest["1e-14"] < 1e-6


def test_pictures_during_training_change_nothing(lora, tmp_path):
    flags = ("--max_train_steps", "4", "--validation_epochs", "1", "--num_validation_images", "2")
    lora.train_here(tmp_path / "without", *flags)
    lora.train_here(tmp_path / "with", *flags, "--validation_prompt", "gold circle")
    assert_same(load_file(tmp_path / "with" / WEIGHTS_FILE), load_file(tmp_path / "without" / WEIGHTS_FILE))
    pictures = sorted((tmp_path / "with" / "validation").iterdir())
    assert [path.name for path in pictures] == ["step-000002.png", "step-000004.png"]
    assert Image.open(pictures[0]).size == (132, 64)


def test_dreambooth_draws_the_missing_class_images_and_resumes(subject_folder, tmp_path):
    classes = tmp_path / "class"
    program = Program("task_2_lora", "train_dreambooth_lora.py", [
        *SMALL, "--instance_data_dir", str(subject_folder), "--instance_prompt", "a sks circle",
        "--with_prior_preservation", "--class_data_dir", str(classes), "--class_prompt", "a circle",
        "--num_class_images", "3",
    ], small_base)  # fmt: skip
    output = program.train(tmp_path / "a", "--max_train_steps", "9").stdout
    assert "Skipped: notes.txt" in output
    assert sorted(path.name for path in classes.glob("class-*")) == [f"class-{i:04d}.png" for i in range(3)]
    before = {path.name: path.read_bytes() for path in classes.iterdir()}

    process = program.start(tmp_path / "b", "--max_train_steps", "9", "--checkpointing_steps", "1")
    wait_for(tmp_path / "b" / "checkpoint-2", process)
    process.kill()
    process.wait()
    program.train(tmp_path / "b", "--max_train_steps", "9", "--resume_from_checkpoint", "latest")
    assert_same(load_file(tmp_path / "b" / WEIGHTS_FILE), load_file(tmp_path / "a" / WEIGHTS_FILE))
    assert {path.name: path.read_bytes() for path in classes.iterdir()} == before

    missing = classes / "class-0001.png"
    was = np.asarray(Image.open(missing), int)
    missing.unlink()
    program.train_here(tmp_path / "c", "--max_train_steps", "1")
    assert np.abs(np.asarray(Image.open(missing), int) - was).max() <= 1  # drawn alone, it may be rounded otherwise
    assert all((classes / name).read_bytes() == before[name] for name in before if name != missing.name)


def test_the_prior_counts_as_much_as_it_is_told(subject_folder, tmp_path):
    """With the class's pictures and prompts those of the subject, weight w makes the loss (1 + w) times as large."""
    program = Program("task_2_lora", "train_dreambooth_lora.py", [
        *SMALL, "--instance_data_dir", str(subject_folder), "--instance_prompt", "a circle",
        "--with_prior_preservation", "--class_data_dir", str(subject_folder), "--class_prompt", "a circle",
        "--num_class_images", "2", "--max_train_steps", "1", "--gradient_accumulation_steps", "1",
    ], small_base)  # fmt: skip
    for weight in ("0", "1", "3"):
        program.train_here(tmp_path / weight, "--prior_loss_weight", weight)
    none, one, three = (losses(tmp_path / weight)[0] for weight in ("0", "1", "3"))
    assert three - none == pytest.approx(3 * (one - none), rel=1e-3)
    assert one > none > 0


def test_the_prior_may_keep_what_the_base_predicts(subject_folder, tmp_path):
    """That is what an untrained LoRA predicts: the class counts nothing at first, and from the second step on."""
    program = Program("task_2_lora", "train_dreambooth_lora.py", [
        *SMALL, "--instance_data_dir", str(subject_folder), "--instance_prompt", "a sks circle", "--train_text_encoder",
        "--with_prior_preservation", "--class_data_dir", str(subject_folder), "--class_prompt", "a circle",
        "--num_class_images", "2", "--gradient_accumulation_steps", "1", "--prior_target", "base",
    ], small_base)  # fmt: skip
    found = {}
    for steps in ("1", "2"):
        for weight in ("0", "3"):
            program.train_here(tmp_path / steps / weight, "--prior_loss_weight", weight, "--max_train_steps", steps)
            found[steps, weight] = losses(tmp_path / steps / weight)[0]
    assert found["1", "3"] == pytest.approx(found["1", "0"], rel=1e-6)
    assert found["2", "3"] > found["2", "0"] * (1 + 1e-6)


def test_beside_a_subject_only_the_class_loses_its_prompt(subject_folder, tmp_path):
    """Else the empty prompt, with which guidance compares, would learn what the subject looks like."""
    program = Program("task_2_lora", "train_dreambooth_lora.py", [
        *SMALL, "--instance_data_dir", str(subject_folder), "--with_prior_preservation",
        "--class_data_dir", str(subject_folder), "--num_class_images", "2", "--max_train_steps", "1",
        "--proportion_empty_prompts", "1",
    ], small_base)  # fmt: skip
    found = {}
    for subject, its_class in (("a sks circle", "a circle"), ("a sks circle", "a square"), ("a house", "a circle")):
        folder = tmp_path / f"{subject} of {its_class}"
        program.train_here(folder, "--instance_prompt", subject, "--class_prompt", its_class)
        found[subject, its_class] = losses(folder)
    assert found["a sks circle", "a square"] == found["a sks circle", "a circle"]
    assert found["a house", "a circle"] != found["a sks circle", "a circle"]

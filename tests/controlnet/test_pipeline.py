"""Our pipeline draws what diffusers' draws, to the bit, and refuses what it cannot draw."""

from __future__ import annotations

import copy
import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from test_models import CONDITIONING, SD1_LIKE, randomise
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusion.controlnet import ControlNetModel
from diffusion.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusion.unets.unet_2d_condition import UNet2DConditionModel

# Named, as the course's diffusers does not look for it where HF_HUB_OFFLINE is set.
WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
SIZE = 64
# Two levels and one layer: what a pipeline does does not depend on more, which test_models.py has.
UNET = {
    **SD1_LIKE,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
}
TOKENS = 12
pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_tokenizer(folder):
    """One token for each letter."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = "abcdefghijklmnopqrstuvwxyz,"
    tokens = [*letters, *(letter + "</w>" for letter in letters), start, end]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Stable Diffusion with a ControlNet, all weights random, as our pipeline saves it."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    width = UNET["cross_attention_dim"]
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(**UNET)
    randomise(unet)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CONDITIONING)
    randomise(controlnet)
    pipeline = StableDiffusionControlNetPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(4, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=unet,
        controlnet=controlnet,
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
            set_alpha_to_one=False,
        ),
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipelines(folder):
    """Ours and diffusers', loaded from the same folder."""
    loaded = [
        pipeline.from_pretrained(folder)
        for pipeline in (StableDiffusionControlNetPipeline, diffusers.StableDiffusionControlNetPipeline)
    ]
    for pipeline in loaded:
        pipeline.set_progress_bar_config(disable=True)
    return loaded


def with_components(pipeline, **components):
    """The same pipeline with some of its components replaced; the other components are shared."""
    changed = type(pipeline)(**{**pipeline.components, **components}, requires_safety_checker=False)
    changed.set_progress_bar_config(disable=True)
    return changed


def pixels(height: int = SIZE, width: int = SIZE, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)


def picture(*args, **kwargs) -> Image.Image:
    return Image.fromarray((255 * pixels(*args, **kwargs)).round().astype(np.uint8))


def tensor(*args, **kwargs) -> torch.Tensor:
    return torch.from_numpy(pixels(*args, **kwargs)).permute(2, 0, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipeline, **kwargs):
    """The images, (images, height, width, 3); `generator` is a function that makes a fresh one for each call."""
    arguments = {"prompt": "red disc", "image": picture(), "num_inference_steps": 3, "output_type": "np", **kwargs}
    arguments["generator"] = arguments.get("generator", seeded)()
    return pipeline(**arguments).images


def two_generators() -> list[torch.Generator]:
    return [seeded(1), seeded(2)]


def equal_images(pipelines, **kwargs) -> np.ndarray:
    """Asserts that both draw the same, and that it is no constant; returns it."""
    ours, theirs = (draw(pipeline, **kwargs) for pipeline in pipelines)
    assert ours.std() > 0.01
    assert ours.shape == theirs.shape and np.array_equal(ours, theirs)
    return ours


def halve_latents(pipeline, step, timestep, tensors):
    return {"latents": tensors["latents"] / 2}


def end_guidance(pipeline, step, timestep, tensors):
    """As diffusers' own callbacks do it."""
    if step == 1:
        pipeline._guidance_scale = 0.0
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
    return tensors


OPTIONS = {
    "negative_prompt": {"negative_prompt": "blue"},
    "conditioning_scale": {"controlnet_conditioning_scale": 0.4},
    "guess_mode": {"guess_mode": True},
    "guess_mode_unguided": {"guess_mode": True, "guidance_scale": 1.0},
    "guess_mode_for_part": {"guess_mode": True, "control_guidance_start": 0.3, "controlnet_conditioning_scale": 0.8},
    "control_start": {"control_guidance_start": 0.3},
    "control_end": {"control_guidance_end": 0.7},
    "control_between": {"control_guidance_start": [0.2], "control_guidance_end": 0.8},
    "guidance_scale": {"guidance_scale": 3.0},
    "unguided": {"guidance_scale": 1.0},
    "images_per_prompt": {"prompt": ["red disc", "blue"], "num_images_per_prompt": 2},
    "image_for_each_prompt": {
        "prompt": ["red disc", "blue"],
        "image": [picture(), picture(seed=6)],
        "num_images_per_prompt": 2,
        "negative_prompt": ["green", "grey"],
    },
    "generator_list": {"generator": two_generators, "num_images_per_prompt": 2},
    "callback_changes_latents": {"callback_on_step_end": halve_latents},
    "callback_ends_guidance": {
        "guess_mode": True,
        "callback_on_step_end": end_guidance,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds", "negative_prompt_embeds"],
    },
    "steps": {"num_inference_steps": 5},
    "size": {"height": 48, "width": 80},
    "odd_condition": {"image": picture(71, 90)},
    "odd_size": {"image": picture(40, 56)},
    "array": {"image": pixels(71, 90)[None], "height": 64},
    "array_batch": {"prompt": ["red disc", "blue"], "image": np.stack([pixels(), pixels(seed=6)])},
    "tensor": {"image": tensor(71, 90)[None], "width": 64},
    "tensor_list": {"prompt": ["red disc", "blue"], "image": [tensor(71, 90), tensor(71, 90, seed=6)]},
    "grey_picture": {"image": picture().convert("L")},
    "latents": {"latents": torch.randn(1, 4, 8, 8, generator=seeded(3))},
    "prompt_embeds": {
        "prompt": None,
        "prompt_embeds": torch.randn(1, TOKENS, 24, generator=seeded(3)),
        "negative_prompt_embeds": torch.randn(1, TOKENS, 24, generator=seeded(4)),
    },
}


@pytest.fixture(scope="module")
def plain_image(pipelines):
    return equal_images(pipelines)


@pytest.mark.parametrize("option", OPTIONS)
def test_pixels_equal_diffusers(pipelines, plain_image, option):
    images = equal_images(pipelines, **OPTIONS[option])
    assert not np.array_equal(images[:1], plain_image), "the option has no effect, so the comparison shows nothing"


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("PNDMScheduler", {}),
        ("DDIMScheduler", {"eta": 0.5}),
        ("DPMSolverMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"guess_mode": True}),
        ("HeunDiscreteScheduler", {"control_guidance_end": 0.6}),
    ],
)
def test_pixels_equal_diffusers_with_any_scheduler(pipelines, name, arguments):
    scheduler = getattr(diffusers, name)
    changed = [with_components(p, scheduler=scheduler.from_config(p.scheduler.config)) for p in pipelines]
    equal_images(changed, **arguments)


@pytest.fixture(scope="module")
def pairs(pipelines):
    """Ours and diffusers' with two ControlNets each."""
    others = [copy.deepcopy(pipeline.controlnet) for pipeline in pipelines]
    randomise(others[0])
    others[1].load_state_dict(others[0].state_dict())
    return [with_components(p, controlnet=[p.controlnet, other]) for p, other in zip(pipelines, others)]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"controlnet_conditioning_scale": [0.8, 0.3]},
        {"controlnet_conditioning_scale": [0.0, 0.7]},
        {"controlnet_conditioning_scale": [0.8, 0.3], "guess_mode": True},
        {"control_guidance_start": [0.0, 0.5], "control_guidance_end": [0.5, 1.0]},
        {"image": [picture(71, 90), tensor(40, 40, seed=6)[None]], "height": 64, "width": 72},
    ],
)
def test_pixels_equal_diffusers_with_two_controlnets(pairs, arguments):
    images = equal_images(pairs, **{"image": [picture(), picture(seed=6)], **arguments})
    assert not np.array_equal(images, draw(pairs[0], image=[picture()] * 2))


def test_one_controlnet_may_be_there_twice(pipelines):
    twice = [with_components(pipeline, controlnet=[pipeline.controlnet] * 2) for pipeline in pipelines]
    images = equal_images(twice, image=[picture(), picture(seed=6)])
    assert not np.array_equal(images, draw(pipelines[0], image=picture()))


def test_two_controlnets_take_a_list_of_images_each(pairs):
    ours, theirs = pairs
    a, b, c, d = (picture(seed=seed) for seed in range(4))
    prompts = ["red disc", "blue"]
    by_controlnet, by_prompt = [[a, b], [c, d]], [[a, c], [b, d]]
    assert np.array_equal(
        draw(ours, prompt=prompts, image=by_controlnet), draw(theirs, prompt=prompts, image=by_prompt)
    )


def test_second_condition_takes_the_size_of_the_first(pairs):
    small = np.asarray(picture(40, 40, seed=6).resize((72, 64), Image.LANCZOS))
    assert np.array_equal(
        draw(pairs[0], image=[picture(64, 72), picture(40, 40, seed=6)]), draw(pairs[0], image=[picture(64, 72), small])
    )


@pytest.mark.parametrize(
    "image",
    [
        [picture()],
        np.asarray(picture()),
        np.asarray(picture())[None],
        np.flip(np.asarray(picture())[::-1], 0),
        np.asarray(picture()) / 255,
        torch.from_numpy(np.array(picture())).permute(2, 0, 1),
        [torch.from_numpy(np.array(picture())).permute(2, 0, 1) / 255],
        picture().convert("RGBA"),
    ],
    ids=["list", "bytes", "batch", "view", "float64", "byte tensor", "tensor list", "rgba"],
)
def test_a_condition_may_be_given_in_many_forms(pipelines, plain_image, image):
    assert np.array_equal(draw(pipelines[0], image=image), plain_image)


@pytest.mark.parametrize("form", [lambda grey: grey, lambda grey: grey[..., None], torch.from_numpy])
def test_grey_conditions_serve_all_channels(pipelines, form):
    grey = pixels()[..., 0]
    assert np.array_equal(
        draw(pipelines[0], image=form(grey)), draw(pipelines[0], image=np.stack([grey, grey, grey], axis=-1))
    )


@pytest.mark.parametrize("arguments", [{}, {"guidance_scale": 1.0}, {"guess_mode": True}])
def test_fresh_controlnet_and_scale_0_draw_what_the_base_draws(pipelines, arguments):
    ours, theirs = pipelines
    fresh = ControlNetModel.from_unet(ours.unet, conditioning_embedding_out_channels=CONDITIONING)
    base = diffusers.StableDiffusionPipeline(
        **{name: component for name, component in theirs.components.items() if name != "controlnet"},
        requires_safety_checker=False,
    )
    base.set_progress_bar_config(disable=True)
    plain = {k: v for k, v in arguments.items() if k != "guess_mode"}
    without = base("red disc", SIZE, SIZE, num_inference_steps=3, generator=seeded(), output_type="np", **plain).images
    assert np.array_equal(draw(with_components(ours, controlnet=fresh), **arguments), without)
    assert np.array_equal(draw(ours, controlnet_conditioning_scale=0.0, **arguments), without)
    assert not np.array_equal(draw(ours, **arguments), without)


def test_the_unconditional_guess_may_be_the_bases_alone(pipelines):
    """As diffusers' models draw it in a loop by hand, whose two guesses are two calls."""
    scheduler = diffusers.DDIMScheduler.from_config(pipelines[0].scheduler.config)
    ours, theirs = (with_components(pipeline, scheduler=scheduler) for pipeline in pipelines)
    prompt, empty = theirs.encode_prompt("red disc", "cpu", 1, True)
    condition = theirs.prepare_image(picture(), SIZE, SIZE, 1, 1, "cpu", torch.float32)
    latents = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=seeded())
    scheduler.set_timesteps(3)
    with torch.no_grad():
        for t in scheduler.timesteps:
            down, mid = theirs.controlnet(latents, t, prompt, condition, 0.8, return_dict=False)
            steered = theirs.unet(
                latents, t, prompt, down_block_additional_residuals=down, mid_block_additional_residual=mid
            ).sample
            alone = theirs.unet(latents, t, empty).sample
            latents = scheduler.step(alone + 3.0 * (steered - alone), t, latents).prev_sample
    drawn = {"guidance_scale": 3.0, "controlnet_conditioning_scale": 0.8, "output_type": "latent"}
    found = draw(ours, steer_unconditional=False, **drawn)
    torch.testing.assert_close(found, latents, rtol=1e-4, atol=1e-4)
    usual = draw(ours, **drawn)
    assert (usual - found).abs().mean() > 0.01, "the argument changes nothing"


def test_without_guidance_there_is_no_unconditional_guess(pipelines):
    unguided = {"guidance_scale": 1.0}
    assert np.array_equal(draw(pipelines[0], steer_unconditional=False, **unguided), draw(pipelines[0], **unguided))


@pytest.mark.parametrize("which, calls", [("one", 4), ("two", 4), ("silent", 0)])
def test_controlnet_is_called_once_a_step_and_not_where_it_is_silent(pipelines, pairs, which, calls):
    """PNDM takes 4 evaluations for 3 steps. Offloading moves what is called as a module, so the whole must be."""
    ours = pairs[0] if which == "two" else pipelines[0]
    called = []
    hook = ours.controlnet.register_forward_hook(lambda *_: called.append(1))
    draw(
        ours,
        image=[picture()] * 2 if which == "two" else picture(),
        controlnet_conditioning_scale=0.0 if which == "silent" else 1.0,
    )
    hook.remove()
    assert len(called) == calls


def test_one_of_two_controlnets_rests_where_its_scale_is_0(pairs):
    called = []
    hooks = [
        net.register_forward_hook(lambda *_, i=i: called.append(i)) for i, net in enumerate(pairs[0].controlnet.nets)
    ]
    draw(pairs[0], image=[picture()] * 2, control_guidance_start=[0.0, 0.5])
    for hook in hooks:
        hook.remove()
    assert called == [0, 0, 0, 1, 0, 1]


def test_from_pretrained_runs_our_models(folder, pipelines):
    ours, theirs = pipelines
    assert type(ours.unet) is UNet2DConditionModel and type(ours.controlnet) is ControlNetModel
    assert type(theirs.unet) is diffusers.UNet2DConditionModel
    called = []
    hook = ours.unet.mid_block.register_forward_hook(lambda *_: called.append(1))
    draw(ours)
    hook.remove()
    assert called
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["controlnet"] == ["diffusers", "ControlNetModel"]


def test_from_pretrained_takes_components_and_data_types(folder, pipelines):
    other = copy.deepcopy(pipelines[0].controlnet)
    loaded = StableDiffusionControlNetPipeline.from_pretrained(folder, controlnet=other, torch_dtype=torch.float16)
    assert loaded.controlnet is other
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.float16}
    arguments = {"torch_dtype": torch.float16, "low_cpu_mem_usage": False, "local_files_only": True}
    loaded = StableDiffusionControlNetPipeline.from_pretrained(folder, **arguments)
    assert {loaded.unet.dtype, loaded.controlnet.dtype, loaded.text_encoder.dtype} == {torch.float16}
    loaded = StableDiffusionControlNetPipeline.from_pretrained(folder, unet=pipelines[0].unet)
    assert loaded.unet is pipelines[0].unet
    loaded = StableDiffusionControlNetPipeline.from_pretrained(folder, controlnet=[other, pipelines[0].controlnet])
    assert list(loaded.controlnet.nets) == [other, pipelines[0].controlnet]


def test_half_precision_files_are_loaded_in_single_precision(folder, tmp_path):
    half = StableDiffusionControlNetPipeline.from_pretrained(folder).to(torch.float16)
    half.save_pretrained(tmp_path)
    loaded = StableDiffusionControlNetPipeline.from_pretrained(tmp_path)
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.float32}
    assert draw(loaded).std() > 0.01


def test_models_of_diffusers_are_refused(folder, pipelines):
    ours, theirs = pipelines
    for name in ("unet", "controlnet"):
        with pytest.raises(ValueError, match=f"{name} is diffusers"):
            StableDiffusionControlNetPipeline.from_pretrained(folder, **{name: getattr(theirs, name)})
    with pytest.raises(ValueError, match="controlnet is diffusers"):
        with_components(ours, controlnet=[ours.controlnet, theirs.controlnet])


def test_base_without_controlnet_needs_one(pipelines, plain_image, tmp_path):
    ours, theirs = pipelines
    components = {name: component for name, component in theirs.components.items() if name != "controlnet"}
    base = diffusers.StableDiffusionPipeline(**components, requires_safety_checker=False)
    base.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pass controlnet="):
        StableDiffusionControlNetPipeline.from_pretrained(tmp_path)
    loaded = StableDiffusionControlNetPipeline.from_pretrained(tmp_path, controlnet=ours.controlnet)
    assert np.array_equal(draw(loaded), plain_image)


def test_from_pipe_takes_over_the_models(pipelines, plain_image):
    ours, theirs = pipelines
    same = StableDiffusionControlNetPipeline.from_pipe(ours)
    assert all(getattr(same, name) is getattr(ours, name) for name in ("unet", "controlnet", "vae", "text_encoder"))
    adopted = StableDiffusionControlNetPipeline.from_pipe(theirs, unet=ours.unet, controlnet=ours.controlnet)
    assert adopted.vae is theirs.vae and np.array_equal(draw(adopted), plain_image)
    with pytest.raises(ValueError):
        StableDiffusionControlNetPipeline.from_pipe(theirs)


def test_several_controlnets_are_saved_and_loaded(pairs, tmp_path):
    pairs[0].save_pretrained(tmp_path)
    image = [picture(), picture(seed=6)]
    expected = draw(pairs[0], image=image)
    for pipeline in (StableDiffusionControlNetPipeline, diffusers.StableDiffusionControlNetPipeline):
        assert np.array_equal(draw(pipeline.from_pretrained(tmp_path), image=image), expected)


@pytest.fixture
def adaptable(pipelines):
    """Ours and diffusers', each with a UNet and a text encoder of its own to put adapters into."""
    return [
        with_components(p, unet=copy.deepcopy(p.unet), text_encoder=copy.deepcopy(p.text_encoder)) for p in pipelines
    ]


@pytest.fixture(scope="module")
def lora(pipelines, tmp_path_factory):
    """A folder with random LoRA weights, as diffusers' training scripts write it."""
    peft = pytest.importorskip("peft")
    layers = {}
    for name, targets in (
        ("unet", ["to_q", "to_k", "to_v", "to_out.0"]),
        ("text_encoder", ["q_proj", "k_proj", "v_proj", "out_proj"]),
    ):
        model = copy.deepcopy(getattr(pipelines[1], name))
        model.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=targets))
        state = peft.get_peft_model_state_dict(model)
        layers[f"{name}_lora_layers"] = diffusers.utils.convert_state_dict_to_diffusers(state)
    folder = tmp_path_factory.mktemp("lora")
    for kind in (["unet_lora_layers"], list(layers)):
        chosen = {name: layers[name] for name in kind}
        diffusers.StableDiffusionPipeline.save_lora_weights(folder / str(len(kind)), **chosen)
    return folder


@pytest.mark.parametrize("models", ["1", "2"], ids=["unet", "unet and text encoder"])
def test_pixels_equal_diffusers_with_lora(adaptable, lora, plain_image, models):
    images = {"none": plain_image}
    for pipeline in adaptable:
        pipeline.load_lora_weights(lora / models, weight_name=WEIGHTS_FILE, adapter_name="one")
    images["whole"] = equal_images(adaptable)
    images["half"] = equal_images(adaptable, cross_attention_kwargs={"scale": 0.5})
    assert np.array_equal(draw(adaptable[0]), images["whole"]), "the scale is for one call"
    assert np.array_equal(draw(adaptable[0], cross_attention_kwargs={"scale": 0.0}), plain_image)
    for pipeline in adaptable:
        pipeline.set_adapters(["one"], adapter_weights=[0.7])
    images["weighted"] = equal_images(adaptable)
    for one in images:
        for other in images:
            assert one == other or not np.array_equal(images[one], images[other]), (one, other)
    # diffusers 0.42 leaves every adapter at 1 after a scale of 0 (findings/diffusers_scale_zero_resets.sh).
    assert np.array_equal(draw(adaptable[0], cross_attention_kwargs={"scale": 0.0}), plain_image)
    assert np.array_equal(draw(adaptable[0]), images["weighted"]), "a scale of 0 is for one call, too"
    for pipeline in adaptable:
        pipeline.unload_lora_weights()
    assert np.array_equal(equal_images(adaptable), plain_image)


def test_lora_can_be_fused(adaptable, lora):
    for pipeline in adaptable:
        pipeline.load_lora_weights(lora / "1", weight_name=WEIGHTS_FILE)
    apart = draw(adaptable[0])
    for pipeline in adaptable:
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    assert np.allclose(equal_images(adaptable), apart, atol=1e-3)


def test_lora_scale_does_not_outlive_a_call_that_fails(adaptable, lora):
    ours = adaptable[0]
    ours.load_lora_weights(lora / "1", weight_name=WEIGHTS_FILE)
    before = draw(ours)

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(ours, cross_attention_kwargs={"scale": 0.5}, callback_on_step_end=fail)
    assert np.array_equal(draw(ours), before)


def test_callback_sees_and_replaces_tensors(pipelines):
    seen = []
    embeds = torch.randn(2, TOKENS, 24, generator=seeded(3))

    def replace(pipeline, step, timestep, tensors):
        seen.append((pipeline, step, int(timestep), {name: tuple(value.shape) for name, value in tensors.items()}))
        return {"prompt_embeds": embeds}

    arguments = {"callback_on_step_end": replace, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    images = equal_images(pipelines, **arguments)
    shapes = {"latents": (1, 4, 8, 8), "prompt_embeds": (2, TOKENS, 24)}
    ours, theirs = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert [entry[1] for entry in ours] == list(range(4))
    assert [entry[1:] for entry in ours] == [entry[1:] for entry in theirs]
    assert all(entry[0] is pipelines[0] and entry[3] == shapes for entry in ours)
    assert not np.array_equal(images, draw(pipelines[0]))


def test_callback_may_return_nothing_and_end_the_loop(pipelines, plain_image):
    steps = []

    def stop(pipeline, step, timestep, tensors):
        steps.append(step)
        pipeline._interrupt = step == 1

    assert not np.array_equal(draw(pipelines[0], callback_on_step_end=stop), plain_image)
    assert steps == [0, 1]
    assert np.array_equal(draw(pipelines[0], callback_on_step_end=lambda *_: None), plain_image)


def test_callback_may_end_guidance_with_controlnet_in_both_halves(pipelines, plain_image):
    inputs = ["prompt_embeds"]
    images = draw(pipelines[0], callback_on_step_end=end_guidance, callback_on_step_end_tensor_inputs=inputs)
    assert images.shape == plain_image.shape and not np.array_equal(images, plain_image)


def test_output_types(pipelines, plain_image):
    ours = pipelines[0]
    (pil,) = draw(ours, output_type="pil")
    assert np.array_equal(np.asarray(pil), (plain_image[0] * 255).round().astype(np.uint8))
    assert np.array_equal(draw(ours, output_type="pt").permute(0, 2, 3, 1).numpy(), plain_image)
    latents = [draw(pipeline, output_type="latent") for pipeline in pipelines]
    assert latents[0].shape == (1, 4, 8, 8) and torch.equal(*latents)
    output = ours("red disc", picture(), num_inference_steps=3, generator=seeded(), output_type="np", return_dict=False)
    assert isinstance(output, tuple) and np.array_equal(output[0], plain_image) and output[1] is None
    assert not torch.is_grad_enabled() or not draw(ours, output_type="pt").requires_grad


def test_default_size_is_that_of_the_condition_rounded_down(pipelines):
    assert draw(pipelines[0], image=picture(71, 90)).shape == (1, 64, 88, 3)
    assert draw(pipelines[0], image=tensor(71, 90), width=48).shape == (1, 64, 48, 3)


def test_the_condition_is_embedded_once_for_all_steps(pipelines):
    calls = []
    hook = pipelines[0].controlnet.controlnet_cond_embedding.register_forward_hook(lambda *call: calls.append(call))
    try:
        draw(pipelines[0], num_inference_steps=3)
    finally:
        hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("halves", [{}, {"guess_mode": True}, {"steer_unconditional": False}])
def test_the_text_is_projected_once_for_all_steps(pipelines, monkeypatch, halves):
    counts = {}
    for name in ("unet", "controlnet"):
        for key, layer in getattr(pipelines[0], name).named_modules():
            if key.endswith(("attn2.to_k", "attn2.to_v", "attn2.to_q")):
                counts[layer] = 0
    forward = torch.nn.Linear.forward

    def count(layer, x):
        if layer in counts:
            counts[layer] += 1
        return forward(layer, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", count)
    draw(pipelines[0], num_inference_steps=3, **halves)
    calls = sorted(counts.values())
    assert calls.count(1) == 2 * calls.count(max(calls)), "queries at each step, keys and values once"
    draw(pipelines[0], num_inference_steps=3, **halves)
    assert sorted(counts.values()) == [2 * n for n in calls], "a call must not see the text of the one before"


@pytest.mark.parametrize("change", ["prompt_embeds in place", "LoRA"])
def test_callback_may_change_what_the_text_becomes(adaptable, lora, change):
    for pipeline in adaptable:
        pipeline.load_lora_weights(lora / "1", weight_name=WEIGHTS_FILE, adapter_name="one")
    unchanged = draw(adaptable[0])

    def alter(pipeline, step, timestep, tensors):
        if change == "LoRA":
            pipeline.set_adapters(["one"], adapter_weights=[0.1])
        else:
            tensors["prompt_embeds"].mul_(0.5)
        return {}

    inputs = ["prompt_embeds"]
    changed = equal_images(adaptable, callback_on_step_end=alter, callback_on_step_end_tensor_inputs=inputs)
    assert not np.array_equal(changed, unchanged)


@pytest.fixture(scope="module")
def one_attention(pipelines):
    """Ours, with models of one level that attend to the text in the middle only: each block takes long to compile."""
    small = {"block_out_channels": (16,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DConditionModel(**{**UNET, **small})
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CONDITIONING)
    randomise(controlnet)
    return with_components(pipelines[0], unet=unet, controlnet=controlnet)


@pytest.mark.parametrize("way", ["wrapped", "in place", "forward only"])
def test_a_compiled_unet_is_compiled_once(one_attention, way):
    ours, graphs = with_components(one_attention, unet=copy.deepcopy(one_attention.unet)), []
    plain_image = draw(ours)
    assert plain_image.std() > 0.01

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compilation = {"backend": backend, "fullgraph": True}
    if way == "wrapped":
        ours.unet = torch.compile(ours.unet, **compilation)
    elif way == "forward only":
        ours.unet.forward = torch.compile(ours.unet.forward, **compilation)
    else:
        ours.unet.compile(**compilation)
    assert all(np.array_equal(draw(ours), plain_image) for _ in range(3))
    assert len(graphs) == 1


def test_one_negative_prompt_serves_all_prompts(pipelines):
    prompts = ["red disc", "blue"]
    assert np.array_equal(
        draw(pipelines[0], prompt=prompts, negative_prompt="green"),
        draw(pipelines[0], prompt=prompts, negative_prompt=["green"] * 2),
    )


class Checker(torch.nn.Module):
    """Blacks out the first image."""

    device = torch.device("cpu")

    def forward(self, images, clip_input):
        assert clip_input.shape[0] == images.shape[0]
        images[0] = 0
        return images, [True] + [False] * (len(images) - 1)


class Extractor:
    def __call__(self, images, return_tensors):
        self.pixel_values = torch.stack([torch.from_numpy(np.array(image)) for image in images])
        return self

    def to(self, device):
        return self


def test_safety_checker_is_run_if_there_is_one(pipelines):
    guarded = [with_components(p, safety_checker=Checker(), feature_extractor=Extractor()) for p in pipelines]
    images = equal_images(guarded, num_images_per_prompt=2)
    assert images[0].max() == 0 and images[1].max() > 0
    output = guarded[0]("red disc", picture(), num_inference_steps=1, num_images_per_prompt=2)
    assert output.nsfw_content_detected == [True, False]


EMBEDS = torch.zeros(1, TOKENS, 24)
ERRORS = [
    ({"prompt": None}, "either prompt or prompt_embeds"),
    ({"prompt_embeds": EMBEDS}, "either prompt or prompt_embeds"),
    ({"prompt": 3}, "prompt must be a string"),
    ({"prompt": []}, "prompt must be a string"),
    ({"prompt": ["red", None]}, "prompt must be a string"),
    ({"prompt": None, "prompt_embeds": EMBEDS[0]}, "tensors alike"),
    ({"prompt": None, "prompt_embeds": EMBEDS, "negative_prompt_embeds": EMBEDS[:, 1:]}, "tensors alike"),
    ({"negative_prompt": "blue", "negative_prompt_embeds": EMBEDS}, "not both"),
    ({"negative_prompt": ["blue", "green"]}, "negative_prompt has 2 entries for 1 prompts"),
    ({"prompt": ["red", "blue"], "negative_prompt_embeds": EMBEDS}, "negative_prompt_embeds has 1 entries for 2"),
    ({"image": None}, "not NoneType"),
    ({"image": "circle.png"}, "not str"),
    ({"image": [picture(), "circle.png"]}, "not str"),
    ({"image": np.zeros(64)}, "not ndarray of 1 dimensions"),
    ({"image": []}, r"0 condition image\(s\) for 1 prompt"),
    ({"image": [picture()] * 2}, r"2 condition image\(s\) for 1 prompt"),
    ({"image": [picture()] * 2, "prompt": ["a", "b", "c"]}, r"2 condition image\(s\) for 3 prompt"),
    ({"image": 255 * pixels()}, "floats in 0..1 or bytes"),
    ({"image": 2 * tensor() - 1}, "floats in 0..1 or bytes"),
    ({"image": torch.full((3, 64, 64), float("nan"))}, "floats in 0..1 or bytes"),
    ({"image": torch.zeros(4, 64, 64)}, "4 channels; ControlNet takes 3"),
    ({"image": picture(7, 64)}, "height is 7 px"),
    ({"height": 60}, "height is 60, which is not a multiple of 8"),
    ({"width": 0}, "width is 0"),
    ({"width": "64"}, "width is '64'"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0"),
    ({"num_images_per_prompt": 1.5}, "num_images_per_prompt is 1.5"),
    ({"output_type": "png"}, "'png' is not one of pil, np, pt, latent"),
    ({"controlnet_conditioning_scale": [1.0, 0.5]}, r"has 2 entries for 1 ControlNet"),
    ({"controlnet_conditioning_scale": "1"}, "controlnet_conditioning_scale is '1'"),
    ({"control_guidance_start": 0.5, "control_guidance_end": 0.5}, "start < end"),
    ({"control_guidance_start": -0.1}, "start < end"),
    ({"control_guidance_end": [1.1]}, "start < end"),
    ({"control_guidance_end": [0.5, 1.0]}, "control_guidance_end has 2 entries"),
    ({"latents": torch.zeros(1, 4, 8, 9)}, r"latents are \(1, 4, 8, 9\)"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, "'noise' is not one of latents"),
    ({"generator": two_generators}, "list of generators of length 2"),
]


@pytest.mark.parametrize("arguments, message", ERRORS, ids=[message for _, message in ERRORS])
def test_bad_inputs_are_refused(pipelines, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(pipelines[0], **arguments)


@pytest.mark.parametrize("image", [picture(), [picture()], [picture()] * 3, np.stack([pixels()] * 2)])
def test_two_controlnets_need_a_list_of_two(pairs, image):
    with pytest.raises(ValueError, match="2 ControlNets need image to be a list"):
        draw(pairs[0], image=image)

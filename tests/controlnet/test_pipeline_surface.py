"""Every method and argument of diffusers' pipeline works on ours as it does there, or is refused in a sentence."""

from __future__ import annotations

import copy
import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from safetensors.torch import save_file
from test_models import SD1_LIKE
from test_pipeline import (  # noqa: F401 (fixtures are used by their names)
    TOKENS,
    WEIGHTS_FILE,
    adaptable,
    draw,
    equal_images,
    folder,
    lora,
    pipelines,
    plain_image,
    seeded,
    with_components,
)

from diffusion.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from processes import FORKS, ROOT, WRAPPERS, fork_server, run_python

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def own(pipelines):  # noqa: F811
    """Ours and diffusers', each with models of its own."""
    copied = []
    for pipeline in pipelines:
        models = {n: copy.deepcopy(c) for n, c in pipeline.components.items() if isinstance(c, torch.nn.Module)}
        copied.append(with_components(pipeline, **models, tokenizer=copy.deepcopy(pipeline.tokenizer)))
    return copied


@pytest.mark.parametrize("slice_size", ["auto", "max", 1, 2])
def test_attention_slicing_is_switched_on_and_off(own, slice_size):
    ours, theirs = own
    for pipeline in own:
        pipeline.enable_attention_slicing(slice_size)
    for name in ("unet", "controlnet"):
        sliced = [[p.slice_size for p in getattr(pipeline, name).attn_processors.values()] for pipeline in own]
        assert sliced[0] == sliced[1] and all(sliced[0])
    equal_images(own)
    ours.disable_attention_slicing()
    assert {type(p) for p in ours.unet.attn_processors.values()} == {AttnProcessor2_0}


def test_more_slices_than_heads_are_refused(own):
    with pytest.raises(ValueError, match="slice_size"):
        own[0].enable_attention_slicing(9)


def shortened(pipeline, layers: int):
    """The pipeline with a text encoder that has only its first layers."""
    text_encoder = copy.deepcopy(pipeline.text_encoder)
    encoder = getattr(text_encoder, "text_model", text_encoder).encoder
    encoder.layers = encoder.layers[:layers]
    return with_components(pipeline, text_encoder=text_encoder)


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_clip_skip_leaves_out_the_text_encoder_s_last_layers(pipelines, clip_skip):  # noqa: F811
    ours = pipelines[0]
    expected = draw(shortened(ours, 2 - clip_skip), guidance_scale=1.0)
    assert np.array_equal(draw(ours, guidance_scale=1.0, clip_skip=clip_skip), expected)
    assert ours.clip_skip == clip_skip
    if clip_skip:
        assert not np.array_equal(draw(ours, guidance_scale=1.0), expected)
        assert not np.array_equal(draw(ours, clip_skip=clip_skip), draw(shortened(ours, 2 - clip_skip))), "negative too"


LOADS = {
    "load_ip_adapter": ("h94/IP-Adapter", "models", "ip-adapter_sd15.bin"),
    "set_ip_adapter_scale": (0.5,),
    "unload_ip_adapter": (),
    "prepare_ip_adapter_image_embeds": (None, None, "cpu", 1, True),
    "enable_freeu": (0.9, 0.2, 1.2, 1.4),
    "disable_freeu": (),
    "fuse_qkv_projections": (),
    "unfuse_qkv_projections": (),
    "check_inputs": ("red disc", None, 1),
    "from_single_file": ("model.safetensors",),
}


@pytest.mark.parametrize("method", LOADS)
def test_methods_that_need_other_models_say_so(pipelines, method):  # noqa: F811
    with pytest.raises(
        NotImplementedError, match=r"is not supported here; diffusers\.StableDiffusionControlNet"
    ) as error:
        getattr(pipelines[0], method)(*LOADS[method])
    assert "\n" not in str(error.value)


def test_every_argument_of_the_call_is_taken_or_refused_by_name(pipelines):  # noqa: F811
    theirs = set(inspect.signature(diffusers.StableDiffusionControlNetPipeline.__call__).parameters)
    taken = set(inspect.signature(StableDiffusionControlNetPipeline.__call__).parameters)
    others = (theirs - taken - {"kwargs"}) | {"callback", "callback_steps", "guidance_rescale"}
    for name in others:
        draw(pipelines[0], num_inference_steps=1, **{name: None})
        with pytest.raises(ValueError, match=f"^{name} is not supported: "):
            draw(pipelines[0], **{name: 1})
    with pytest.raises(TypeError, match="no argument 'strength'"):
        draw(pipelines[0], strength=None)


def cut_off_guidance():
    callbacks = pytest.importorskip("diffusers.callbacks")  # not in all releases
    return callbacks.SDCFGCutoffCallback(cutoff_step_ratio=0.5)


def change_negatives(pipeline, step, timestep, tensors):
    """What one step leaves, the next one sees."""
    embeds = tensors["negative_prompt_embeds"]
    return {"latents": tensors["latents"] * (1 + embeds.mean()), "negative_prompt_embeds": embeds * 2}


def less_guidance(pipeline, step, timestep, tensors):
    pipeline._guidance_scale = 2.0
    return {}


def embeds(prompts: int, tokens: int = TOKENS, seed: int = 3) -> torch.Tensor:
    return torch.randn(prompts, tokens, 24, generator=seeded(seed))


OPTIONS = {
    "latent": {"output_type": "latent", "num_images_per_prompt": 2},
    "pt": {"output_type": "pt"},
    "prompt_embeds and a negative prompt": {"prompt": None, "prompt_embeds": embeds(1), "negative_prompt": "blue"},
    "prompt_embeds and several negative prompts": {
        "prompt": None,
        "prompt_embeds": embeds(2),
        "negative_prompt": ["blue", "green"],
        "num_images_per_prompt": 2,
    },
    "a prompt and negative_prompt_embeds": {"negative_prompt_embeds": embeds(1)},
    "fewer tokens": {"prompt": None, "prompt_embeds": embeds(1, 5), "negative_prompt_embeds": embeds(1, 5, seed=4)},
    "a prompt that is too long": {"prompt": "a red disc on a blue ground with green and grey"},
    "guess_mode without a prompt": {"prompt": "", "guess_mode": True, "guidance_scale": 4.0},
    "negative embeddings changed": {
        "callback_on_step_end": change_negatives,
        "callback_on_step_end_tensor_inputs": ["latents", "negative_prompt_embeds"],
    },
    "guidance changed": {"callback_on_step_end": less_guidance},
    "no tensors": {"callback_on_step_end": lambda *args: {}, "callback_on_step_end_tensor_inputs": []},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_results_equal_diffusers(pipelines, option):  # noqa: F811
    ours, theirs = (torch.as_tensor(draw(pipeline, **OPTIONS[option])) for pipeline in pipelines)
    assert ours.dtype == theirs.dtype and ours.std() > 0.01 and torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "scheduler, arguments",
    [
        ("DDIMScheduler", {"eta": 0.7}),
        ("EulerDiscreteScheduler", {"timesteps": [900, 500, 100], "control_guidance_end": 0.7}),
        ("EulerDiscreteScheduler", {"sigmas": [5.0, 1.0, 0.1]}),
        ("HeunDiscreteScheduler", {"control_guidance_end": 0.5}),
    ],
)
def test_schedules_equal_diffusers(pipelines, scheduler, arguments):  # noqa: F811
    schedulers = [getattr(diffusers, scheduler).from_config(p.scheduler.config) for p in pipelines]
    pair = [with_components(p, scheduler=s) for p, s in zip(pipelines, schedulers)]
    if set(arguments) & {"timesteps", "sigmas"}:
        taken = inspect.signature(schedulers[0].set_timesteps).parameters
        if not set(taken) & set(arguments):  # in older releases
            with pytest.raises(ValueError, match="does not support custom"):
                draw(pair[0], **arguments)
            return
    equal_images(pair, **arguments)


def test_a_callback_of_the_library_ends_guidance(pipelines):  # noqa: F811
    ours = draw(pipelines[0], num_inference_steps=4, callback_on_step_end=cut_off_guidance())
    assert ours.std() > 0.01 and not np.array_equal(ours, draw(pipelines[0], num_inference_steps=4))


def test_latents_come_in_any_precision(pipelines):  # noqa: F811
    latents = torch.randn(1, 4, 8, 8, generator=seeded(3)).half()
    assert np.array_equal(draw(pipelines[0], latents=latents), draw(pipelines[0], latents=latents.float()))


ERRORS = [
    ({"clip_skip": 3}, "clip_skip is 3; the text encoder has 2 layers"),
    ({"clip_skip": -1}, "clip_skip is -1"),
    ({"clip_skip": "1"}, "clip_skip is '1'"),
    ({"guidance_scale": "3"}, "guidance_scale is '3'"),
    ({"guidance_scale": None}, "guidance_scale is None"),
    ({"eta": None}, "eta is None"),
    ({"generator": lambda: 5}, "generator is a int; it must be a Generator"),
    ({"generator": lambda: [seeded(), 5]}, "generator is a int"),
    ({"latents": np.zeros((1, 4, 8, 8), np.float32)}, "latents is a ndarray; it must be a Tensor"),
    ({"cross_attention_kwargs": "scale"}, "cross_attention_kwargs is a str; it must be a dict"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, TOKENS, 20)}, "20 channels; the UNet takes 24"),
    ({"negative_prompt_embeds": torch.zeros(1, TOKENS, 20)}, "20 channels; the UNet takes 24"),
    ({"callback_on_step_end": lambda *args: {"image": 0}}, "callback_on_step_end returned: 'image' is not one of"),
]


@pytest.mark.parametrize("arguments, message", ERRORS, ids=[message for _, message in ERRORS])
def test_bad_inputs_are_refused(pipelines, arguments, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        draw(pipelines[0], **arguments)


def test_textual_inversion_works(own, tmp_path):
    save_file({"abc": torch.randn(24, generator=seeded(7))}, tmp_path / "learned.safetensors")
    before = draw(own[0], prompt="abc disc")
    for pipeline in own:
        pipeline.load_textual_inversion(str(tmp_path / "learned.safetensors"), token="abc")
    assert not np.array_equal(equal_images(own, prompt="abc disc"), before)


def test_a_lora_s_weight_may_differ_between_blocks(adaptable, lora, plain_image):  # noqa: F811
    weights = {"unet": {"down": 0.9, "mid": 0.1, "up": {"block_1": [0.2, 0.8]}}}
    for pipeline in adaptable:
        pipeline.load_lora_weights(lora / "1", weight_name=WEIGHTS_FILE, adapter_name="one")
        pipeline.set_adapters(["one"], adapter_weights=[weights])
    assert not np.array_equal(equal_images(adaptable), plain_image)


def test_models_may_be_offloaded_in_groups(own, plain_image):  # noqa: F811
    if not hasattr(own[0].unet, "enable_group_offload"):
        pytest.skip("this release of diffusers cannot")
    for name in ("unet", "controlnet"):
        getattr(own[0], name).enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert np.array_equal(draw(own[0]), plain_image)


class TwoTexts:
    """Attention to a second text too, as processors for regions have it."""

    def __init__(self, processor, second: torch.Tensor) -> None:
        self.processor, self.second = processor, second

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, **kwargs):
        first = self.processor(attn, hidden_states, encoder_hidden_states, **kwargs)
        second = self.second.expand(len(hidden_states), -1, -1)
        return (first + self.processor(attn, hidden_states, second, **kwargs)) / 2


def test_an_attention_processor_may_show_a_second_text(own):
    for pipeline in own:
        processors = {
            name: TwoTexts(AttnProcessor2_0(), embeds(1)) if "attn2" in name else AttnProcessor2_0()
            for name in pipeline.unet.attn_processors
        }
        pipeline.unet.set_attn_processor(processors)
    equal_images(own)


def test_a_unet_for_inpainting_is_refused(pipelines):  # noqa: F811
    with pytest.raises(ValueError, match="9 channels and gives 4"):
        with_components(pipelines[0], unet=UNet2DConditionModel(**{**SD1_LIKE, "in_channels": 9}))


@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
def test_data_types_are_taken_by_both_keywords_by_name_and_by_component(folder, keyword):  # noqa: F811
    def types(value):
        loaded = StableDiffusionControlNetPipeline.from_pretrained(folder, **{keyword: value})
        return [getattr(loaded, name).dtype for name in ("unet", "controlnet", "vae", "text_encoder")]

    half, single = torch.float16, torch.float32
    assert types("float16") == types(half) == [half] * 4
    assert types({"unet": "float16", "text_encoder": half}) == [half, single, single, half]
    assert types({"vae": single, "default": half}) == [half, half, single, half]
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        types("int8")
    with pytest.raises(ValueError, match="dtype names 'tranformer'"):
        types({"tranformer": half})


def test_quantised_models_are_refused(folder):  # noqa: F811
    with pytest.raises(ValueError, match="quantization_config is not supported"):
        StableDiffusionControlNetPipeline.from_pretrained(folder, quantization_config=object())


def test_loading_warns_of_nothing(tmp_path):
    """In a process of its own, as much is said only once."""
    run = run_python(WRAPPERS / "load_all.py", tmp_path, folder=ROOT)
    assert run.returncode == 0, run.stderr
    said = run.stderr + (fork_server().complaints() if FORKS else "")  # by the libraries, which were imported there
    for word in ("deprecat", "dtype", "will be removed", "keep_in_fp32"):
        assert word not in said, said

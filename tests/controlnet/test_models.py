"""Our UNet and ControlNet are diffusers', to the bit: outputs, gradients, state dicts, files."""

from __future__ import annotations

import inspect
import json
import shutil

import diffusers
import pytest
import torch
from accelerate.utils import is_torch_version

from diffusion.controlnet import ControlNetModel
from diffusion.unets.unet_2d_condition import UNet2DConditionModel

SD1_LIKE = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
SD2_LIKE = {
    **SD1_LIKE,
    "attention_head_dim": (2, 4, 4),
    "use_linear_projection": True,
    "upcast_attention": True,
    "layers_per_block": 1,
}
CONDITIONING = (8, 8, 16, 16)
# unet/config.json of CompVis/stable-diffusion-v1-4
SD14 = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}


def randomise(module: torch.nn.Module) -> None:
    """Zero convolutions hide every mistake behind them: gives all weights values."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(params=[SD1_LIKE, SD2_LIKE], ids=["sd1", "sd2"])
def models(request):
    """Ours and diffusers' UNet and ControlNet with the same random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**request.param)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CONDITIONING)
    randomise(controlnet)
    their_unet = diffusers.UNet2DConditionModel(**request.param)
    their_unet.load_state_dict(unet.state_dict())
    their_controlnet = diffusers.ControlNetModel.from_unet(their_unet, conditioning_embedding_out_channels=CONDITIONING)
    their_controlnet.load_state_dict(controlnet.state_dict())
    return unet, controlnet, their_unet, their_controlnet


def inputs(height: int = 16, width: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "sample": torch.randn(2, 4, height, width, generator=generator),
        "timestep": torch.tensor([3, 801]),
        "encoder_hidden_states": torch.randn(2, 7, 24, generator=generator),
    }


def condition(height: int = 128, width: int = 128) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3))


def residuals(controlnet, **kwargs):
    return controlnet(**inputs(), controlnet_cond=condition(), return_dict=False, **kwargs)


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (13, 18)])
def test_unet_equals_diffusers(models, size):
    unet, _, their_unet, _ = models
    assert torch.equal(unet(**inputs(*size)).sample, their_unet(**inputs(*size)).sample)


@pytest.mark.parametrize("timestep", [7, 7.5, torch.tensor(7)])
def test_unet_takes_one_timestep_for_all_samples(models, timestep):
    unet, _, their_unet, _ = models
    arguments = {**inputs(), "timestep": timestep}
    assert torch.equal(unet(**arguments).sample, their_unet(**arguments).sample)


@pytest.mark.parametrize("kwargs", [{}, {"conditioning_scale": 0.7}, {"guess_mode": True, "conditioning_scale": 0.7}])
def test_controlnet_and_controlled_unet_equal_diffusers(models, kwargs):
    unet, controlnet, their_unet, their_controlnet = models
    down, mid = residuals(controlnet, **kwargs)
    their_down, their_mid = residuals(their_controlnet, **kwargs)
    assert len(down) == len(their_down) and all(torch.equal(a, b) for a, b in zip(down, their_down))
    assert torch.equal(mid, their_mid)

    def controlled(model, down, mid):
        control = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return model(**inputs(), **control, return_dict=False)[0]

    ours = controlled(unet, down, mid)
    assert torch.equal(ours, controlled(their_unet, list(down), mid))
    assert not torch.allclose(ours, unet(**inputs()).sample, atol=1e-3)


def test_gradients_of_controlnet_equal_diffusers(models):
    unet, controlnet, their_unet, their_controlnet = models
    for one, other in ((unet, controlnet), (their_unet, their_controlnet)):
        one.requires_grad_(False)
        down, mid = residuals(other)
        control = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        one(**inputs(), **control).sample.square().mean().backward()
    theirs = dict(their_controlnet.named_parameters())
    assert set(theirs) == {name for name, _ in controlnet.named_parameters()}
    for name, parameter in controlnet.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        assert torch.equal(parameter.grad, theirs[name].grad), name


def test_gradient_checkpointing_changes_nothing_but_memory(models):
    unet, controlnet, _, _ = models
    losses, gradients = [], []
    for enable in (False, True):
        controlnet.zero_grad()
        if enable:
            unet.enable_gradient_checkpointing()
            controlnet.enable_gradient_checkpointing()
            assert unet.is_gradient_checkpointing and unet.up_blocks[0].gradient_checkpointing
        unet.train(), controlnet.train()
        down, mid = residuals(controlnet)
        control = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        loss = unet(**inputs(), **control).sample.square().mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append(controlnet.conv_in.weight.grad.clone())
    assert losses[0] == losses[1]
    assert torch.equal(*gradients)


@pytest.mark.skipif(not is_torch_version(">=", "2.4"), reason="older releases compile too little of the models")
@pytest.mark.parametrize("config, kinds", [(SD1_LIKE, "all"), (SD2_LIKE, "middle")], ids=["sd1", "sd2"])
def test_both_together_compile_in_one_piece(config, kinds):
    """Of every kind of block and layer one is enough: each takes long to be read.

    Where only the attention is another, the middle is enough, which has it.
    """
    torch.manual_seed(0)
    small = {name: (value[0], value[-1]) for name, value in config.items() if isinstance(value, tuple)}
    if kinds == "middle":
        small = {name: value[:1] for name, value in small.items()}
        small.update(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    unet = UNet2DConditionModel(**{**config, **small, "layers_per_block": 1})
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CONDITIONING)
    randomise(controlnet)

    def denoise(arguments, picture):
        down, mid = controlnet(**arguments, controlnet_cond=picture, return_dict=False)
        return unet(**arguments, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample

    compiled = torch.compile(denoise, backend="eager", fullgraph=True)
    assert torch.equal(compiled(inputs(), condition()), denoise(inputs(), condition()))


def test_state_dicts_of_stable_diffusion_1_4_have_diffusers_keys_and_shapes():
    def shapes(model):
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    with torch.device("meta"):
        unet, their_unet = UNet2DConditionModel.from_config(SD14), diffusers.UNet2DConditionModel.from_config(SD14)
        controlnet = ControlNetModel(
            block_out_channels=unet.config.block_out_channels, cross_attention_dim=768, attention_head_dim=8
        )
        their_controlnet = diffusers.ControlNetModel.from_unet(their_unet, load_weights_from_unet=False)
    assert shapes(unet) == shapes(their_unet)
    assert shapes(controlnet) == shapes(their_controlnet)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in controlnet.parameters()) == 361_279_120


def test_checkpoints_load_both_ways(models, tmp_path):
    unet, controlnet, their_unet, their_controlnet = models
    for ours, theirs, their_class in (
        (unet, their_unet, diffusers.UNet2DConditionModel),
        (controlnet, their_controlnet, diffusers.ControlNetModel),
    ):
        ours.save_pretrained(tmp_path / "ours")
        theirs.save_pretrained(tmp_path / "theirs")
        for loaded in (their_class.from_pretrained(tmp_path / "ours"), type(ours).from_pretrained(tmp_path / "theirs")):
            assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), dict(loaded.named_parameters()).values()))
            state = ours.state_dict()
            assert loaded.state_dict().keys() == state.keys()
            assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders with models of which every field is supported."""
    folders = {load: tmp_path_factory.mktemp(load.__name__) for load in (UNet2DConditionModel, ControlNetModel)}
    unet = UNet2DConditionModel(**SD1_LIKE)
    unet.save_pretrained(folders[UNet2DConditionModel])
    ControlNetModel(**{k: v for k, v in SD1_LIKE.items() if "up_" not in k and k != "sample_size"})
    ControlNetModel.from_unet(unet).save_pretrained(folders[ControlNetModel])
    return folders


@pytest.mark.parametrize("load", [UNet2DConditionModel, ControlNetModel])
@pytest.mark.parametrize(
    "field, value",
    [
        ("addition_embed_type", "text_time"),
        ("transformer_layers_per_block", [1, 2, 10]),
        ("class_embed_type", "timestep"),
        ("act_fn", "gelu"),
        ("never_heard_of", 1),
        ("down_block_types", ["AttnDownBlock2D"] * 3),
        ("down_block_types", ["DownBlock2D"] * 2),
        ("attention_head_dim", [4, 4]),
        ("attention_head_dim", None),
        ("layers_per_block", [2, 2.0, 2]),
        ("cross_attention_dim", [24, 24, 24]),
        ("norm_num_groups", None),
        ("norm_num_groups", 5),
        ("norm_eps", "small"),
        ("block_out_channels", 16),
    ],
)
def test_unsupported_configuration_is_refused_by_name(load, field, value, saved, tmp_path):
    folder = shutil.copytree(saved[load], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ValueError, match=field):
        load.from_pretrained(folder)


SMALLEST = {
    "block_out_channels": (8, 8),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
OF_UNET = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
OF_CONTROLNET = {"conditioning_embedding_out_channels": (4, 4, 4, 4)}


def smallest_outputs(model):
    """Of a model of the configuration SMALLEST, or one that differs in a field."""
    config = model.config
    arguments = {"sample": torch.ones(1, config.in_channels, 4, 4), "timestep": 5}
    arguments["encoder_hidden_states"] = torch.ones(1, 3, config.cross_attention_dim)
    if hasattr(model, "controlnet_cond_embedding"):
        side = 4 * 2 ** (len(config.conditioning_embedding_out_channels) - 1)
        arguments["controlnet_cond"] = torch.ones(1, config.conditioning_channels, side, side)
    with torch.no_grad():
        return torch.cat([tensor.flatten() for tensor in flat(model(**arguments, return_dict=False))])


def flat(nested):
    return [nested] if torch.is_tensor(nested) else [tensor for part in nested for tensor in flat(part)]


@pytest.mark.parametrize("value", ["nonsense", [3, 5], [8, 8], None, 2, 0.5, False, True], ids=str)
@pytest.mark.parametrize("name", ["UNet2DConditionModel", "ControlNetModel"])
def test_every_field_is_refused_by_name_or_means_what_it_means_to_diffusers(name, value):
    ours, theirs = (UNet2DConditionModel if name.startswith("U") else ControlNetModel), getattr(diffusers, name)
    base = {**SMALLEST, **(OF_UNET if ours is UNet2DConditionModel else OF_CONTROLNET)}
    compared = 0
    for field in inspect.signature(theirs).parameters:
        try:
            model = ours.from_config({**base, field: value}).eval()
        except ValueError as error:
            assert field in str(error)
            continue
        if ours is ControlNetModel and field == "layers_per_block" and isinstance(value, list):
            continue  # which diffusers' ControlNet does not take, though its UNet does
        library = theirs.from_config({**base, field: value}).eval()
        randomise(model)
        library.load_state_dict(model.state_dict())
        assert torch.equal(smallest_outputs(model), smallest_outputs(library)), field
        compared += 1
    assert compared, "no field takes it: the value shows nothing"


def test_fields_may_be_given_beside_the_folder(tmp_path):
    UNet2DConditionModel(**SMALLEST, **OF_UNET).save_pretrained(tmp_path)
    assert UNet2DConditionModel.from_pretrained(tmp_path, upcast_attention=True).config.upcast_attention
    with pytest.raises(ValueError, match="act_fn"):
        UNet2DConditionModel.from_pretrained(tmp_path, act_fn="gelu")


@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
def test_data_types_are_taken_by_both_keywords_and_by_name(keyword, tmp_path):
    half = UNet2DConditionModel(**SMALLEST, **OF_UNET).half()
    half.save_pretrained(tmp_path)

    def loaded(**arguments):
        return UNet2DConditionModel.from_pretrained(tmp_path, **arguments).dtype

    assert loaded() == torch.float32
    for value in (torch.float16, "float16", "torch.float16", "half"):
        assert loaded(**{keyword: value}) == torch.float16
    for value in ("auto", "int8", torch.int8, 16):
        with pytest.raises(ValueError, match="dtype is"):
            loaded(**{keyword: value})


@pytest.mark.parametrize("slice_size", ["auto", "max", 2, [1, 2] * 11])
def test_sliced_attention_equals_diffusers(slice_size):
    unet, their_unet = UNet2DConditionModel(**SD1_LIKE), diffusers.UNet2DConditionModel(**SD1_LIKE)
    their_unet.load_state_dict(unet.state_dict())
    for model in (unet, their_unet):
        model.set_attention_slice(slice_size)
    assert [p.slice_size for p in unet.attn_processors.values()] == [
        p.slice_size for p in their_unet.attn_processors.values()
    ]
    assert torch.equal(unet(**inputs()).sample, their_unet(**inputs()).sample)


@pytest.mark.parametrize("slice_size", [0, "half", 5, [1, 2]])
def test_slices_that_cannot_be_are_refused(slice_size):
    with pytest.raises(ValueError, match="slice_size"):
        UNet2DConditionModel(**SD1_LIKE).set_attention_slice(slice_size)


def test_default_attention_equals_diffusers(models):
    for model in models:
        model.set_default_attn_processor()
    unet, controlnet, their_unet, their_controlnet = models
    assert torch.equal(unet(**inputs()).sample, their_unet(**inputs()).sample)
    assert all(map(torch.equal, flat(residuals(controlnet)), flat(residuals(their_controlnet))))


def test_what_a_model_cannot_do_it_says(models):
    for model in models[:2]:
        with pytest.raises(NotImplementedError, match="diffusers' class of that name"):
            type(model).from_single_file("model.safetensors")
    with pytest.raises(ValueError, match="give it to the pipeline"):
        models[0](**inputs(), cross_attention_kwargs={"scale": 0.5})


def test_fresh_controlnet_is_a_copy_with_silent_outputs():
    unet = UNet2DConditionModel(**SD1_LIKE)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CONDITIONING)
    down, mid = residuals(controlnet)
    assert all(residual.abs().max() == 0 for residual in (*down, mid))
    before = unet.conv_in.weight.clone()
    with torch.no_grad():
        for name, parameter in controlnet.named_parameters():
            if name in dict(unet.named_parameters()):
                assert torch.equal(parameter, dict(unet.named_parameters())[name]), name
            parameter += 1
    assert torch.equal(unet.conv_in.weight, before)


def test_wrong_residuals_are_refused(models):
    unet, controlnet, _, _ = models
    down, mid = residuals(controlnet)
    with pytest.raises(ValueError, match="residuals for"):
        unet(**inputs(), down_block_additional_residuals=down[:-1], mid_block_additional_residual=mid)
    with pytest.raises(ValueError, match="go together"):
        unet(**inputs(), down_block_additional_residuals=down)
    with pytest.raises(ValueError, match="size of the image"):
        controlnet(**inputs(), controlnet_cond=condition(64, 64))


def test_an_embedded_condition_gives_the_same_residuals(models):
    _, controlnet, _, _ = models
    embedded = controlnet.controlnet_cond_embedding(condition())
    down, mid = controlnet(**inputs(), controlnet_cond=embedded, return_dict=False)
    plain_down, plain_mid = residuals(controlnet)
    assert all(torch.equal(*pair) for pair in zip(down, plain_down)) and torch.equal(mid, plain_mid)


def test_attention_processors_can_be_exchanged(models):
    unet, _, their_unet, _ = models
    assert set(unet.attn_processors) == set(their_unet.attn_processors)
    plain = diffusers.models.attention_processor.AttnProcessor()
    unet.set_attn_processor(plain)
    their_unet.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    assert all(processor is plain for processor in unet.attn_processors.values())
    assert torch.equal(unet(**inputs()).sample, their_unet(**inputs()).sample)
    with pytest.raises(ValueError, match="each of"):
        unet.set_attn_processor({"conv_in.processor": plain})

"""LoRAs of all layouts are loaded at their own strength, and what cannot be loaded right is called what it is."""

from __future__ import annotations

import functools
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextModel

from drawing import generate, load_pipeline
from finetune.model.sampler import DrawingError
from lora import files
from lora.files import LoraFileError, load_lora
from lora.model import KOHYA_FILE, WEIGHTS_FILE, save_lora, save_state
from made_loras import draw, random_lora
from processes import BASE

SITE = "mid_block.attentions.0.transformer_blocks.0.attn1"
WIDTH = 256  # of the embedded base there
ENCODER = "encoder.layers.0.self_attn"
ATTENTION = [f"unet.{SITE}.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
TEXT = [f"text_encoder.{ENCODER}.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
OTHERS = [
    "unet.mid_block.attentions.0.proj_in",
    "unet.down_blocks.0.resnets.0.conv1",
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2",
]


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(BASE)


@pytest.fixture(scope="module")
def without_lora(pipeline):
    """What the base draws, to be equalled whenever there is no LoRA."""
    return draw(pipeline)


@pytest.fixture(autouse=True)
def nothing_stays_loaded(pipeline):
    yield
    pipeline.unload_lora_weights()


def weight_of(pipeline, module: str) -> torch.Tensor:
    part, _, name = module.partition(".")
    names = dict(getattr(pipeline, part).named_modules())
    return (names[name] if name in names else names[f"text_model.{name}"]).weight


def random_pairs(pipeline, modules: list[str], ranks=(4,)) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B for each module; the ranks take turns."""
    torch.manual_seed(0)
    pairs = {}
    for i, module in enumerate(modules):
        shape, rank = weight_of(pipeline, module).shape, ranks[i % len(ranks)]
        ones = (1,) * (len(shape) - 2)
        pairs[module] = 0.1 * torch.randn(rank, *shape[1:]), 0.1 * torch.randn(shape[0], rank, *ones)
    return pairs


def as_diffusers(pairs, down: str = ".lora_A", up: str = ".lora_B") -> dict[str, torch.Tensor]:
    named = {module.replace("text_encoder.", "text_encoder.text_model."): pair for module, pair in pairs.items()}
    a = {f"{module}{down}.weight": pair[0] for module, pair in named.items()}
    return {**a, **{f"{module}{up}.weight": pair[1] for module, pair in named.items()}}


def as_kohya(pairs, alphas: dict[str, float]) -> dict[str, torch.Tensor]:
    tensors = {}
    for module, (a, b) in pairs.items():
        name = module.replace("text_encoder.", "lora_te_text_model_").replace("unet.", "lora_unet_").replace(".", "_")
        tensors.update({f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b})
        if module in alphas:
            tensors[f"{name}.alpha"] = torch.tensor(alphas[module])
    return tensors


def as_processors(pairs) -> dict[str, torch.Tensor]:
    renamed = {
        re.sub(r"\.([qkv])_proj$", r".to_\1", module).replace("out_proj", "to_out").replace("to_out.0", "to_out"): pair
        for module, pair in pairs.items()
    }
    between = {re.sub(r"^(unet\..*)\.(to_\w+)$", r"\1.processor.\2", module): pair for module, pair in renamed.items()}
    return as_diffusers(between, "_lora.down", "_lora.up")


def both_spellings(pairs) -> dict[str, torch.Tensor]:
    text = {module: pair for module, pair in pairs.items() if module.startswith("text")}
    unet = {module: pair for module, pair in pairs.items() if module not in text}
    return {**as_diffusers(unet), **as_diffusers(text, ".lora.down", ".lora.up")}


def assert_adds(pipeline, pairs, scales: dict[str, float]) -> None:
    """Each layer computes what it does with W + scale B A as its weight, in double precision; and no other changes."""
    torch.manual_seed(1)
    layers = {f"{part}.{name.replace('text_model.', '', 1)}": (layer, getattr(pipeline, part).get_submodule(name))
              for part, model in base_models().items() for name, layer in model.named_modules()
              if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))}  # fmt: skip
    assert pairs.keys() <= layers.keys()
    for module, (right, found) in layers.items():
        weight = right.weight.double()
        x = torch.randn(1, weight.shape[1], *(5 for _ in weight.shape[2:]))
        if module in pairs:
            a, b = (matrix.double().flatten(1) for matrix in pairs[module])
            weight = weight + scales.get(module, 1.0) * (b @ a).reshape(weight.shape)
        bias = None if right.bias is None else right.bias.double()
        options = (bias, right.stride, right.padding) if isinstance(right, torch.nn.Conv2d) else (bias,)
        compute = torch.nn.functional.conv2d if len(weight.shape) > 2 else torch.nn.functional.linear
        wanted = compute(x.double(), weight, *options)
        assert (found(x) - wanted).abs().max() < 1e-4 * wanted.abs().max(), module


@functools.lru_cache(maxsize=None)
def base_models() -> dict[str, torch.nn.Module]:
    parts = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    return {part: kind.from_pretrained(BASE, subfolder=part).requires_grad_(False) for part, kind in parts.items()}


def written(tensors: dict[str, torch.Tensor], folder: Path, metadata: dict | None = None) -> Path:
    texts = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(folder / "a.safetensors"), texts)
    return folder / "a.safetensors"


@pytest.fixture
def refusal(pipeline, without_lora) -> Callable[[Path], str]:
    """The sentence; and the pipeline has no LoRA afterwards."""

    def refused(path: Path) -> str:
        with pytest.raises(LoraFileError) as error:
            load_lora(pipeline, path)
        assert (draw(pipeline) == without_lora).all()
        assert not any("lora" in name for name, _ in pipeline.unet.named_modules())
        return str(error.value)

    return refused


# ---------------------------------------------------------------------------------------------------------------------
# What is loaded


LAYOUTS = {
    "lora_A": as_diffusers,
    "lora.down": lambda pairs: as_diffusers(pairs, ".lora.down", ".lora.up"),
    "lora_linear_layer": lambda pairs: as_diffusers(pairs, ".lora_linear_layer.down", ".lora_linear_layer.up"),
    "both": both_spellings,
    "kohya": lambda pairs: as_kohya(pairs, {}),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_each_layout_adds_b_a_to_the_weights(pipeline, tmp_path, layout):
    pairs = random_pairs(pipeline, ATTENTION + TEXT + OTHERS, ranks=(4, 2, 4, 6))
    load_lora(pipeline, written(LAYOUTS[layout](pairs), tmp_path))
    assert_adds(pipeline, pairs, {})


def test_names_of_old_attention_processors(pipeline, tmp_path):
    pairs = random_pairs(pipeline, ATTENTION + TEXT)
    load_lora(pipeline, written(as_processors(pairs), tmp_path))
    assert_adds(pipeline, pairs, {})


@pytest.mark.parametrize("prefix", ["lora_unet_", "lycoris_"])
def test_alphas_that_differ_count_for_their_own_modules(pipeline, tmp_path, prefix):
    """In the middle block 2 at rank 8, a quarter; the library gives its attention the alpha of the most modules."""
    middle = ATTENTION + OTHERS[:1]
    elsewhere = [module.replace("mid_block", "down_blocks.0") for module in ATTENTION] + OTHERS[1:2]
    elsewhere += [module.replace("attn1", "attn2") for module in elsewhere[:2]]
    pairs = random_pairs(pipeline, middle + elsewhere + TEXT[:3], ranks=(8,))  # and no out_proj
    alphas = {**dict.fromkeys(middle, 2.0), **dict.fromkeys(elsewhere, 8.0), **dict.fromkeys(TEXT[:3], 4.0)}
    tensors = {name.replace("lora_unet_", prefix): tensor for name, tensor in as_kohya(pairs, alphas).items()}
    if prefix == "lycoris_":
        tensors = {name.replace("lora_te_", prefix): tensor for name, tensor in tensors.items()}
    load_lora(pipeline, written(tensors, tmp_path))
    assert_adds(pipeline, pairs, {module: alpha / 8 for module, alpha in alphas.items()})


def test_the_alpha_of_the_settings_wins(pipeline, tmp_path):
    pairs = random_pairs(pipeline, ATTENTION + TEXT, ranks=(4,))
    settings = {
        "unet.r": 4,
        "unet.lora_alpha": 2,
        "unet.alpha_pattern": {f"{SITE}.to_k": 6, "to_v": 1},
        "text_encoder.r": 4,
        "text_encoder.lora_alpha": 8,
        "text_encoder.use_rslora": True,
        "text_encoder.alpha_pattern": {f"text_model.{ENCODER}.k_proj": 2},
    }
    tensors = as_diffusers(pairs)
    tensors[f"unet.{SITE}.to_q.alpha"] = torch.tensor(100.0)
    load_lora(pipeline, written(tensors, tmp_path, settings))
    scales = dict(zip(ATTENTION, (0.5, 1.5, 0.25, 0.5)))
    scales.update(zip(TEXT, (4.0, 1.0, 4.0, 4.0)))
    assert_adds(pipeline, pairs, scales)


def test_a_rank_that_differs_from_the_usual_one_is_that_of_its_module(pipeline, tmp_path):
    pairs = random_pairs(pipeline, ATTENTION[:1], ranks=(4,))
    settings = {"unet.r": 8, "unet.lora_alpha": 8, "unet.rank_pattern": {ATTENTION[0].replace("unet.", "^", 1): 4}}
    load_lora(pipeline, written(as_diffusers(pairs), tmp_path, settings))
    assert_adds(pipeline, pairs, {ATTENTION[0]: 2.0})


def test_half_precision_and_kernels_written_for_linear_layers(pipeline, tmp_path):
    pairs = random_pairs(pipeline, ATTENTION)
    pairs = {module: tuple(matrix.half() for matrix in pair) for module, pair in pairs.items()}
    kernels = {module: tuple(matrix[..., None, None] for matrix in pair) for module, pair in pairs.items()}
    load_lora(pipeline, written(as_kohya(kernels, dict.fromkeys(ATTENTION, 1.0)), tmp_path))
    assert_adds(pipeline, pairs, dict.fromkeys(ATTENTION, 0.25))


@pytest.mark.skipif(not hasattr(UNet2DConditionModel, "save_lora_adapter"), reason="diffusers before 0.33 has none")
def test_what_the_library_saves_with_its_settings_is_what_it_drew(pipeline, tmp_path, refusal):
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(config, "x")
    drawn = draw(pipeline)
    layers, settings = get_peft_model_state_dict(pipeline.unet, adapter_name="x"), config.to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])
    type(pipeline).save_lora_weights(tmp_path, layers, unet_lora_adapter_metadata=settings)
    pipeline.unet.save_lora_adapter(tmp_path / "bare", adapter_name="x")
    pipeline.unload_lora_weights()
    load_lora(pipeline, tmp_path)
    assert abs(draw(pipeline) - drawn).max() < 1e-4
    pipeline.unload_lora_weights()
    assert "as save_lora_adapter and save_attn_procs write it" in refusal(tmp_path / "bare")


def test_a_loaded_lora_is_the_librarys(pipeline, without_lora, tmp_path):
    save_lora(random_lora(), tmp_path, kohya=True)
    load_lora(pipeline, tmp_path / KOHYA_FILE, "one")
    with_one = draw(pipeline)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_lora(pipeline, tmp_path, "two")
    assert abs(draw(pipeline) - with_one).max() < 1e-4 and abs(with_one - without_lora).max() > 0.05
    pipeline.set_adapters(["one", "two"], [0.5, 0.5])
    assert abs(draw(pipeline) - with_one).max() < 1e-4
    with pytest.raises(ValueError, match="LoRA 'two' already"):
        load_lora(pipeline, tmp_path, "two")
    pipeline.unload_lora_weights()
    assert (draw(pipeline) == without_lora).all()


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def test_a_checkpoints_inner_folder_leads_to_the_right_file(pipeline, tmp_path, refusal):
    denoiser = random_lora()
    inner = tmp_path / "checkpoint-6" / "lora"
    save_state(denoiser, denoiser.state_dict(), inner)
    for path in (inner, inner.parent, inner / "lora.safetensors"):
        sentence = refusal(path)
        assert "is a checkpoint from the middle of a training" in sentence and f"use {WEIGHTS_FILE}, which" in sentence
    right = save_lora(denoiser, tmp_path, kohya=False)
    assert refusal(inner).endswith(f"use {right.resolve()}.")
    load_lora(pipeline, tmp_path)


A = torch.ones(4, WIDTH)
B = torch.ones(WIDTH, 4)
GOOD = {f"unet.{SITE}.to_q.lora_A.weight": A, f"unet.{SITE}.to_q.lora_B.weight": B}
KOHYA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
DOWN_UP = {f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B}


def renamed(old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in GOOD.items()}


@pytest.mark.parametrize(
    "tensors, words",
    [
        ({**GOOD, f"unet.{SITE}.to_q.lora_A.weight": torch.ones(4, 320)},
         f"does not fit this base (its part for 'unet.{SITE}.to_q' is for a weight of shape ({WIDTH}, 320), not "),
        (renamed("mid_block", "middle"), "'unet.middle.attentions.0.transformer_blocks.0.attn1.to_q' is on no module"),
        ({**GOOD, **renamed("to_q", "to_x")}, "attn1.to_x' is on no module"),
        ({name.replace("mid_block", "middle_block_1"): t for name, t in DOWN_UP.items()}, "is on no module"),
        ({}, "holds no weights at all"),
        ({f"{KOHYA}.alpha": torch.tensor(1.0)}, "lacks the matrix A and B of"),
        ({name: t for name, t in GOOD.items() if "_A" in name}, f"lacks the matrix B of 'unet.{SITE}.to_q'"),
        ({**GOOD, f"unet.{SITE}.to_q.lora.down.weight": A}, "has the matrix A of"),
        ({**GOOD, **DOWN_UP}, "has two parts for"),
        ({**DOWN_UP, f"{KOHYA}.alpha": torch.tensor(float("nan"))}, "has an alpha at"),
        ({**DOWN_UP, f"{KOHYA}.alpha": torch.ones(2)}, "has an alpha at"),
        ({**GOOD, f"unet.{SITE}.to_q.lora_B.weight": B * float("nan")}, "that are not finite"),
        ({**DOWN_UP, f"{KOHYA}.dora_scale": torch.ones(WIDTH, 1)}, "is a DoRA"),
        ({**GOOD, f"unet.{SITE}.to_q.lora_magnitude_vector": torch.ones(WIDTH)}, "is a DoRA"),
        ({f"{KOHYA}.{name}": A for name in ("hada_w1_a", "hada_w1_b", "alpha")}, "is a LoHa"),
        ({f"{SITE}.to_q.{name}": A for name in ("hada_w1_a", "hada_w1_b")}, "is a LoHa"),
        ({f"base_model.model.{SITE}.to_q.lokr_w1": A}, "is a LoKr"),
        ({f"{KOHYA}.lokr_w1": A, f"{KOHYA}.lokr_w2": A}, "is a LoKr"),
        ({f"{KOHYA}.oft_blocks": A}, "is an OFT"),
        ({f"base_model.model.{SITE}.to_q.oft_R.weight": A}, "is an OFT"),
        ({f"{SITE}.to_q.boft_R": A}, "is an OFT"),
        ({f"base_model.model.{SITE}.to_k.ia3_l": A}, "is an IA3"),
        ({f"{KOHYA}.weight": A, f"{KOHYA}.on_input": torch.ones(1)}, "is an IA3"),
        ({**DOWN_UP, f"{KOHYA}.lora_mid.weight": torch.ones(4, 4, 3, 3)}, "Tucker"),
        ({f"{KOHYA}.diff": B @ A}, "whole differences of weights"),
        ({**DOWN_UP, f"{KOHYA.replace('lora_unet', 'lycoris')}.scalar": torch.ones(1)}, "which no plain LoRA has"),
        ({**GOOD, f"unet.{SITE}.to_q.lora_B.bias": torch.ones(WIDTH)}, "is a LoRA with biases"),
        ({**GOOD, f"unet.{SITE}.to_q.lora_B.weight": B.to(torch.int8)}, "in torch.int8, as whole numbers"),
        (renamed("unet.", ""), "as save_lora_adapter and save_attn_procs write it"),
        ({f"{SITE}.processor.to_q_lora.down.weight": A}, "as save_lora_adapter and save_attn_procs write it"),
        ({"unet:0:up": A, "unet:0:down": B}, "numbers in place of names"),
        (renamed("unet.", "base_model.model."), "is in PEFT's layout"),
        (renamed("unet.", "unet.base_model.model."), "is in PEFT's layout"),
        (renamed("unet.", "transformer."), "is a LoRA for a model with a transformer"),
        (renamed("unet.", "text_encoder_2."), "is a LoRA for Stable Diffusion XL"),
        ({name.replace("lora_unet", "lora_te2"): tensor for name, tensor in DOWN_UP.items()}, "Stable Diffusion XL"),
        ({"emb_params": A}, "textual inversion"),
        ({"<cat-toy>": A}, "textual inversion"),
        ({**DOWN_UP, "bundle_emb.cat.string_to_param.*": A}, "textual inversion"),
        ({"model.diffusion_model.out.2.weight": A}, "is a whole model"),
        ({"conv_in.weight": A}, "holds whole weights such as 'conv_in.weight'"),
        ({"controlnet_cond_embedding.conv_in.weight": A}, "is a ControlNet"),
    ],
)  # fmt: skip
def test_what_is_no_lora_for_this_base_is_called_what_it_is(pipeline, tmp_path, tensors, words):
    with pytest.raises(LoraFileError) as error:
        load_lora(pipeline, written({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path))
    assert words in str(error.value) and str(error.value).startswith(str(tmp_path)), error.value
    assert not any("lora" in name for name, _ in pipeline.unet.named_modules())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: LoraConfig(r=4, target_modules=["to_q"]), "is in PEFT's layout"),
        (lambda: LoraConfig(r=4, target_modules=["to_q"], use_dora=True), "is a DoRA"),
        (lambda: LoHaConfig(r=4, target_modules=["to_q"]), "is a LoHa"),
        (lambda: LoKrConfig(r=4, target_modules=["to_q"]), "is a LoKr"),
        (lambda: IA3Config(target_modules=["to_q"], feedforward_modules=[]), "is an IA3"),
    ],
)
def test_the_folders_that_peft_writes_are_called_what_they_are(pipeline, tmp_path, make, words, refusal):
    get_peft_model(UNet2DConditionModel.from_pretrained(BASE, subfolder="unet"), make()).save_pretrained(tmp_path)
    assert words in refusal(tmp_path)
    assert words in refusal(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"unet.r": 4, "unet.lora_alpha": 4, "unet.init_lora_weights": "pissa"}, "changed weights of the base"),
        ({"unet.use_dora": True}, "is a DoRA"),
        ({"unet.lora_alpha": "many"}, "no usable number: 'many'"),
        ({"unet.lora_alpha": 0}, "no usable number: '0'"),
        ({"unet.lora_alpha": True}, "no usable number: 'True'"),
        ({"unet.lora_alpha": [8]}, "no usable number: 'list'"),
        ({"unet.lora_alpha": float("inf")}, "has an alpha at"),
        ({"unet.alpha_pattern": {"(a+)+": 2}}, "alpha_pattern in its lora_adapter_metadata that is not read"),
        ({"unet.r": 8, "unet.lora_alpha": 8}, "has matrices of rank 4 at"),
        ({"unet.r": 4, "unet.rank_pattern": {"attn1.to_q": 8}}, "by its lora_adapter_metadata of rank '8'"),
        ([1], "is not a JSON object"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(pipeline, tmp_path, settings, words, refusal):
    assert words in refusal(written({name: t.clone() for name, t in GOOD.items()}, tmp_path, settings))


def test_paths_without_a_lora_say_so(pipeline, tmp_path, refusal):
    assert f"{tmp_path / 'none'} is not there" in refusal(tmp_path / "none")
    assert "run the training to its end" in refusal(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"PK")
    assert "has no safetensors file, only adapter_model.bin: use pytorch_lora" in refusal(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"PK\3\4" + bytes(100))
    assert "cannot be read as safetensors" in refusal(tmp_path)
    shutil.copy(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    assert "has several files (x.safetensors, y.safetensors): name the file" in refusal(tmp_path)


def test_what_does_not_arrive_leaves_the_pipeline_as_it_was(pipeline, tmp_path, monkeypatch):
    """As if another release of peft took only some of the modules."""
    pairs = random_pairs(pipeline, ATTENTION + TEXT)
    inject = files.inject
    monkeypatch.setattr(
        files, "inject", lambda model, matrices, name: inject(model, dict([*matrices.items()][1:]), name)
    )
    file, before = written(as_diffusers(pairs), tmp_path), draw(pipeline)
    with pytest.raises(LoraFileError, match="did not arrive in the model"):
        load_lora(pipeline, file)
    assert (draw(pipeline) == before).all()
    monkeypatch.undo()
    load_lora(pipeline, tmp_path)
    assert_adds(pipeline, pairs, {})


def test_pictures_that_are_not_finite_are_no_pictures(pipeline, tmp_path):
    huge = {name: torch.full_like(tensor, 1e30) for name, tensor in GOOD.items()}
    load_lora(pipeline, written(huge, tmp_path))
    with pytest.raises(DrawingError, match="not finite"):
        generate(pipeline, ["a cat"], [0], num_inference_steps=2)

"""Prints how LoRAs of others' layouts arrive in diffusers as it is installed, and in our loader: the table of
docs/reference/files.md. Not a part of the tests, as it says what a library does and not what is right:

    PYTHONPATH=.:task_2_lora:tests/support python tests/files/others_loras.py
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Callable

import diffusers
import peft
import torch
from diffusers import StableDiffusionPipeline
from test_lora_files import as_diffusers, as_kohya, as_processors, random_pairs, written

from lora.files import load_lora
from lora.layouts import LoraFileError
from processes import BASE

ATTENTION = [
    f"unet.{block}.attentions.0.transformer_blocks.0.attn{i}.{name}"
    for block in ("down_blocks.0", "mid_block")
    for i in (1, 2)
    for name in ("to_q", "to_k", "to_v", "to_out.0")
]
CONVOLUTIONS = ["unet.down_blocks.0.resnets.0.conv1", "unet.mid_block.resnets.1.conv2"]
TEXT = [f"text_encoder.encoder.layers.{i}.self_attn.{name}_proj" for i in range(3) for name in ("q", "k", "v", "out")]
RANK = 4


def lycoris(pairs: dict) -> dict[str, torch.Tensor]:
    return {name.replace("lora_unet_", "lycoris_"): tensor for name, tensor in as_kohya(pairs, all_of(pairs)).items()}


def all_of(pairs: dict, alpha: float = RANK) -> dict[str, float]:
    return {module: alpha for module in pairs}


def with_scale(pairs: dict) -> dict[str, torch.Tensor]:
    tensors = as_kohya(pairs, all_of(pairs))
    ups = {name: tensor for name, tensor in tensors.items() if name.endswith("lora_up.weight")}
    scales = {name.replace("lora_up.weight", "dora_scale"): torch.ones(len(up), 1) for name, up in ups.items()}
    return {**tensors, **scales}


def factors(pairs: dict, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Tensors of those names in place of A and B: what they hold does not matter to whether they are known."""
    modules = [module.replace("unet.", "lora_unet_").replace(".", "_") for module in pairs]
    return {f"{module}.{name}": torch.rand(4, 4) for module in modules for name in names}


def peft_folder(pairs: dict) -> dict[str, torch.Tensor]:
    return {f"base_model.model.{name}": tensor for name, tensor in as_diffusers(pairs).items()}


differing = {module: float(2 ** (i % 3)) for i, module in enumerate([*ATTENTION, *CONVOLUTIONS])}
mostly = {module: 2.0 if module in CONVOLUTIONS else float(RANK) for module in [*ATTENTION, *CONVOLUTIONS]}
settings = {"unet.r": RANK, "unet.lora_alpha": 2 * RANK, "unet.target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
NOT_PLAIN = {"Kohya, DoRA"}  # more than two matrices: whoever loads these alone loads something else
# What it is, the modules, the tensors, each module's scale, the settings beside the tensors.
Case = "tuple[str, list[str], Callable[[dict], dict], dict[str, float], dict | None]"
CASES: list[Case] = [
    ("diffusers, `lora_A`", ATTENTION + TEXT, as_diffusers, {}, None),
    ("the same with settings, alpha twice the rank", ATTENTION, as_diffusers, dict.fromkeys(ATTENTION, 2.0), settings),
    ("diffusers, `lora.down`", ATTENTION + TEXT, lambda p: as_diffusers(p, ".lora.down", ".lora.up"), {}, None),
    ("attention processors, `processor.to_q_lora.down`", ATTENTION, as_processors, {}, None),
    ("diffusers, convolutions too", ATTENTION + CONVOLUTIONS, as_diffusers, {}, None),
    ("Kohya, alpha the rank", ATTENTION, lambda p: as_kohya(p, all_of(p)), {}, None),
    ("Kohya, one alpha", ATTENTION, lambda p: as_kohya(p, all_of(p, 1.0)), dict.fromkeys(ATTENTION, 0.25), None),
    ("Kohya, no alphas", ATTENTION, lambda p: as_kohya(p, {}), {}, None),
    ("Kohya, alphas of attention that differ", ATTENTION, lambda p: as_kohya(p, differing),
     {module: differing[module] / RANK for module in ATTENTION}, None),
    ("Kohya, convolutions with another alpha", ATTENTION + CONVOLUTIONS, lambda p: as_kohya(p, mostly),
     dict.fromkeys(CONVOLUTIONS, 0.5), None),
    ("Kohya, text encoder whole", ATTENTION + TEXT, lambda p: as_kohya(p, all_of(p)), {}, None),
    ("Kohya, text encoder without out_proj", ATTENTION + [t for t in TEXT if "out_proj" not in t],
     lambda p: as_kohya(p, all_of(p)), {}, None),
    ("Kohya, with a module that the base lacks", ATTENTION,
     lambda p: {n.replace("mid_block_attentions_0", "mid_block_attentions_7"): t
                for n, t in as_kohya(p, all_of(p)).items()}, {}, None),
    ("LyCORIS, plain LoRA", ATTENTION, lycoris, {}, None),
    ("Kohya, DoRA", ATTENTION, with_scale, {}, None),
    ("LoHa", ATTENTION, lambda p: factors(p, ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha")), {}, None),
    ("LoKr", ATTENTION, lambda p: factors(p, ("lokr_w1", "lokr_w2", "alpha")), {}, None),
    ("PEFT's folder, `base_model.model.`", ATTENTION, peft_folder, {}, None),
]  # fmt: skip


def strengths(pipeline: StableDiffusionPipeline, pairs: dict, scales: dict[str, float]) -> list[float]:
    """What each module got of what it should: 1 is right, 0 nothing."""
    found = []
    for module, (a, b) in pairs.items():
        part, _, name = module.partition(".")
        model = getattr(pipeline, part)
        names = dict(model.named_modules())
        layer = names.get(name) or names[f"text_model.{name}"]
        wanted = scales.get(module, 1.0) * (b.flatten(1) @ a.flatten(1))
        got = layer.get_delta_weight(next(iter(layer.lora_A))) if getattr(layer, "lora_A", None) else 0 * wanted
        ratio = float((got.flatten(1) * wanted).sum() / (wanted * wanted).sum())
        same = torch.allclose(got.flatten(1), ratio * wanted, atol=1e-4)
        found.append(ratio if same else float("nan"))
    return found


def outcome(load: Callable[[StableDiffusionPipeline, Path], None], case: Case, folder: Path) -> str:
    _, modules, write, scales, metadata = case
    pipeline = StableDiffusionPipeline.from_pretrained(BASE)
    pairs = random_pairs(pipeline, modules)
    file = written(write(pairs), folder, metadata)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(pipeline, file)
    except LoraFileError as error:
        return f"refused: {error.what}"
    except Exception as error:  # whatever a library raises is what is to be told
        return f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
    if case[0] in NOT_PLAIN:
        return "WRONG: loaded as a plain LoRA"
    ratios = strengths(pipeline, pairs, scales)
    if all(abs(ratio - 1) < 1e-3 for ratio in ratios):
        return "right"
    wrong = sorted({round(ratio, 3) for ratio in ratios if not abs(ratio - 1) < 1e-3})
    return f"WRONG in {sum(not abs(ratio - 1) < 1e-3 for ratio in ratios)} of {len(ratios)} modules: times {wrong}"


def main() -> None:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    print(f"| file | diffusers {diffusers.__version__}, peft {peft.__version__} | our loader |\n|---|---|---|")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            library = outcome(
                lambda pipeline, file: pipeline.load_lora_weights(str(file.parent), weight_name=file.name),
                case, Path(folder),
            )  # fmt: skip
            ours = outcome(load_lora, case, Path(folder))
        print(f"| {case[0]} | {library} | {ours} |", flush=True)


if __name__ == "__main__":
    main()

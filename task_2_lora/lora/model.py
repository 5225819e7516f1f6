"""LoRA on Stable Diffusion: where it sits, how it is called while it learns, and the files it is kept in.

A frozen matrix W becomes W + (alpha / rank) B A, with A of shape (rank, in) and B of shape (out, rank); B starts at
zero, so that an untrained LoRA changes nothing (Hu et al., 2021, https://arxiv.org/abs/2106.09685, section 4.1).
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from finetune.model.base import BaseModel, load_part
from finetune.model.cards import read_texts, write_texts
from finetune.run.checkpoints import give_rights
from finetune.setup import place_frozen, use_fast_attention
from lora.layouts import METADATA_KEY, WEIGHTS_FILE

# Query, key, value and output: what Hu et al. adapt of a Transformer (section 4.2), with all else left as it is.
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
# Attention says what goes where; what a thing looks like is in the convolutions. A small base wants both: on the
# embedded one five of the sample cat's six marks were in 16 of 20 pictures with all layers, in none with attention.
UNET_TARGETS = {
    "attention": ATTENTION,
    "all": [*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"],
}
TEXT_ENCODER_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
KOHYA_FILE = "pytorch_lora_weights_kohya.safetensors"
NO_TEXTS = {"format": "pt"}  # beside the tensors: for which library they are, and nothing else


class LoraDenoiser(torch.nn.Module):
    """A frozen UNet with a LoRA on its `layers`, and where it is given the text encoder with one of its own.

    Only the LoRA's matrices are trainable; they are float32 whatever the precision of the frozen weights.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel | None,
        rank: int,
        alpha: float,
        layers: str = "attention",
    ) -> None:
        super().__init__()
        # Divided by the rank so that a sum of more products is no louder: a learning rate that was found for one rank
        # serves the next (Hu et al., section 4.1, where alpha is a constant that is not tuned).
        self.scale = alpha / rank
        self.unet = unet
        self.text_encoder = text_encoder
        for model, targets in ((unet, UNET_TARGETS[layers]), (text_encoder, TEXT_ENCODER_TARGETS)):
            if model is not None:
                model.requires_grad_(False)
                # A at random and B at zero: the product is zero, the base draws what it drew, and B has a gradient all
                # the same, as the zero convolution has. Both at zero, neither would ever move.
                model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
        for parameter in self.trainable_parameters():
            # They may come in the frozen weights' half precision, in which a training's small steps are rounded away.
            parameter.data = parameter.data.float()

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        """A list, as an iterator would be empty for whoever asks second."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The predicted noise (or velocity), of the latents' shape.

        `text` is token ids of shape (batch, tokens) if the text encoder learns too, else its embeddings.
        """
        if self.text_encoder is not None:
            text = self.text_encoder(text)[0]  # (B, T, D)
        return self.unet(noisy_latents, timesteps, text).sample  # (B, 4, H / 8, W / 8)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Within it all is as without a LoRA: the base's own predictions."""
        adapted = [model for model in (self.unet, self.text_encoder) if model is not None]
        for model in adapted:
            model.disable_adapters()
        try:
            yield
        finally:
            for model in adapted:
                model.enable_adapters()


def load_denoiser(
    base: BaseModel,
    rank: int,
    alpha: float,
    layers: str,
    train_text_encoder: bool,
    gradient_checkpointing: bool,
    seed: int,
    accelerator: Accelerator,
) -> LoraDenoiser:
    """The base's UNet (and text encoder, which `base` then shares) with a fresh LoRA, on the device."""
    unet = load_part(UNet2DConditionModel, base.name, "unet")
    # The base needs no gradients and no averages: at Stable Diffusion's size a batch of 4 peaks at 6.1 GiB (H200,
    # 2026-11-29), all of a ControlNet at 11.2.
    place_frozen(unet, accelerator)
    use_fast_attention(unet, accelerator.device)
    set_seed(seed)  # the same start, whatever was drawn at random before, such as the order of what was encoded
    denoiser = LoraDenoiser(unet, base.text_encoder if train_text_encoder else None, rank, alpha, layers)
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return denoiser.train().to(accelerator.device)


def save_state(denoiser: LoraDenoiser, state_dict: dict[str, torch.Tensor], folder: Path) -> None:
    """What a checkpoint keeps: the matrices as they are, under the module's own names."""
    folder.mkdir(parents=True, exist_ok=True)
    # Not the base: a checkpoint of 3 MB in place of 1.7 GB, and the base is there anyway.
    trained = [name for name, parameter in denoiser.named_parameters() if parameter.requires_grad]
    matrices = {name: state_dict[name].detach().cpu().contiguous() for name in trained}
    save_file(matrices, str(folder / "lora.safetensors"))


def load_state(denoiser: LoraDenoiser, folder: Path) -> None:
    """Reads back what `save_state` wrote. Raises ValueError if it belongs to another kind of LoRA."""
    state = load_file(str(folder / "lora.safetensors"))
    own = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    shapes = {name: p.shape for name, p in own.items()}
    # Before anything is copied: a LoRA half of which is another's trains on without an error.
    if shapes != {name: tensor.shape for name, tensor in state.items()}:
        raise ValueError(
            f"{folder} is of a LoRA with another --rank, other --lora_layers, or with or without --train_text_encoder."
        )
    for name, parameter in own.items():
        parameter.data.copy_(state[name])


def lora_weights(denoiser: LoraDenoiser) -> dict[str, torch.Tensor]:
    """A and B of every adapted module, on the CPU, named `unet.<module>.lora_A.weight` and so on.

    The file's format has no place for alpha: readers take it to be the rank, so the scale goes into B.
    """
    weights = {}
    for prefix, model in (("unet", denoiser.unet), ("text_encoder", denoiser.text_encoder)):
        # No embedding is trained: peft need not look in the base for the size of its vocabulary, and warn.
        matrices = {} if model is None else get_peft_model_state_dict(model, save_embedding_layers=False)
        for name, tensor in matrices.items():
            # transformers 5.6 dropped a prefix: with it, every release of diffusers can read the file.
            name = f"text_model.{name.replace('text_model.', '')}" if prefix == "text_encoder" else name
            # In one of the two, or it would count twice.
            scale = denoiser.scale if ".lora_B." in name else 1.0
            weights[f"{prefix}.{name}"] = (tensor.detach().float() * scale).cpu().contiguous()
    return weights


def to_kohya(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that ComfyUI and AUTOMATIC1111 read; alpha is a tensor of its own for each module."""
    result = {}
    for name, tensor in weights.items():
        module, matrix = name.rsplit(".lora_", 1)
        # Kohya's names write `_` for `.`, so that nobody can tell from a name alone which of them were dots.
        module = module.replace("unet.", "lora_unet.", 1).replace("text_encoder.", "lora_te.", 1).replace(".", "_")
        result[f"{module}.lora_{'down' if matrix == 'A.weight' else 'up'}.weight"] = tensor
        if matrix == "A.weight":
            result[f"{module}.alpha"] = torch.tensor(float(len(tensor)))  # the rank: A is (rank, in)
    return result


def peft_settings(denoiser: LoraDenoiser) -> str:
    """PEFT's configuration as diffusers reads it from the file since 2025, believing no other alpha then.

    Only what makes the LoRA: releases of PEFT fail on a field that they do not know. As the scale is in B, alpha is
    the rank here, too.
    """
    settings = {}
    for part, model in (("unet", denoiser.unet), ("text_encoder", denoiser.text_encoder)):
        if model is not None:
            config = model.peft_config["default"]
            # diffusers believes these numbers more than the tensors: with alpha as trained the scale would count twice.
            settings[f"{part}.r"] = settings[f"{part}.lora_alpha"] = config.r
            settings[f"{part}.target_modules"] = sorted(config.target_modules)
    return json.dumps(settings, sort_keys=True)


def save_lora(denoiser: LoraDenoiser, folder: Path, kohya: bool, texts: Mapping[str, str] = NO_TEXTS) -> Path:
    """Writes what `load_lora_weights` reads, and on request Kohya's layout beside it; each appears whole or not.

    Where that lies there already, of fewer steps perhaps, it is written again in any case.

    `texts` stand beside the tensors, as `finetune.model.cards.file_texts` makes them.
    """
    weights = lora_weights(denoiser)
    folder.mkdir(parents=True, exist_ok=True)
    if kohya or (folder / KOHYA_FILE).is_file():
        write_weights(to_kohya(weights), folder / KOHYA_FILE, texts)
    return write_weights(weights, folder / WEIGHTS_FILE, {**texts, METADATA_KEY: peft_settings(denoiser)})


def save_kohya(folder: Path) -> Path:
    """Writes Kohya's layout beside the file that `save_lora` wrote. Raises OSError if that is not there."""
    file = folder / WEIGHTS_FILE
    weights = to_kohya(load_file(str(file)))
    texts = read_texts(file)
    texts.pop(METADATA_KEY, None)  # diffusers refuses a file that has it beside alphas
    return write_weights(weights, folder / KOHYA_FILE, texts)


def write_weights(weights: dict[str, torch.Tensor], file: Path, texts: Mapping[str, str]) -> Path:
    # A demo that reads the file while it is written again never sees half of it.
    temporary = file.with_name(f".{file.name}.tmp")
    save_file(weights, str(temporary), metadata=NO_TEXTS)
    write_texts(temporary, texts)
    give_rights(temporary)
    os.replace(temporary, file)
    return file

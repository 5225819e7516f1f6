"""The base model: the parts of a Stable Diffusion folder or hub name, loaded one by one, with errors that help."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator, Sequence

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..devices import picture_layout, send
from .dtypes import dtype_argument

EMBEDDED_BASE = "the embedded base, which needs neither a GPU nor the hub (--pretrained_model_name_or_path ../tiny_sd)"


class BaseModelError(RuntimeError):
    """The base model cannot be had; the message says what to do."""


def load_part(part_class: type, name: str, subfolder: str, dtype: torch.dtype = torch.float32) -> Any:
    """`part_class.from_pretrained`, with a message that says what to do when there is nothing to load.

    Models come in `dtype`, whatever the data type of their files; of themselves not all libraries convert it.

    Raises:
        BaseModelError: if the folder lacks the part, the hub is out of reach, or the licence is not accepted.
    """
    argument = dtype_argument(part_class, dtype) if issubclass(part_class, torch.nn.Module) else {}
    with loading(name, subfolder):
        return part_class.from_pretrained(name, subfolder=subfolder, **argument)


def load_configs(name: str) -> tuple[dict[str, Any], dict[str, Any], CLIPTextConfig]:
    """The configurations of UNet, VAE and text encoder, without their weights. Raises BaseModelError."""
    with loading(name, "unet"):
        unet = UNet2DConditionModel.load_config(name, subfolder="unet")
    with loading(name, "vae"):
        vae = AutoencoderKL.load_config(name, subfolder="vae")
    with loading(name, "text_encoder"):
        return unet, vae, CLIPTextConfig.from_pretrained(name, subfolder="text_encoder")


def factor_of(vae_config: dict[str, Any]) -> int:
    """So many px of a picture's side are one of its latents'."""
    # The autoencoder halves between its blocks: four make 8, in Stable Diffusion and in the embedded base.
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def drawn_size(pipeline: Any) -> int:
    """The side of the pictures that the base in a pipeline was trained on, px. Raises BaseModelError."""
    # One number, or height and width: configurations have either.
    size = pipeline.unet.config.sample_size
    sides = {size} if isinstance(size, int) else set(size or ())
    if len(sides) != 1:
        raise BaseModelError(
            f"The base's unet/config.json has a sample_size of {size}, but pictures are drawn in squares: write the "
            f"side of the latents there, one number."
        )
    return sides.pop() * pipeline.vae_scale_factor


@contextmanager
def loading(name: str, subfolder: str) -> Iterator[None]:
    """Raises BaseModelError, which says what to do, where a part of a base model cannot be had."""
    try:
        yield
    except OSError as error:
        raise BaseModelError(
            f"Cannot load {subfolder!r} of the base model {name!r}: {str(error).splitlines()[0]}\n"
            f"- A local base model must be a folder as diffusers saves it, with a subfolder {subfolder!r}.\n"
            f"- A model of the Hugging Face hub needs a connection; some need that you accept their licence on the "
            f"model's page and log in with `hf auth login` (in older releases `huggingface-cli login`).\n"
            f"- Or use {EMBEDDED_BASE}."
        ) from error


@dataclass
class BaseModel:
    """What turns images and prompts into what the denoiser is trained on: frozen, float32, in eval mode."""

    name: str
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler

    @classmethod
    def load(cls, name: str) -> BaseModel:
        """Loads from a local folder or the hub. Raises BaseModelError."""
        text_encoder = load_part(CLIPTextModel, name, "text_encoder")
        vae = load_part(AutoencoderKL, name, "vae")
        return cls(
            name=name,
            tokenizer=load_part(CLIPTokenizer, name, "tokenizer"),
            # float32 and without dropout: what they say is kept on the disk, and is to be the same at every start.
            text_encoder=text_encoder.requires_grad_(False).eval(),
            vae=vae.requires_grad_(False).eval(),
            # Whatever sampler the folder names: of it the noise schedule counts here, which all have.
            scheduler=load_part(DDPMScheduler, name, "scheduler"),
        )

    def to(self, device: torch.device | str) -> BaseModel:
        self.text_encoder.to(device)
        self.vae.to(device)
        return self

    @property
    def factor(self) -> int:
        """So many px of a picture's side are one of its latents'."""
        return factor_of(self.vae.config)

    def require_size(self, resolution: int) -> None:
        """Raises ValueError if the autoencoder cannot take pictures of so many px."""
        if resolution % self.factor:
            raise ValueError(f"The base {self.name!r} needs a --resolution that is a multiple of {self.factor} px.")

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Both networks on `device` for a while; afterwards each is back where it was."""
        places = {part: part.device for part in (self.text_encoder, self.vae)}
        self.to(device)
        try:
            # Else validation would leave the encoders on the GPU, in the memory that the training needs.
            yield
        finally:
            for part, place in places.items():
                part.to(place)

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids of shape (len(prompts), tokens), padded and cut to the text encoder's length, on its device."""
        length = self.tokenizer.model_max_length
        # Filled up to the full length, 77 in CLIP and 32 in the embedded base: UNets have learnt with the filling.
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return tokens.input_ids.to(self.text_encoder.device)  # (n, T)

    def tell_of_cut(self, prompts: Iterable[str], tell: Callable[[str], None]) -> None:
        """Tells how many of the different prompts `tokenize` cuts, and what is left of one of them."""
        length = self.tokenizer.model_max_length
        different = set(prompts)
        # A token has at least one byte, and two of them mark the ends: short prompts need not be looked at.
        long = sorted(prompt for prompt in different if len(prompt.encode(errors="replace")) > length - 2)
        ids = self.tokenizer(long, verbose=False).input_ids if long else []
        cut = [(prompt, of_prompt) for prompt, of_prompt in zip(long, ids) if len(of_prompt) > length]
        if cut:
            prompt, of_prompt = cut[0]
            left = self.tokenizer.decode(of_prompt[: length - 1], skip_special_tokens=True)
            tell(
                f"Note: the text encoder reads {length} tokens, and prompts that are longer are cut: {len(cut)} of "
                f"{len(different)} different ones. Of {prompt!r} it reads {left!r}."
            )

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text embeddings of shape (len(prompts), tokens, cross_attention_dim), float32 on the encoder's device."""
        return self.text_encoder(self.tokenize(prompts))[0].float()  # (n, T, D), one for each token

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Latents at the scheduler's scale: (batch, 3, height, width) in -1..1 to (batch, 4, height / 8, width / 8).

        The posterior's mean, without its noise: in the embedded base its deviation is a hundredth of the latents',
        and what is not random needs to be computed only once.
        """
        images = images.to(self.vae.device, memory_format=picture_layout(self.vae.device))
        latents = self.vae.encode(images).latent_dist.mean  # (B, 3, H, W) to (B, 4, H / 8, W / 8)
        # To unit variance, which the noise schedule is made for: 0.18215 in Stable Diffusion (Rombach et al., 2022).
        return latents.float() * self.vae.config.scaling_factor

    def encoded(self, batch: dict[str, Any], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and text embeddings of a batch of `Samples`: those that it holds, else computed now."""
        if "latents" in batch:
            return send(batch["latents"], device), send(batch["text_embeddings"], device)  # (B, 4, h, w), (B, T, D)
        return self.encode_images(batch["image"]), self.encode_prompts(batch["text"])

    def fingerprint(self) -> str:
        """Identifies what latents and text embeddings depend on, wherever it was loaded from."""
        digest = hashlib.sha256()
        # A token's number is a row of the text encoder's table: of the same weights other words would be read.
        tokens = sorted(self.tokenizer.get_vocab().items()), self.tokenizer.model_max_length
        digest.update(repr((tokens, self.vae.config.scaling_factor)).encode(errors="replace"))
        # The decoder is left out: latents do not depend on it, and one that was trained on alone keeps the cache.
        for module in (self.vae.encoder, self.vae.quant_conv, self.text_encoder):
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

"""The usual scores of LoRAs, by models of the hub (Ruiz et al., 2022, arXiv 2208.12242, section 4.2).

CLIP-T is the cosine of a picture and its prompt, CLIP-I that of a picture and the training images, both by CLIP; DINO
is as CLIP-I, by a vision transformer that was trained without words and so tells individuals apart.
"""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from finetune.model.base import BaseModelError


def load(part: type, model: str) -> object:
    try:
        return part.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"Cannot load {model}: {error}\nCheck its name and the connection, or leave --clip and --dino away."
        ) from error


def closeness(images: torch.Tensor, training: torch.Tensor) -> list[float]:
    """Mean cosine of each picture's features, (N, D), with those of all training images, (M, D)."""
    # (N, D) times (D, M): a table of cosines.
    return (F.normalize(images, dim=1) @ F.normalize(training, dim=1).T).mean(1).tolist()


@torch.no_grad()
def clip_scores(
    model: str, images: Sequence[Image.Image], prompts: Sequence[str], training: Sequence[Image.Image]
) -> dict[str, list[float]]:
    """CLIP-T and CLIP-I of each picture, each -1 to 1.

    Raises:
        BaseModelError: if the model cannot be loaded.
    """
    clip = load(CLIPModel, model).eval()
    processor, tokenizer = load(AutoImageProcessor, model), load(AutoTokenizer, model)

    def embed(pictures: Sequence[Image.Image]) -> torch.Tensor:
        pixels = processor(images=list(pictures), return_tensors="pt").pixel_values
        # Projected into the space that CLIP shares between pictures and words, where alone both compare.
        return clip.visual_projection(clip.vision_model(pixels).pooler_output)  # (N, D)

    tokens = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
    texts = clip.text_projection(clip.text_model(**tokens).pooler_output)  # (N, D)
    pictures = embed(images)
    return {
        "CLIP-T": F.cosine_similarity(pictures, texts).tolist(),
        "CLIP-I": closeness(pictures, embed(training)),
    }


@torch.no_grad()
def dino_scores(model: str, images: Sequence[Image.Image], training: Sequence[Image.Image]) -> dict[str, list[float]]:
    """DINO score of each picture, -1 to 1.

    Raises:
        BaseModelError: if the model cannot be loaded.
    """
    dino, processor = load(AutoModel, model).eval(), load(AutoImageProcessor, model)

    def embed(pictures: Sequence[Image.Image]) -> torch.Tensor:
        pixels = processor(images=list(pictures), return_tensors="pt").pixel_values
        return dino(pixels).last_hidden_state[:, 0]  # the class token: (N, D)

    return {"DINO": closeness(embed(images), embed(training))}

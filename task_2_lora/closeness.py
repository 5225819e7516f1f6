"""How close did pictures come to the training images: in style, and in the subject that they show? And how far did the
subject's class move, which should stay as it was?

All measures need only the base's VAE, so they work without a hub: its encoder's activations are the features. What
they are worth is measured in tests/loras/test_closeness.py on true images of the style and of the subject.
"""

from __future__ import annotations

from math import isfinite
from statistics import mean
from typing import Mapping, Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from finetune.data.images import square, to_tensor

# At the embedded base's 128 px a part is 8 px wide, about as large as one of the cat's eyes.
PIXELS_AT_ONCE = 2 * 512 * 512  # in the encoder
GRID = 16  # parts of a picture along each side, for the subject


@torch.no_grad()
def encoder_features(
    vae: AutoencoderKL, images: Sequence[Image.Image], resolution: int, without_last: int = 0
) -> list[torch.Tensor]:
    """What the VAE's encoder makes of pictures at each of its levels: tensors (images, channels, height, width)."""
    encoder = vae.encoder
    blocks = encoder.down_blocks[: len(encoder.down_blocks) - without_last]
    kept: list[torch.Tensor] = []
    # From single pixels, (N, C, H, W), to parts of things, (N, C, H / 8, W / 8): hooks keep what each level gives,
    # before the next one's size. Behind the levels, where the encoder goes on to latents, nothing is asked for.
    layers = [encoder.conv_in, *(block.resnets[-1] for block in blocks)]
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: kept.append(output.float())) for layer in layers
    ]
    try:
        pixels = torch.stack([to_tensor(square(image, resolution)) for image in images]) * 2 - 1  # (N, 3, H, W)
        features = encoder.conv_in(pixels.to(vae.device, vae.dtype))
        for block in blocks:
            features = block(features)
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def gram(features: torch.Tensor) -> torch.Tensor:
    """How channels go together, wherever: (images, channels, channels) of (images, channels, height, width)."""
    flat = features.flatten(2)  # (N, C, H * W)
    # Divided by the places: levels of 16,384 and of 256 count alike.
    return flat @ flat.transpose(1, 2) / flat.shape[2]  # (N, C, C)


def grams(vae: AutoencoderKL, images: Sequence[Image.Image], resolution: int) -> list[torch.Tensor]:
    """The Gram matrices of each of the encoder's levels: (images, channels, channels)."""
    # A few at a time: a style may be learnt from hundreds of pictures, and the first level's features are as large as
    # the pictures, with many channels.
    few = max(1, PIXELS_AT_ONCE // resolution**2)
    parts = [
        [gram(level) for level in encoder_features(vae, images[start : start + few], resolution)]
        for start in range(0, len(images), few)
    ]
    return [torch.cat(level) for level in zip(*parts)]


def relative_distances(own: list[torch.Tensor], targets: list[torch.Tensor]) -> list[float]:
    """Of N pictures' Gram matrices from one target at each level, (1, C, C), or from one each, (N, C, C)."""
    distances = [
        (matrices - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)
        for matrices, target in zip(own, targets)
    ]
    return torch.stack(distances).mean(0).tolist()  # (levels, N) to N numbers


def style_distances(
    vae: AutoencoderKL, images: Sequence[Image.Image], style: Sequence[Image.Image], resolution: int
) -> list[float]:
    """How far each picture's style is from that of the training images: 0 is the same, 1 about as far as a flat colour.

    The Gram matrices of the features say which colours, lines and textures there are and not where (Gatys et al., 2016,
    https://arxiv.org/abs/1508.06576, equation 3). The distance is between a picture's and the mean of the training
    images', relative to the latter's size, over all levels of the encoder.
    """
    targets = [matrices.mean(0, keepdim=True) for matrices in grams(vae, style, resolution)]
    return relative_distances(grams(vae, images, resolution), targets)


def style_distances_among(vae: AutoencoderKL, style: Sequence[Image.Image], resolution: int) -> list[float]:
    """Each training image's style distance from the others, of which there must be some."""
    every = grams(vae, style, resolution)
    # Encoded once, not once for each picture that is left out.
    return relative_distances(every, [(matrices.sum(0) - matrices) / (len(matrices) - 1) for matrices in every])


def parts_of(vae: AutoencoderKL, images: Sequence[Image.Image], resolution: int) -> torch.Tensor:
    """Every picture as GRID x GRID parts: the features of the encoder's levels, (images, parts, channels)."""
    # The first level sees little more than single pixels, the last two so much that they know the place.
    _, *levels = encoder_features(vae, images, resolution, without_last=2)
    grids = [F.adaptive_avg_pool2d(features, min(GRID, features.shape[-1])) for features in levels]  # (N, C_l, g, g)
    return torch.cat([F.interpolate(grid, (GRID, GRID)) for grid in grids], dim=1).flatten(2).transpose(1, 2)


def subject_scores(
    vae: AutoencoderKL, images: Sequence[Image.Image], subject: Sequence[Image.Image], resolution: int
) -> list[float]:
    """How much of the training images' subject is found in each picture, wherever it stands: 1 is all of it.

    Every part of a training image looks for the part of the picture that is most like it (cosine of their features,
    each brought to mean 0 and deviation 1 over the training images); the mean over parts is the score. A part counts as
    far as the other training images hold it too, and not at all if half of the parts are more widely shared: what they
    have in common is the subject, what is in one only is the place. Of a single training image every part counts.
    """
    wanted = parts_of(vae, subject, resolution)  # (M, P, C)
    # By channel: else a few with large numbers would decide every cosine.
    mean, deviation = wanted.mean((0, 1)), wanted.std((0, 1)).clamp(min=1e-6)
    wanted = F.normalize((wanted - mean) / deviation, dim=2)
    shared = torch.stack(
        [
            torch.stack([best(parts, others) for j, others in enumerate(wanted) if j != i or len(wanted) == 1]).mean(0)
            for i, parts in enumerate(wanted)
        ]
    )  # (M, P)
    # The better half of the parts counts, by how much better: grass and sky are in one picture, the cat is in all.
    weights = (shared - shared.median()).clamp(min=0)
    if len(wanted) == 1 or not weights.any():  # nothing tells subject and place apart: every part counts
        weights = torch.ones_like(shared)
    weights /= weights.sum()
    pictures = F.normalize((parts_of(vae, images, resolution) - mean) / deviation, dim=2)  # (N, P, C)
    return [
        sum((weight * best(parts, picture)).sum().item() for weight, parts in zip(weights, wanted))
        for picture in pictures
    ]


def drift(
    vae: AutoencoderKL,
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    subject: Sequence[Image.Image],
    resolution: int,
) -> list[float]:
    """How far each picture of the class is from what it was before the training, as a share of the way to the subject.

    `before` and `after` are drawn from the same prompts and seeds: 0 is the same picture, 1 one that differs as much as
    pictures before do from the training images, on average. It says that the class has changed, and not into what.
    Distances are between features place by place, over all levels of the encoder.
    """
    shares = []
    for own, moved, wanted in zip(*(encoder_features(vae, images, resolution) for images in (before, after, subject))):
        # As long as the way to the subject: by itself a distance of features has no unit that anybody could judge.
        way = torch.stack([(own - one).flatten(1).norm(dim=1) for one in wanted]).mean()
        shares.append((moved - own).flatten(1).norm(dim=1) / way.clamp(min=1e-6))
    return torch.stack(shares).mean(0).tolist()


def best(parts: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The highest cosine of each of `parts`, (P, C), with any of `others`, (Q, C): shape (P,)."""
    return (parts @ others.T).max(1).values  # (P, Q) to (P,)


def means_of(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    """The mean of each kind of score, by whose pictures they are. Raises ValueError if one is not a number."""
    means = {name: {key: mean(values) for key, values in some.items()} for name, some in scores.items()}
    wrong = [f"{key} of {name}" for name, row in means.items() for key, value in row.items() if not isfinite(value)]
    if wrong:
        raise ValueError(f"No figures: {', '.join(wrong)} cannot be measured on these pictures, by these models.")
    return means

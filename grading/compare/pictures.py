"""The same picture in two reports, however it was scaled or compressed: by perceptual hash, then by its pixels.

The hash (ImageHash's pHash: the signs of the lowest frequencies) finds what may be the same; two pictures that a base
model drew from the same noise have it in common, too, so the thumbnails decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from .look_into_pdf import ROOT, SIDE

# Bits of 64 in which the hashes of one picture differ at most.
MAX_BITS = 14
# A picture whose pixels lie so near to two colours, in mean of 255, says nothing but these: a disc on a ground.
FLAT = 8.0
# What students are given; whoever shows it shows no picture of another student's.
HANDED_OUT = ("task_2_lora/sample_data/*/*.png", "task_2_lora/sample_data/*/*/*.png", "task_1_controlnet/data/*/*.png")


@dataclass(frozen=True)
class Thumbnail:
    """A picture of a report: its pixels, of shape (64, 64, 3), and its hash as 64 bits."""

    pixels: np.ndarray
    bits: np.ndarray

    @classmethod
    def of(cls, pixels: np.ndarray) -> Thumbnail:
        from imagehash import phash  # brings SciPy along

        return cls(pixels, phash(Image.fromarray(pixels)).hash.ravel())

    def picture(self) -> Image.Image:
        return Image.fromarray(self.pixels)


def is_flat(pixels: np.ndarray) -> bool:
    """Whether a picture has two colours only, as those of Fill50K: these are alike wherever they come from."""
    two = Image.fromarray(pixels).quantize(2, dither=Image.Dither.NONE).convert("RGB")
    return float(np.abs(pixels.astype(float) - np.asarray(two, float)).mean()) < FLAT


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Of the pixels of two thumbnails, each without its mean colour: 1 for equal ones, also if one is paler."""
    one, other = (pixels.astype(float) - pixels.mean(axis=(0, 1), keepdims=True) for pixels in (first, second))
    scale = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.sum(one * other)) / scale if scale else 0.0


def thumbnail_of(path: Path) -> Thumbnail:
    """Of a file that is trusted."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return Thumbnail.of(np.asarray(small))


def handed_out(root: Path = ROOT) -> list[Thumbnail]:
    return [thumbnail_of(path) for pattern in HANDED_OUT for path in sorted(root.glob(pattern))]


def resemblance(first: Thumbnail, second: Thumbnail) -> float:
    """The correlation, or 0 if already the hashes differ."""
    bits = int(np.count_nonzero(first.bits != second.bits))
    return correlation(first.pixels, second.pixels) if bits <= MAX_BITS else 0.0


def is_one_of(picture: Thumbnail, others: Iterable[Thumbnail], least: float) -> bool:
    return any(resemblance(picture, other) >= least for other in others)


@dataclass(frozen=True)
class Gallery:
    """The pictures of all hand-ins as one table; `owners` has for each the number of its hand-in."""

    pictures: Sequence[Thumbnail]
    owners: np.ndarray

    @classmethod
    def of(cls, pictures: Sequence[Sequence[Thumbnail]]) -> Gallery:
        owners = [i for i, own in enumerate(pictures) for _ in own]
        return cls([one for own in pictures for one in own], np.array(owners, int))

    def near(self) -> Iterator[tuple[int, int]]:
        """The places of each two pictures of different hand-ins whose hashes are near each other."""
        if not self.pictures:
            return
        signs = np.stack([picture.bits for picture in self.pictures]).astype(np.float32) * 2 - 1
        for place, row in enumerate(signs):
            differing = (signs.shape[1] - signs[place + 1 :] @ row) / 2
            for other in np.flatnonzero(differing <= MAX_BITS).tolist():
                if self.owners[place] != self.owners[place + 1 + other]:
                    yield place, place + 1 + other

    def alike(self) -> dict[tuple[int, int], list[tuple[float, int, int]]]:
        """By two hand-ins: correlations, with the places of the two pictures, each picture in its best pair only."""
        found: dict[tuple[int, int], list[tuple[float, int, int]]] = {}
        for place, other in self.near():
            value = correlation(self.pictures[place].pixels, self.pictures[other].pixels)
            found.setdefault((int(self.owners[place]), int(self.owners[other])), []).append((value, place, other))
        return {pair: matched(some) for pair, some in found.items()}


def matched(some: Sequence[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """The best pairs first, no picture twice."""
    taken: set[Any] = set()
    best = []
    for value, place, other in sorted(some, reverse=True):
        if not taken & {place, other}:
            taken |= {place, other}
            best.append((value, place, other))
    return best

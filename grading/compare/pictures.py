"""The same picture in two reports, however it was scaled or compressed: by perceptual hash, then by its pixels.

The hash (ImageHash's pHash: the signs of the lowest frequencies) finds what may be the same; two pictures that a base
model drew from the same noise have it in common, too, so the brightness of their parts decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Iterator, NamedTuple, Sequence

import numpy as np
from PIL import Image

# Bits of 64 in which the hashes of one picture differ at most.
MAX_BITS = 14
# A picture whose pixels lie so near to two colours, in mean of 255, says nothing but these: a disc on a ground.
FLAT = 8.0


# Of what decides, px: finer detail is lost where a small picture is compressed. Measured, see docs/teacher.md.
DECIDING_SIDE = 16


@dataclass(frozen=True)
class Thumbnail:
    """A picture of a report: its pixels, of shape (64, 64, 3), its hash as 64 bits, and its direction.

    That is its brightness at 16 by 16 px, less the mean, as one vector of length 1: the correlation of two pictures is
    the product of their directions, also if one is paler.
    """

    pixels: np.ndarray
    bits: np.ndarray
    direction: np.ndarray

    @classmethod
    def of(cls, pixels: np.ndarray) -> Thumbnail:
        from imagehash import phash  # brings SciPy along

        image = Image.fromarray(pixels)
        small = image.convert("L").resize((DECIDING_SIDE, DECIDING_SIDE), Image.Resampling.BOX)
        brightness = np.asarray(small, float).ravel()
        centred = brightness - brightness.mean()
        return cls(pixels, phash(image).hash.ravel(), centred / max(float(np.linalg.norm(centred)), 1e-6))

    def picture(self) -> Image.Image:
        return Image.fromarray(self.pixels)


def is_flat(pixels: np.ndarray) -> bool:
    """Whether a picture has two colours only, as those of Fill50K: these are alike wherever they come from."""
    two = Image.fromarray(pixels).quantize(2, dither=Image.Dither.NONE).convert("RGB")
    return float(np.abs(pixels.astype(float) - np.asarray(two, float)).mean()) < FLAT


def correlation(first: Thumbnail, second: Thumbnail) -> float:
    return float(first.direction @ second.direction)


def resemblance(first: Thumbnail, second: Thumbnail) -> float:
    """The correlation, or 0 if already the hashes differ."""
    bits = int(np.count_nonzero(first.bits != second.bits))
    return correlation(first, second) if bits <= MAX_BITS else 0.0


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

    def alike(self, line: float, most: float) -> dict[tuple[int, int], list[Match]]:
        """By two hand-ins, which pictures may be the same, the best first, each picture in its best match only.

        Pictures that more than `most` hand-ins have, with correlations from `line` on, are left out.
        """
        found = [Match(correlation(self.pictures[a], self.pictures[b]), a, b) for a, b in self.near()]
        having: dict[int, set[int]] = {}
        for one in found:
            if one.correlation >= line:
                for place in (one.first, one.second):
                    having.setdefault(place, set()).update(self.owners[[one.first, one.second]].tolist())
        common = {place for place, owners in having.items() if len(owners) > most}
        by_pair: dict[tuple[int, int], list[Match]] = {}
        for one in found:
            if not common & {one.first, one.second}:
                by_pair.setdefault((int(self.owners[one.first]), int(self.owners[one.second])), []).append(one)
        return {pair: matched(some) for pair, some in by_pair.items()}


class Match(NamedTuple):
    """Two pictures by their places in a gallery."""

    correlation: float
    first: int
    second: int


def matched(some: Sequence[Match]) -> list[Match]:
    """The best first, no picture twice."""
    taken: set[int] = set()
    best = []
    for one in sorted(some, reverse=True):
        if not taken & {one.first, one.second}:
            taken |= {one.first, one.second}
            best.append(one)
    return best

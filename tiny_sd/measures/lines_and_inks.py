"""Are pictures cut and printed as the sample data's prints are: as many lines, the same directions, the same inks?

    line_differences([image, ...])  ->  (share of edges, directions), relative to true prints: 0 is the same
    main_colours(image)             ->  its three main colours, in CIE Lab
    inks_arrive(image)              ->  whether each of them is a colour of the print

Lines are the edges of lightness (Canny, 1986). Their share of the pixels says how much was carved; the histogram of
their directions shows the hatching, which always runs the same way, beside the rays, which run all ways. Both depend on
the thing, so they are compared as means over pictures, with means over true prints of REFERENCE other things.

The main colours are sought where a picture is calm, as the rims of thin lines are mixtures that no ink has: the largest
three that differ by more than SAME. Each must be within SAME of its nearest among the print's four.

Run as a program it prints a table of a folder's pictures, for example of an evaluation of Task 2:

    PYTHONPATH=. python tiny_sd/measures/lines_and_inks.py runs/lora-custom/evaluation/lora
"""

from __future__ import annotations

from functools import lru_cache
from typing import Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.feature import canny

from finetune.data.images import square
from tiny_sd.measures.marks import SIDE, asked_for, sample_module
from tiny_sd.pictures.icons import load_icons, load_subjects

REFERENCE = 41  # true prints, of every eighth thing
WEAK, STRONG = 4, 8  # lightness per px from which an edge goes on, and from which it is one
DIRECTIONS = 36  # of 5 degrees; neighbours are taken together, as no hatching is cut that exactly
PRINT = ("INK", "CORAL", "GOLD", "PAPER")
CALM = 0.6  # share of the pixels, those around which colours change least, in which inks are sought
PALETTE = 8  # colours, of which the main ones are
SAME = 12.0  # CIEDE2000 up to which two colours are one


def lines(image: Image.Image) -> tuple[float, np.ndarray]:
    """The share of edge pixels in a picture, and that of each of DIRECTIONS among these: shape (DIRECTIONS,)."""
    lightness = rgb2lab(np.asarray(square(image, SIDE)))[..., 0]
    down, across = np.gradient(gaussian_filter(lightness, 1))
    edges = canny(lightness, sigma=1, low_threshold=WEAK, high_threshold=STRONG)
    angles = np.arctan2(down, across)[edges] % np.pi
    counts = np.histogram(angles, DIRECTIONS, (0, np.pi))[0].astype(float)
    return float(edges.mean()), gaussian_filter1d(counts, 2, mode="wrap") / max(counts.sum(), 1)


def mean_lines(images: Sequence[Image.Image]) -> tuple[float, np.ndarray]:
    found = [lines(image) for image in images]
    return float(np.mean([share for share, _ in found])), np.mean([directions for _, directions in found], axis=0)


def true_print(style: str, name: str, seed: int) -> Image.Image:
    """A drawing of the icon sets in the sample data's style: 512 px."""
    icons, view = load_icons(style)
    return sample_module("linocut").in_style(icons[name], view, seed)


@lru_cache(maxsize=None)
def true_lines() -> tuple[float, np.ndarray]:
    names = list(load_subjects())
    return mean_lines([true_print("flat", name, seed=3) for name in names[:: len(names) // REFERENCE + 1]])


def line_differences(images: Sequence[Image.Image]) -> tuple[float, float]:
    """How far the pictures' lines are from those of true prints, both in shares of what these have: how many more edges
    there are (fewer, if negative), and by how much the shares of all directions differ together, from 0 to 2.
    """
    share, directions = mean_lines(images)
    true_share, true_directions = true_lines()
    return share / true_share - 1, float(np.abs(directions - true_directions).sum())


def print_colours() -> np.ndarray:
    """The print's colours in CIE Lab: (4, 3), in the order of PRINT."""
    return rgb2lab(np.array([getattr(sample_module("linocut"), name) for name in PRINT]) / 255)


def main_colours(image: Image.Image) -> np.ndarray:
    """The three largest colours of a picture's calm parts, in CIE Lab, the largest first: (3, 3), or fewer rows."""
    rgb = np.asarray(square(image, SIDE))
    steps = np.stack(np.gradient(rgb2lab(rgb), axis=(0, 1)))
    change = np.sqrt((steps**2).sum((0, -1)))
    calm = Image.fromarray(rgb[change <= np.quantile(change, CALM)][None])
    found = calm.quantize(PALETTE, method=Image.MEDIANCUT, kmeans=1)
    colors = rgb2lab(np.array(found.getpalette()).reshape(-1, 3) / 255)
    chosen: list[np.ndarray] = []
    for _, index in sorted(found.getcolors(), reverse=True):
        if all(deltaE_ciede2000(colors[index], other) > SAME for other in chosen):
            chosen.append(colors[index])
    return np.stack(chosen[:3])


def nearest_inks(image: Image.Image) -> list[tuple[str, float]]:
    """Of each of the main colours: the print's colour that is nearest, and how far it is (CIEDE2000)."""
    known, nearest = print_colours(), []
    for color in main_colours(image):
        differences = deltaE_ciede2000(np.broadcast_to(color, known.shape), known)
        nearest.append((PRINT[int(differences.argmin())].lower(), float(differences.min())))
    return nearest


def inks_arrive(image: Image.Image) -> bool:
    """Whether a picture has three main colours, each of them one of the print's."""
    nearest = nearest_inks(image)
    return len(nearest) == 3 and max(difference for _, difference in nearest) <= SAME


def main() -> None:
    folder, prompts = asked_for("Are pictures cut and printed as the sample data's prints are?")
    images = [square(Image.open(folder / name), SIDE) for name in prompts]
    for (name, prompt), image in zip(prompts.items(), images):
        colors = ", ".join(f"{difference:.0f} from {ink}" for ink, difference in nearest_inks(image))
        arrive = "arrive" if inks_arrive(image) else "do not"
        print(f"{name:12} edges {lines(image)[0]:4.0%}   inks {arrive}: {colors:44} {prompt}".rstrip())
    share, directions = line_differences(images)
    print(f"share of edges {share:+.0%}, their directions {directions:.0%} from those of true prints")
    arrived = np.mean([inks_arrive(image) for image in images])
    print(f"three main colours that are the print's: {arrived:.0%} of pictures")


if __name__ == "__main__":
    main()

"""Fill50K: pictures of one disc, the outline of the disc as the condition, and a prompt that names the two colours.

`load_data` reads it from the hub, from a folder or a zip archive, or renders it; it reads other data too, where they
come as image, conditioning image and caption. Run as a program it writes the course's five test prompts with five test
conditions of the course's kind, and two more for trying out:

    python fill50k.py --write_test_data data
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from finetune.data.colors import COLORS
from finetune.data.hub import HubListing, hub_errors
from finetune.data.images import condition_to_rgb, pair_to_rgb, to_rgb
from finetune.data.listings import Listing
from finetune.objective import Part
from rendered_discs import COURSE_WIDTH, FRAME, Disc, Line, draw, fit, render_condition

PROMPT = "{disc} circle with {background} background"
HUB_NAME = "fusing/fill50k"
COLUMN_FLAGS = "--image_column, --conditioning_image_column and --caption_column"
CHOOSE = f"choose with {COLUMN_FLAGS}"
WITHOUT_HUB = "`--dataset_name rendered`, which needs no download"


class Dataset:
    """What `load_data` returns: `len(data)` samples, to be read from any number of threads and processes.

    `data[i]` is {"image": RGB picture, "conditioning_image": RGB picture, "text": str}. `data.fingerprint` is a string
    that differs where the samples do, for caches of what was computed from them.
    """

    fingerprint: str

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def conditioning_image(self, index: int) -> Image.Image:
        """`self[index]["conditioning_image"]`, where possible without making the rest of the sample."""
        return self[index]["conditioning_image"]

    def texts(self) -> list[str]:
        """All texts, where they may be any and are known without making the samples."""
        return []

    def contents(self) -> list[str]:
        """For each sample a string that is equal where the pictures are, in all data sets of its kind."""
        raise NotImplementedError


def load_data(
    dataset_name: str,
    image_column: str = "image",
    conditioning_image_column: str = "conditioning_image",
    caption_column: str = "text",
    max_samples: int | None = None,
) -> Dataset:
    """Opens a data set; pictures are read when they are asked for.

    `dataset_name` is "rendered", a local folder or zip that `Listing` reads (laid out like fusing/fill50k, like
    ControlNet's original fill50k.zip, or an imagefolder), or else a data set of the hub, of which the train split is
    taken. Of the samples only the first `max_samples` are used, if given.

    Raises ValueError for columns that are not there, for lines or captions that are wrong and for a picture and a
    condition of different shapes, FileNotFoundError for files that are missing, OSError for damaged ones and where the
    hub cannot be reached.
    """
    columns = (image_column, conditioning_image_column, caption_column)
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1, not {max_samples}")
    if dataset_name == "rendered":
        if columns != ("image", "conditioning_image", "text"):
            raise ValueError(
                f"rendered data have the columns image, conditioning_image, text: leave {COLUMN_FLAGS} out"
            )
        # As many as the course's data set has, so that steps and epochs mean the same with either.
        return RenderedFill50K(size=min(max_samples or 50_000, 50_000))

    path = os.path.expanduser(dataset_name)
    if os.path.exists(path) or dataset_name == HUB_NAME:
        listing = Listing(path if os.path.exists(path) else download_fill50k(), columns, CHOOSE, max_samples)
    # Names of the hub are OWNER/NAME: a mistyped path is not to become a question to the hub.
    elif os.path.isabs(path) or path.startswith(".") or path.endswith(".zip") or path.count("/") > 1:
        raise FileNotFoundError(f"there is no folder or zip archive {path}: correct its name")
    else:
        listing = HubListing(dataset_name, columns, CHOOSE, WITHOUT_HUB, max_samples)
    # Before anything is trained: samples that are left out in silence would only show in the pictures.
    listing.tell()
    return Pairs(listing)


class Pairs(Dataset):
    """The samples of a folder, a zip archive or the hub. Reading one raises what `pair_to_rgb` raises."""

    def __init__(self, listing: Listing | HubListing) -> None:
        self.listing = listing
        self.fingerprint = listing.fingerprint

    def __len__(self) -> int:
        return len(self.listing)

    def sources(self) -> list[Any]:
        return self.listing.sources()

    def contents(self) -> list[str]:
        return self.listing.contents()

    def __getitem__(self, index: int) -> dict[str, Any]:
        # A list's rules: -1 is the last sample, and what is too large an IndexError.
        index = range(len(self))[index]
        places = [self.listing.where(index, column) for column in (0, 1)]
        image = self.listing.load(index)
        if places[0] == places[1]:  # a picture that stands in for the condition
            image = condition = to_rgb(image, places[0])
        else:
            image, condition = pair_to_rgb(image, self.listing.load(index, 1), *places)
        return {"image": image, "conditioning_image": condition, "text": self.listing.text(index)}

    def conditioning_image(self, index: int) -> Image.Image:
        index = range(len(self))[index]
        return condition_to_rgb(self.listing.load(index, 1), self.listing.where(index, 1))

    def texts(self) -> list[str]:
        return self.listing.texts


def download_fill50k() -> str:
    """The folder of fusing/fill50k, without its loading script, which `datasets` 4 and later do not run."""
    with hub_errors(HUB_NAME, WITHOUT_HUB):
        for name in ("train.jsonl", "images.zip", "conditioning_images.zip"):
            path = huggingface_hub.hf_hub_download(HUB_NAME, name, repo_type="dataset")
    return os.path.dirname(path)


# ---------------------------------------------------------------------------------------------------------------------
# Rendered

# At 64 px, where the grader trains, the smallest disc is still 10 px wide; the largest covers the frame's height.
RADII = (40, 280)
WIDTHS = (1, 8)  # px in the frame
SEED = 50_000
SPLIT_SIZE = 1_000_000
SPLITS = {"train": 0, "test": SPLIT_SIZE}  # the first index of each; as no split is longer, no two ever overlap
COLOR_NAMES = sorted(name for name in COLORS if name != "antique brown")  # that one is not of CSS


class PartOfPairs(Part):
    def conditioning_image(self, index: int) -> Image.Image:
        return self.data.conditioning_image(self.indices[index])


@dataclass(frozen=True)
class RenderedSample:
    image: Image.Image
    conditioning_image: Image.Image
    text: str
    disc: Disc
    line: Line
    disc_color: str
    background_color: str


# Five test conditions of the course's kind, in the order of its five prompts.
TEST_DISCS = [
    Disc(110, 262, 190),  # large, cut by the left edge
    Disc(268, 246, 58),  # small, near the middle
    Disc(190, 256, 272),  # cut at the top, left and bottom
    Disc(371, 214, 140),  # touches the right edge
    Disc(218, 292, 108),  # medium
]
TEST_PROMPTS = [
    "pale golden rod circle with old lace background",
    "sea green circle with a light cyan background",
    "deep sky blue circle with a light yellow background",
    "rosy brown circle with a misty rose background",
    "forest green circle with an antique brown background",
]
VALIDATION_DISCS = [Disc(306, 204, 124), Disc(168, 338, 92)]  # conditioning_image_1.png and _2.png


@functools.lru_cache(maxsize=None)
def color_differences() -> np.ndarray:
    """CIEDE2000 between all COLOR_NAMES: (names, names)."""
    # CIEDE2000 (Sharma et al., 2005): unlike distances in RGB, as large as an eye finds the difference.
    lab = rgb2lab(np.array([COLORS[name] for name in COLOR_NAMES]) / 255)
    return deltaE_ciede2000(lab[:, None], lab[None])


def draw_disc(rng: np.random.Generator) -> Disc:
    # The centre may be anywhere: two of the five test discs leave the frame, and what is never seen is not learnt.
    x, y = (int(value) for value in rng.integers(0, FRAME, size=2))
    return Disc(x, y, int(rng.integers(RADII[0], RADII[1] + 1)))


def draw_line(index: int) -> Line:
    """A sample's line: half are as thick as the course's, the others of 1 to 8 px; four in five are white on black."""
    rng = np.random.default_rng([SEED, index, 1])  # of its own, so that discs and colours do not depend on it
    # Conditions of one's own come from a paint program, a scan or the web, and are to work, too: held-out outlines
    # reach an IoU of 0.92 (1 px wide, or soft) to 0.96 (docs/task_1.md).
    any_width, soft, inverted, jpeg = (bool(value) for value in rng.random(4) < (0.5, 0.25, 0.2, 0.1))
    width = int(rng.integers(WIDTHS[0], WIDTHS[1] + 1)) if any_width else COURSE_WIDTH
    return Line(width, soft, inverted, jpeg)


def render(
    index: int, resolution: int = FRAME, min_color_difference: float = 0.0, line: Line | None = None
) -> RenderedSample:
    """Sample number `index`, a function of these arguments and nothing else: 0 and up for training, 1,000,000 and up
    held out. Place, size and outline do not depend on the colours, nor anything on the resolution (px of both images).
    The outline is drawn as the sample's own line, unless one is given.

    Raises ValueError if no two colours are `min_color_difference` (CIEDE2000) apart.
    """
    if resolution < 1:
        raise ValueError(f"resolution must be at least 1 px, not {resolution}")
    if min_color_difference > 0 and min_color_difference > color_differences().max():
        raise ValueError(f"no two colours differ by {min_color_difference}, only by {color_differences().max():.1f}")
    # A list of numbers as seed: NumPy mixes them, so that neighbours have nothing in common, and none of the samples
    # before this one has to be drawn.
    rng = np.random.default_rng([SEED, index])
    disc = draw_disc(rng)
    while True:
        a, b = (int(value) for value in rng.integers(0, len(COLOR_NAMES), size=2))
        first, second = COLOR_NAMES[a], COLOR_NAMES[b]
        if COLORS[first] == COLORS[second]:  # the same name twice, or aqua on cyan
            continue
        # Drawn again until they differ enough: the discs' places stay those of the same number.
        if min_color_difference <= 0 or color_differences()[a, b] >= min_color_difference:
            break
    line = line or draw_line(index)
    return RenderedSample(
        image=fit(draw(disc, resolution, "RGB", COLORS[second], (0, COLORS[first])), resolution),
        conditioning_image=render_condition(disc, resolution, line),
        text=PROMPT.format(disc=first, background=second),
        disc=disc,
        line=line,
        disc_color=first,
        background_color=second,
    )


class RenderedFill50K(Dataset):
    """Fill50K without files: `size` samples of `resolution` px, drawn when they are asked for.

    Centres are uniform in the frame and radii in 40 to 280 of its 512 px, so discs may leave it; the colours are two of
    CSS's, at least `min_color_difference` (CIEDE2000) apart; outlines are of many kinds (see `draw_line`). The splits
    "train" and "test" share no sample.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 50_000,
        resolution: int = FRAME,
        min_color_difference: float = 0.0,
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        if not 1 <= size <= SPLIT_SIZE:
            raise ValueError(f"size must be 1 to {SPLIT_SIZE}, so that train and test share no sample, not {size}")
        self.split, self.size, self.resolution = split, size, resolution
        self.min_color_difference = min_color_difference
        self.render(0)  # arguments that do not work are found now
        # To be counted up when the renderer draws other pictures: what was computed from the old ones is void then.
        self.fingerprint = repr(("rendered", 2, split, size, resolution, float(min_color_difference)))

    def __len__(self) -> int:
        return self.size

    def contents(self) -> list[str]:
        return [f"rendered {self.number(index)}" for index in range(len(self))]

    def number(self, index: int) -> int:
        return SPLITS[self.split] + range(self.size)[index]

    def render(self, index: int, resolution: int | None = None, line: Line | None = None) -> RenderedSample:
        """Sample `index` of this split with all that is known of it, at its own or another resolution (px), its outline
        drawn as its own or another line."""
        return render(self.number(index), resolution or self.resolution, self.min_color_difference, line)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.render(index)
        return {"image": sample.image, "conditioning_image": sample.conditioning_image, "text": sample.text}

    def conditioning_image(self, index: int) -> Image.Image:
        number = self.number(index)
        # The disc is the first that is drawn of this stream, so that the picture and its colours can be left out: with
        # cached latents a training asks for conditions only.
        disc = draw_disc(np.random.default_rng([SEED, number]))
        return render_condition(disc, self.resolution, draw_line(number))


def write_test_data(folder: str | Path) -> None:
    """Writes test_prompts.json, test_conditions/0.png to 4.png, conditioning_image_1.png and _2.png (512 px)."""
    folder = Path(folder)
    (folder / "test_conditions").mkdir(parents=True, exist_ok=True)
    prompts = {str(i): prompt for i, prompt in enumerate(TEST_PROMPTS)}
    (folder / "test_prompts.json").write_text(json.dumps(prompts, indent=4) + "\n")
    for i, disc in enumerate(TEST_DISCS):
        render_condition(disc).save(folder / "test_conditions" / f"{i}.png", optimize=True)
    for i, disc in enumerate(VALIDATION_DISCS, start=1):
        render_condition(disc).save(folder / f"conditioning_image_{i}.png", optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the test conditions and prompts.")
    parser.add_argument("--write_test_data", metavar="FOLDER", required=True)
    write_test_data(parser.parse_args().write_test_data)

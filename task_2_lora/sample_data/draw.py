"""Draws the sample data of this task: sixteen prints in one artistic style, and four pictures of one particular cat.

    python task_2_lora/sample_data/draw.py

The style is that of `linocut.py`, the cat that of `cat.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from cat import cat
from linocut import in_style

HERE = Path(__file__).resolve().parent

# Most have both coral and gold. Of four prints with one of the two each, a LoRA learnt which thing has which, and gave
# a new thing what lies between (2026-12-01).
STYLE_ICONS = {  # picture: the icon set, the icon, and the seed
    "bear": ("fluent-emoji-flat", "bear", 5),
    "camera": ("fluent-emoji-flat", "camera", 3),
    "car": ("fluent-emoji-flat", "automobile", 5),
    "castle": ("fluent-emoji-flat", "castle", 3),
    "cat": ("fluent-emoji-flat", "cat", 6),
    "cupcake": ("fluent-emoji-flat", "cupcake", 3),
    "dog": ("noto", "dog", 3),
    "duck": ("noto", "duck", 3),
    "frog": ("fluent-emoji-flat", "frog", 3),
    "hat": ("fluent-emoji-flat", "top-hat", 3),
    "lion": ("noto", "lion", 3),
    "robot": ("fluent-emoji-flat", "robot", 3),
    "sailboat": ("fluent-emoji-flat", "sailboat", 3),
    "snail": ("noto", "snail", 3),
    "train": ("fluent-emoji-flat", "train", 3),
    "tulip": ("fluent-emoji-flat", "tulip", 3),
}
# (pose, place) of 0.png to 3.png, and where that is; the other pairs are not shown.
CAT_PICTURES = ((0, 0, "in a garden"), (2, 2, "on a beach"), (3, 3, "at night"), (5, 4, "in snow"))


def write_captions(folder: Path, captions: dict[str, str]) -> None:
    lines = [json.dumps({"file_name": name, "text": text}) + "\n" for name, text in captions.items()]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Write both sets of pictures beside this program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    icons = HERE.parents[1] / "tiny_sd" / "pictures" / "icons"
    parser.add_argument("--icons", type=Path, default=icons, help="folder of the icon sets")
    args = parser.parse_args()

    folder = HERE / "artistic-custom" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    captions = {}
    for name, (icon_set, icon, seed) in STYLE_ICONS.items():
        icons = json.loads((args.icons / f"{icon_set}.json").read_text(encoding="utf-8"))
        # Four inks and what lies between them: with 32 colours a file takes a quarter of the room.
        printed = in_style(icons["icons"][icon], icons["view"], seed).quantize(32, dither=Image.Dither.NONE)
        printed.save(folder / f"{name}.png", optimize=True)
        captions[f"{name}.png"] = f"a print of a {name} with rays"
    write_captions(folder, captions)

    folder = HERE / "dreambooth-cat"
    folder.mkdir(parents=True, exist_ok=True)
    captions = {}
    for number, (pose, place, where) in enumerate(CAT_PICTURES):
        cat(pose, place).save(folder / f"{number}.png")
        captions[f"{number}.png"] = f"a sks cat {where}"
    write_captions(folder, captions)


if __name__ == "__main__":
    main()

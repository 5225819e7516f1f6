"""Draws the sample data of this task: four prints in one artistic style, and four pictures of one particular cat.

    python task_2_lora/sample_data/draw.py

The style is that of `linocut.py`, the cat that of `cat.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cat import cat
from linocut import in_style

HERE = Path(__file__).resolve().parent

STYLE_ICONS = {  # picture: the icon set, the icon, and the seed
    "bear": ("fluent-emoji-flat", "bear", 5),
    "car": ("fluent-emoji-flat", "automobile", 5),
    "cat": ("fluent-emoji-flat", "cat", 6),
    "dog": ("noto", "dog", 3),
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
        in_style(icons["icons"][icon], icons["view"], seed).save(folder / f"{name}.png")
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

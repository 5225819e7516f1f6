"""Drawings of 327 everyday things, each in two styles: what the embedded base learns besides simple shapes.

The drawings are a choice from two open icon sets; icons/README.md names their authors and licences. They are kept as
SVG, so that they can be drawn at any size. To take them from the packages again:

    npm install --prefix /tmp/icons @iconify-json/fluent-emoji-flat @iconify-json/noto
    PYTHONPATH=. python tiny_sd/pictures/icons.py --packages /tmp/icons/node_modules/@iconify-json
"""

from __future__ import annotations

import argparse
import io
import json
from functools import lru_cache
from pathlib import Path

import resvg_py
from PIL import Image

FOLDER = Path(__file__).resolve().parent / "icons"
# What a caption calls the style, and the set that is drawn in it.
STYLES = {"flat": "fluent-emoji-flat", "shaded": "noto"}


@lru_cache(maxsize=None)
def load_subjects() -> dict[str, str]:
    """What a caption calls each drawing, by its name in the sets."""
    groups = json.loads((FOLDER / "subjects.json").read_text())
    return {icon: name for group in groups.values() for icon, name in group.items()}


@lru_cache(maxsize=None)
def load_icons(style: str) -> tuple[dict[str, str], float]:
    """The SVG bodies of one style by their names in the set, and the side of their view box."""
    content = json.loads((FOLDER / f"{STYLES[style]}.json").read_text())
    return content["icons"], content["view"]


@lru_cache(maxsize=None)
def icon(style: str, name: str, size: int) -> Image.Image:
    """One drawing as an RGBA picture of `size` px."""
    icons, view = load_icons(style)
    return rasterise(icons[name], view, size)


def rasterise(body: str, view: float, size: int) -> Image.Image:
    """The body of an SVG drawing whose view box is `0 0 view view`, as an RGBA picture of `size` px."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {names} width="{size}" height="{size}" viewBox="0 0 {view} {view}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def main() -> None:
    parser = argparse.ArgumentParser(description="Takes the drawings that subjects.json names from the packages.")
    parser.add_argument("--packages", type=Path, required=True, help="the folder of the sets' packages")
    args = parser.parse_args()
    for package in STYLES.values():
        source = json.loads((args.packages / package / "icons.json").read_text())
        about = json.loads((args.packages / package / "info.json").read_text())
        content = {
            "name": about["name"],
            "author": about["author"]["name"],
            "license": about["license"]["spdx"],
            "view": source.get("width", 16),
            "icons": {name: source["icons"][name]["body"] for name in load_subjects()},
        }
        (FOLDER / f"{package}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

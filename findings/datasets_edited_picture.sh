#!/usr/bin/env bash
# Version: datasets 5.2.0, pillow 13.0.0 (Python 3.11)
# Behaviour: A picture opened from a file and then changed in place (thumbnail, putalpha, ImageDraw) loses the change
#   on the way into a Dataset, also as the return value of map: datasets stores the path when the PIL object still knows
#   its file, and reads the file again. What returns a new picture (resize, convert) is kept.
# Output seen:
#   file (200, 100) red; in memory (64, 32) blue; in the dataset (200, 100) red
#   map with thumbnail (200, 100), map with resize (64, 32)
# One would have guessed: The dataset holds the picture that it was given, as it does for pictures made in memory.
# What follows: In map functions return new pictures (image.copy() before thumbnail or ImageDraw); check the size of
#   one sample after map.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile datasets==5.2.0 pillow==13.0.0
export HF_HOME="$work/hf" TMPDIR="$work"
venv/bin/python - <<'PY'
import datasets
from PIL import Image, ImageDraw

datasets.disable_progress_bars()
Image.new("RGB", (200, 100), "red").save("picture.png")
features = datasets.Features({"image": datasets.Image()})


def changed_in_place(image):
    image.thumbnail((64, 64))
    ImageDraw.Draw(image).rectangle([0, 0, 64, 64], fill="blue")
    return image


def stored(image):
    return datasets.Dataset.from_dict({"image": [image]}, features=features)[0]["image"]


edited = changed_in_place(Image.open("picture.png"))
kept = stored(edited)
print("in memory", edited.size, edited.getpixel((1, 1)), "in the dataset", kept.size, kept.getpixel((1, 1)))
assert (edited.size, edited.getpixel((1, 1))) == ((64, 32), (0, 0, 255))
assert (kept.size, kept.getpixel((1, 1))) == ((200, 100), (255, 0, 0)), "the change is kept now"
assert stored(edited.copy()).size == (64, 32)

rows = datasets.Dataset.from_dict({"image": ["picture.png"]}).cast_column("image", datasets.Image())
in_place = rows.map(lambda row: {"image": changed_in_place(row["image"])})[0]["image"]
new = rows.map(lambda row: {"image": row["image"].resize((64, 32))})[0]["image"]
print("map with thumbnail", in_place.size, "map with resize", new.size)
assert in_place.size == (200, 100) and in_place.getpixel((1, 1)) == (255, 0, 0)
assert new.size == (64, 32)
PY

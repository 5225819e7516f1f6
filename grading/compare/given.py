"""What everybody has: pictures and texts that were handed out, the solution, and the library's code that it is like."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ..files.items import TASK_1
from ..handed_out.banners import TODO_FILES, read_code
from ..handed_out.record import ROOT
from ..starter.make import blank
from .look_into_pdf import SIDE
from .pictures import Thumbnail
from .texts import all_grams, code, prose

# What students are given; whoever shows it shows no picture of another student's.
HANDED_OUT = ("task_2_lora/sample_data/*/*.png", "task_2_lora/sample_data/*/*/*.png", "task_1_controlnet/data/*/*.png")
# What stands in the repository, and so in many reports.
OUR_TEXTS = (
    "README.md", "docs/*.md", "docs/reference/*.md", "task_2_lora/evaluate.py", "task_2_lora/sample_data/README.md",
    "task_1_controlnet/data/test_prompts.json", "grading/report/report_example.toml", "grading/report/report.typ",
    "grading/report/content.py",
)  # fmt: skip
LIBRARY_CODE = ("models/controlnets/controlnet.py", "models/controlnet.py", "models/unets/unet_2d_condition.py")


def thumbnail_of(path: Path) -> Thumbnail:
    """Of a file that is trusted."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return Thumbnail.of(np.asarray(small))


def handed_out(root: Path = ROOT) -> list[Thumbnail]:
    return [thumbnail_of(path) for pattern in HANDED_OUT for path in sorted(root.glob(pattern))]


def our_prose(root: Path = ROOT) -> set[str]:
    texts = [path.read_text(encoding="utf-8") for name in OUR_TEXTS for path in sorted(root.glob(name))]
    return all_grams([prose(text) for text in texts])


def our_code(root: Path = ROOT) -> set[str]:
    """What the assignment's files say, the solution's among them, and the library's that they are like."""
    paths = [root / TASK_1 / name for name in TODO_FILES]
    library = find_spec("diffusers")
    if library and library.origin:
        paths += [Path(library.origin).parent / name for name in LIBRARY_CODE]
    sources = [read_code(path) for path in paths if path.is_file()]
    return all_grams([code(text) for text in [*sources, *map(blank, sources[: len(TODO_FILES)])]])

"""Pictures of a class for prior preservation: one's own, and where they are too few, others that the base draws."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data import readable_pictures
from drawing import generate, images_at_once, load_pipeline
from finetune.files import open_files
from finetune.progress import progress_bar
from finetune.runs import fingerprint

# What a picture was drawn for is kept in it, so that it goes where the picture goes.
PNG_KEY = "drawn for"


def check_drawn_for(path: Path, wanted: dict[str, Any]) -> None:
    """Raises ValueError, which says what differs, if the picture was drawn for something else."""
    with Image.open(path) as image:
        found = image.info.get(PNG_KEY)
    if found is None:
        return
    was = json.loads(found)
    flags = {"prompt": "--class_prompt", "guidance_scale": "--validation_guidance_scale", "weights": "the base"}
    shown = {"weights": "base"}
    differences = [
        f"{flag} was {was.get(shown.get(key, key))!r} and is {wanted[shown.get(key, key)]!r}"
        for key, flag in flags.items()
        if was.get(key) != wanted[key]
    ]
    if differences:
        raise ValueError(
            f"{path} was drawn for something else: {', '.join(differences)}. Choose another --class_data_dir, or "
            f"remove the pictures that were drawn."
        )


def draw_class_images(
    base: str, prompt: str, folder: Path, number: int, guidance_scale: float, accelerator: Accelerator
) -> None:
    """Draws as many pictures into the folder as it lacks: processes share the work.

    Every picture in it counts, whatever it is called. Those that are drawn are `class-0000.png` and so on.

    Raises ValueError if pictures that were drawn before are of another class, base or guidance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, _ = readable_pictures(open_files(folder))
    wanted = {"prompt": prompt, "base": base, "weights": fingerprint(base), "guidance_scale": guidance_scale}
    for name in found:
        check_drawn_for(folder / name, wanted)
    free = [i for i in range(number) if f"class-{i:04d}.png" not in found]
    missing = free[: max(0, number - len(found))]
    used = f", of which the first {number} by name are used" if len(found) > number else ""
    accelerator.print(f"Pictures of the class: {len(found)} in {folder}{used}; {len(missing)} to be drawn.")
    accelerator.wait_for_everyone()  # all have counted before the first one appears
    missing = missing[accelerator.process_index :: accelerator.num_processes]
    if missing:
        information = PngInfo()
        information.add_text(PNG_KEY, json.dumps(wanted))
        pipeline = load_pipeline(base, accelerator.device)
        batch_size = images_at_once(pipeline)
        starts = range(0, len(missing), batch_size)
        for start in progress_bar(starts, desc="Drawing the class", disable=not accelerator.is_local_main_process):
            seeds = missing[start : start + batch_size]
            for seed, image in zip(seeds, generate(pipeline, [prompt] * len(seeds), seeds, guidance_scale)):
                temporary = folder / f".class-{seed:04d}.tmp"
                image.save(temporary, "png", pnginfo=information)
                os.replace(temporary, folder / f"class-{seed:04d}.png")
    accelerator.wait_for_everyone()

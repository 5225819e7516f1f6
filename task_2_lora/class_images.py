"""Pictures of a class for prior preservation: one's own, and where they are too few, others that the base draws."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from drawing import generate, images_at_once, load_pipeline
from finetune.data.files import open_files
from finetune.run.locks import one_at_a_time
from finetune.run.notes import say_once, some
from finetune.run.progress import progress_bar
from finetune.run.settings import fingerprint
from pictures import DRAWN_FOR, readable_pictures

# What a picture was drawn for is kept in it, so that it goes where the picture goes, and beside it, as it gets lost
# where the picture is resized or converted.
PNG_KEY = "drawn for"
DRAWN_NAME = re.compile(r"class-\d{4,}", re.IGNORECASE)


def drawn_for(path: Path, beside: str | None) -> dict[str, Any] | None:
    """What the picture was drawn for, by itself or by the file beside it; None for one's own.

    Raises ValueError, naming the file, if that is damaged.
    """
    with Image.open(path) as image:
        inside = image.info.get(PNG_KEY)
    found = inside if inside is not None or not DRAWN_NAME.match(path.name) else beside
    if found is None:
        return None
    try:
        return dict(json.loads(found))
    except (TypeError, ValueError) as error:
        source = path if inside is not None else path.with_name(DRAWN_FOR)
        raise ValueError(
            f"{source} does not say what pictures were drawn for ({error}): remove it, and the pictures "
            f"if they show something else"
        ) from error


def check_drawn_for(path: Path, was: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises ValueError, which says what differs, if the picture was drawn for something else."""
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


def check_class_images(folder: Path, names: list[str], wanted: dict[str, Any]) -> bool:
    """Whether some of these pictures were drawn, all of them as `wanted`. Raises what the two above raise.

    Those that are called as if they were, while nothing says for what, are taken as one's own.
    """
    record = folder / DRAWN_FOR
    beside = record.read_text(encoding="utf-8") if record.exists() else None
    known = {name: drawn_for(folder / name, beside) for name in names}
    # Every one is looked at: a single picture of another class, once trained on, shows in all that is drawn later.
    for name, was in known.items():
        if was is not None:
            check_drawn_for(folder / name, was, wanted)
    unknown = [name for name, was in known.items() if was is None and DRAWN_NAME.match(name)]
    if unknown:
        say_once(f"nothing says what {some(unknown)} in {folder} were drawn for: they are taken as your own.")
    return any(was is not None for was in known.values())


def keep_beside(folder: Path, wanted: dict[str, Any]) -> None:
    temporary = folder / f".{DRAWN_FOR}.tmp"
    temporary.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / DRAWN_FOR)


def draw_class_images(
    base: str, prompt: str, folder: Path, number: int, guidance_scale: float, accelerator: Accelerator
) -> None:
    """Draws as many pictures into the folder as it lacks: processes share the work.

    Every picture in it counts, whatever it is called. Those that are drawn are `class-0000.png` and so on.

    Raises ValueError if pictures that were drawn before are of another class, base or guidance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder):
        accelerator.wait_for_everyone()  # what another program drew is there before anyone counts
        draw_missing(base, prompt, folder, number, guidance_scale, accelerator)


def draw_missing(
    base: str, prompt: str, folder: Path, number: int, guidance_scale: float, accelerator: Accelerator
) -> None:
    """As `draw_class_images`, while no other program draws there."""
    found, _ = readable_pictures(open_files(folder))
    # All that decides what a picture shows. Those of another base would pull this one towards what that one draws.
    wanted = {"prompt": prompt, "base": base, "weights": fingerprint(base), "guidance_scale": guidance_scale}
    drawn = check_class_images(folder, found, wanted)
    taken = {match.group().lower() for match in map(DRAWN_NAME.match, found) if match}
    # The number is the seed: a picture that was removed is drawn again as it was.
    free = [i for i in range(number) if f"class-{i:04d}" not in taken]
    missing = free[: max(0, number - len(found))]
    used = f", of which the first {number} by name are used" if len(found) > number else ""
    accelerator.print(f"Pictures of the class: {len(found)} in {folder}{used}; {len(missing)} to be drawn.")
    accelerator.wait_for_everyone()  # all have counted before the first one appears
    if (drawn or missing) and accelerator.process_index == 0:
        keep_beside(folder, wanted)
    # By turns. As a picture's number is its seed, it does not matter who draws it.
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
                # Killed while it is saved, the next start finds no half picture that counts.
                temporary = folder / f".class-{seed:04d}.tmp"
                image.save(temporary, "png", pnginfo=information)
                os.replace(temporary, folder / f"class-{seed:04d}.png")
    accelerator.wait_for_everyone()

"""Pictures in and out of tensors, the same way for every training."""

from __future__ import annotations

import functools
import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageColor, ImageOps

from ..run.notes import say_once

ORIENTATION = 0x0112  # EXIF's number for how the camera was held
# What transparent conditions are laid on: the first that is far from all their colours, by so many of 255 levels in one
# channel at least, or the first that is not quite as far. As many px as a dot of the pen may be lost.
GROUNDS = ("white", "black", "gray", "magenta", "lime", "cyan", "blue", "yellow", "red")
FAR, VISIBLE = 64, 32
DOT = 8
MODE_OF_PROFILE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def load_image(source: str | Path | bytes, where: str) -> Image.Image:
    """The picture in a file or in its bytes, as it is stored. Raises OSError, naming it, if it is damaged or none."""
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()
    except Image.DecompressionBombError as error:
        raise OSError(f"{where} has too many pixels to be opened safely ({error}): make it smaller") from error
    except Exception as error:  # Pillow too: SyntaxError for a broken PNG, OSError for a short one, ...
        reason = re.sub(r" <[^>]* at 0x\w+>", "", str(error))  # an object's address helps nobody
        raise OSError(f"{where} is damaged or not an image ({reason}): fetch or store it again") from error
    return image


def open_image(source: str | Path | bytes, where: str) -> Image.Image:
    """The picture in a file or in its bytes, upright and in sRGB; `where` names it in errors.

    Raises:
        OSError: if it is damaged or no picture.
        ValueError: if it has more than 8 bits a channel, of which Pillow would cut off what is above 255.
    """
    return to_rgb(load_image(source, where), where)


def to_rgb(image: Image.Image, where: str) -> Image.Image:
    """A picture as it is seen: turned as its camera was held, in sRGB, on white where it is transparent.

    Raises ValueError for more than 8 bits a channel.
    """
    colors, alpha = _colors_and_alpha(image, where)
    return colors if alpha is None else _on_ground("white", colors, alpha)


def condition_to_rgb(image: Image.Image, where: str) -> Image.Image:
    """`to_rgb` for a condition: where lines of it would vanish on white, on another ground. Which, is said.

    Raises ValueError also for one that has nothing to see, or colours that would vanish on every ground.
    """
    colors, alpha = _colors_and_alpha(image, where)
    if alpha is None:
        return colors
    ground = _ground_for(colors, alpha, where)
    say_once(f"transparent conditions, such as {where}, are laid on {ground}.", kind=f"ground {ground}")
    return _on_ground(ground, colors, alpha)


def _ground_for(colors: Image.Image, alpha: Image.Image, where: str) -> str:
    """The ground on which all that is visible of a picture differs from what is transparent."""
    opacity = np.asarray(alpha)
    if opacity.max() < VISIBLE:
        raise ValueError(f"{where}, a condition, is transparent all over: store it without transparency")
    shown = opacity > opacity.max() // 2
    if shown.all():
        return GROUNDS[0]
    # int16: the difference of two bytes would wrap around.
    lines = np.asarray(colors)[shown].astype(np.int16)  # (P, 3)
    # A few pixels of an unlucky colour do not decide the ground of a whole picture.
    may_vanish = min(DOT, len(lines) // 10)
    for enough in (FAR, VISIBLE):
        for ground in GROUNDS:
            distance = np.abs(lines - np.array(ImageColor.getrgb(ground), np.int16)).max(1)
            if np.count_nonzero(distance < enough) <= may_vanish:
                return ground
    raise ValueError(
        f"{where}, a condition, has transparent parts and so many colours that some would vanish on any ground, be it "
        f"{', '.join(GROUNDS[:-1])} or {GROUNDS[-1]}: store it without transparency"
    )


def open_condition(path: str | Path) -> Image.Image:
    """The condition in a file, as trainings see it: to draw with. Raises what `open_image` raises."""
    return condition_to_rgb(load_image(path, str(path)), str(path))


def pair_to_rgb(
    image: Image.Image, condition: Image.Image, where: str, where_condition: str
) -> tuple[Image.Image, Image.Image]:
    """A picture and its condition, both as they are seen, which must show the same place at the same place.

    Raises ValueError, naming both, if their shapes differ by more than a pixel, or if an EXIF entry turns only one of
    them and nothing says whether the other was turned already.
    """
    turns = {_orientation(picture, name) for picture, name in ((image, where), (condition, where_condition))}
    pair = to_rgb(image, where), condition_to_rgb(condition, where_condition)
    names = f"{where} and its condition {where_condition}"
    # Both are cut to their centre square: of different shapes the condition would show another place than the picture.
    if not _same_shape(pair[0].size, pair[1].size):
        (width, height), (other_width, other_height) = pair[0].size, pair[1].size
        turned = ", where EXIF turns only one of them," if len(turns) > 1 else ""
        raise ValueError(
            f"{names} have different shapes, {width} x {height} and {other_width} x {other_height} px{turned} and "
            f"would be cropped apart: store them upright and in the same shape"
        )
    if len(turns) > 1 and _same_shape(image.size, condition.size):
        raise ValueError(f"{names}: an EXIF entry turns only one of them; store both upright, without it")
    return pair


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other made smaller: up to a pixel of the smaller, as sizes are rounded."""
    (width, height), (small_width, small_height) = sorted((one, other), reverse=True)
    return abs(small_width * height - small_height * width) <= max(width, height)


def _orientation(image: Image.Image, where: str) -> int:
    """How EXIF says that the picture is to be turned or mirrored, 2 to 8; 1 if not at all."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
        return orientation if orientation in range(2, 9) else 1
    except Exception as error:  # Pillow raises whatever its decoders do: SyntaxError, struct.error, ...
        say_once(f"{where} has EXIF data that cannot be read ({error}): it is taken as upright.")
        return 1


def _colors_and_alpha(image: Image.Image, where: str) -> tuple[Image.Image, Image.Image | None]:
    """The picture, upright in sRGB, and its opacity if it is not opaque."""
    if image.mode.startswith(("I", "F")):  # Pillow would cut all above 255 off, and a depth map would turn white
        raise ValueError(f"{where} has more than 8 bits a channel: store it as an 8-bit image, scaled as you see fit")
    if image.mode == "LAB":  # of which Pillow makes nothing else
        raise ValueError(f"{where} has CIE Lab colours: store it in RGB")
    profile = image.info.get("icc_profile")
    if _orientation(image, where) != 1:
        image = ImageOps.exif_transpose(image)
    alpha = None
    if "transparency" in image.info or image.mode[-1] in "Aa":
        gray = image.mode in ("1", "L", "LA")
        image = image.convert("RGBA")
        alpha, image = image.getchannel("A"), image.convert("RGB").convert("L" if gray else "RGB")
        alpha = None if alpha.getextrema()[0] == 255 else alpha
    return _to_srgb(image, profile, where), alpha


def _on_ground(ground: str, colors: Image.Image, alpha: Image.Image) -> Image.Image:
    return Image.composite(colors, Image.new("RGB", colors.size, ground), alpha)


def _to_srgb(image: Image.Image, profile: bytes | None, where: str) -> Image.Image:
    """In sRGB, by the colour profile that came with it, if it fits."""
    if not profile:
        return image.convert("RGB")
    try:
        mode, transform = _transform_of(profile)
        if (mode == "CMYK") != (image.mode == "CMYK") or mode == "L" and image.mode not in ("1", "L"):
            raise ValueError(f"it is for {mode} pictures, not {image.mode}")
        return ImageCms.applyTransform(image.convert(mode), transform)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        say_once(f"{where} has a colour profile that does not fit ({error}): it is taken as sRGB.")
        return image.convert("RGB")


@functools.lru_cache(maxsize=64)
def _transform_of(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform]:
    """The kind of pictures that a colour profile is for, and the way to sRGB."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if space not in MODE_OF_PROFILE:
        raise ValueError(f"it is for {space} pictures")
    mode = MODE_OF_PROFILE[space]
    return mode, ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")


def square(image: Image.Image, resolution: int) -> Image.Image:
    """The picture's centre square in RGB, `resolution` px wide."""
    image = image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    # Made small by averages, in which no line gets lost between two pixels; made large by a smooth curve.
    return image.resize(
        (resolution, resolution), Image.BOX if side > resolution else Image.BICUBIC, box=box, reducing_gap=1.0
    )


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB picture as a float tensor of shape (3, height, width) in 0..1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255  # (H, W, 3) to (3, H, W)

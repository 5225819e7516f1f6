"""What both drawings of the sample data are made with: the parts of an SVG, and its picture."""

from __future__ import annotations

import io

import resvg_py
from PIL import Image

SIDE = 512  # everything is laid out on a square of this many pixels


def rasterise(body: str, view: float, size: int) -> Image.Image:
    """Turn the body of an SVG drawing with the viewBox 0 0 view view into an RGBA picture."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {names} width="{size}" height="{size}" viewBox="0 0 {view} {view}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def ellipse(x: float, y: float, rx: float, ry: float, fill: str, more: str = "") -> str:
    """An ellipse around (x, y)."""
    return f'<ellipse cx="{x}" cy="{y}" rx="{rx}" ry="{ry}" fill="{fill}" {more}/>'


def shape(d: str, fill: str) -> str:
    """A filled path."""
    return f'<path d="{d}" fill="{fill}"/>'


def stroke(d: str, colour: str, width: float, more: str = 'stroke-linecap="round"') -> str:
    """A path drawn as a line."""
    return f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round" {more}/>'

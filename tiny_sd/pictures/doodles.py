"""Pictures of nothing in particular for the autoencoder: what a scene lacks and a LoRA's training pictures may hold.

Hatching, thin lines, rings within rings, dots and small things of all colours, with outlines and without, on plain,
split and shaded grounds. An autoencoder that has seen such marks in any place can carry them, whatever they belong to:
a print's cuts, a whisker, an eye. Nothing here is shown to the denoiser.
"""

from __future__ import annotations

from typing import List, Tuple

import numpy as np
from PIL import Image, ImageDraw

CANVAS = 512
Color = Tuple[int, int, int]
Points = List[Tuple[float, float]]


def palette(rng: np.random.Generator) -> list[Color]:
    """Two to nine colours: a print has few, a drawing many. Black, white and the rims of the cube are frequent."""
    colors = rng.integers(0, 256, (rng.integers(2, 10), 3))
    extreme = rng.random(colors.shape) < 0.3
    colors[extreme] = rng.choice([0, 255], extreme.sum())
    if rng.random() < 0.5:
        colors[0] = rng.integers(0, 70, 3)
    if rng.random() < 0.5:
        colors[-1] = rng.integers(200, 256, 3)
    return [tuple(int(value) for value in color) for color in colors]


def ground(colors: list[Color], rng: np.random.Generator) -> Image.Image:
    """Plain, a few bands, or shaded from one colour to another."""
    image = Image.new("RGB", (CANVAS, CANVAS), colors[-1])
    kind = rng.random()
    if kind < 0.25:
        canvas, top = ImageDraw.Draw(image), 0.0
        while top < CANVAS:
            bottom = top + rng.uniform(30, 300)
            canvas.rectangle([0, top, CANVAS, bottom], fill=colors[rng.integers(len(colors))])
            top = bottom
        image = image.rotate(int(rng.choice([0, 0, 90, 30, 60])), fillcolor=colors[0])
    elif kind < 0.4:
        share = np.linspace(0, 1, CANVAS)[:, None, None]
        first, second = np.array(colors[-1]), np.array(colors[rng.integers(len(colors))])
        rows = np.broadcast_to(first + share * (second - first), (CANVAS, CANVAS, 3))
        image = Image.fromarray(rows.astype(np.uint8)).rotate(int(rng.choice([0, 90, 180, 270])))
    return image


def closed_curve(rng: np.random.Generator, x: float, y: float, size: float) -> Points:
    """A smooth outline around (x, y), a few waves upon an ellipse; or a polygon of three to seven corners."""
    corners = 64 if rng.random() < 0.7 else rng.integers(3, 8)
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, 2 * np.pi)
    radius = np.full(corners, size)
    for waves in range(2, 5):
        radius = radius * (1 + rng.uniform(0, 0.25) * np.cos(waves * turn + rng.uniform(0, 2 * np.pi)))
    across, tilt = rng.uniform(0.4, 1), rng.uniform(0, np.pi)
    u, v = radius * np.cos(turn), across * radius * np.sin(turn)
    return list(zip(x + u * np.cos(tilt) - v * np.sin(tilt), y + u * np.sin(tilt) + v * np.cos(tilt)))


def open_curve(rng: np.random.Generator, x: float, y: float, length: float) -> Points:
    """A line that bends once or twice (a cubic Bezier curve)."""
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.7, 3))
    knots = np.cumsum(np.vstack([[x, y], length / 3 * np.stack([np.cos(angle), np.sin(angle)], 1)]), 0)
    t = np.linspace(0, 1, 24)[:, None]
    curve = (1 - t) ** 3 * knots[0] + 3 * (1 - t) ** 2 * t * knots[1] + 3 * (1 - t) * t**2 * knots[2] + t**3 * knots[3]
    return [(float(u), float(v)) for u, v in curve]


def strokes(rng: np.random.Generator, fan: bool) -> list[Points]:
    """Wedges side by side, as hatching is, or from a centre outwards, as rays are; a little irregular."""
    center, wobble = rng.uniform(0, CANVAS, 2), rng.uniform(0, 0.15)
    if fan:
        edges = np.cumsum(rng.uniform(0.7, 1.3, 2 * rng.integers(10, 34)))
        edges = edges / edges[-1] * 2 * np.pi
        near, far = rng.uniform(0, 160), rng.uniform(250, 600)
        corners = [(near, 0), (far, 0), (far, 1), (near, 1)]
        bends = np.cumsum(rng.normal(0, wobble, (len(edges), 2)), 0) * 0.1
        return [
            [
                (center[0] + r * np.cos(edges[i + side] + bends[i, side]), center[1] + r * np.sin(edges[i + side]))
                for r, side in corners
            ]
            for i in range(0, len(edges) - 1, 2)
        ]
    tilt, period, width = rng.uniform(0, np.pi), rng.uniform(10, 48), rng.uniform(0.25, 0.7)
    along, across = np.array([np.cos(tilt), np.sin(tilt)]), np.array([-np.sin(tilt), np.cos(tilt)])
    reach = rng.uniform(40, 500)
    result = []
    for i in range(-int(reach / period), int(reach / period) + 1):
        start, end = -reach * rng.uniform(0.7, 1), reach * rng.uniform(0.7, 1)
        widths = period * width * (1 + rng.normal(0, wobble, 2)) / 2
        middle = center + i * period * across
        points = [middle + start * along, middle + end * along]
        result.append([tuple(points[k] + side * widths[k] * across) for k, side in ((0, -1), (1, -1), (1, 1), (0, 1))])
    return result


def doodle(index: int, resolution: int) -> Image.Image:
    """Doodle number `index`, RGB, `resolution` px; a function of the number alone."""
    rng = np.random.default_rng([20261129, index])
    colors = palette(rng)
    image = ground(colors, rng)

    def color() -> Color:
        return colors[rng.integers(len(colors))]

    def place() -> tuple[float, float]:
        return tuple(rng.uniform(0, CANVAS, 2))

    outline, line_width = color(), int(rng.integers(3, 16))
    for _ in range(rng.integers(3, 15)):
        canvas, kind = ImageDraw.Draw(image), rng.random()
        size = float(np.exp(rng.uniform(np.log(12), np.log(200))))
        if kind < 0.45:  # a thing, outlined or not, hatched or not
            points, fill = closed_curve(rng, *place(), size), color()
            canvas.polygon(points, fill=fill)
            if rng.random() < 0.35:
                mask = Image.new("L", image.size)
                ImageDraw.Draw(mask).polygon(points, fill=255)
                hatched, ink = image.copy(), color()
                for stroke in strokes(rng, fan=False):
                    ImageDraw.Draw(hatched).polygon(stroke, fill=ink)
                image.paste(hatched, (0, 0), mask)
                canvas = ImageDraw.Draw(image)
            if rng.random() < 0.5:
                canvas.line([*points, *points[:2]], fill=outline, width=line_width, joint="curve")
        elif kind < 0.6:  # rings within rings, and a spark of light
            x, y = place()
            size = min(size, 80)
            for share in sorted(rng.uniform(0.25, 1, rng.integers(1, 5)), reverse=True):
                (dx, dy), wide, tall = rng.normal(0, 0.05 * size, 2), size * share, size * share * rng.uniform(0.8, 1.2)
                canvas.ellipse([x + dx - wide, y + dy - tall, x + dx + wide, y + dy + tall], fill=color())
            spark = size * rng.uniform(0.1, 0.3)
            canvas.ellipse([x, y - 2 * spark, x + 2 * spark, y], fill=color())
        elif kind < 0.85:  # lines, alone or in bundles
            (x, y), width, ink = place(), int(rng.integers(3, 22)), color()
            for _ in range(rng.integers(1, 6)):
                canvas.line(open_curve(rng, x, y, 2 * size), fill=ink, width=width, joint="curve")
                x, y = x + rng.normal(0, 0.4 * size), y + rng.normal(0, 0.4 * size)
        elif kind < 0.93:  # dots
            ink, radius = color(), rng.uniform(4, 14)
            for _ in range(rng.integers(3, 20)):
                x, y = place()
                canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=ink)
        else:
            ink = color()
            for stroke in strokes(rng, fan=rng.random() < 0.5):
                canvas.polygon(stroke, fill=ink)
    return image.resize((resolution, resolution), Image.BOX)

"""Where everyday things can stand besides on a plain ground: in a garden, at night, in snow.

A LoRA that teaches one cat can put it "in a garden" only if the base knows what a garden is. Each place is a ground and
a sky with a few marks of its own, in colours that vary a little, drawn on a canvas of SIDE px.
"""

from __future__ import annotations

from typing import Callable, Tuple

import numpy as np
from PIL import Image, ImageDraw

SIDE = 512
Color = Tuple[int, int, int]


class Place:
    """A canvas with a sky and a ground that meet at `horizon`, and what is scattered over them."""

    def __init__(self, rng: np.random.Generator, sky: Color, ground: Color, horizon: float = 0.66) -> None:
        self.rng = rng
        self.horizon = round((horizon + rng.uniform(-0.06, 0.06)) * SIDE)
        self.image = Image.new("RGB", (SIDE, SIDE), self.vary(sky))
        self.canvas = ImageDraw.Draw(self.image)
        self.ground(0, ground)

    def vary(self, color: Color) -> Color:
        red, green, blue = (int(value) for value in np.clip(np.add(color, self.rng.integers(-14, 15, 3)), 0, 255))
        return red, green, blue

    def ground(self, below_horizon: float, color: Color) -> None:
        """Fills from the horizon down, or from `below_horizon` of the picture further down."""
        top = self.horizon + round(below_horizon * SIDE)
        self.canvas.rectangle([0, top, SIDE, SIDE], fill=self.vary(color))

    def dot(self, x: float, y: float, radius: float, color: Color) -> None:
        self.canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)

    def scatter(self, number: int, top: float, bottom: float) -> np.ndarray:
        """(number, 2) points between two heights in px, one in each of as many columns."""
        columns = (np.arange(number) + self.rng.random(number)) * SIDE / number
        return np.stack([columns, self.rng.uniform(top, bottom, number)], 1)

    def trees(self, number: int, height: float, leaves: Color, trunk: Color) -> None:
        """Pointed ones that stand on the horizon."""
        for x, foot in self.scatter(number, self.horizon, self.horizon + 24):
            tall = height * self.rng.uniform(0.8, 1.2)
            self.canvas.rectangle([x - 9, foot - 40, x + 9, foot], fill=trunk)
            self.canvas.polygon([(x, foot - tall), (x - 0.3 * tall, foot - 24), (x + 0.3 * tall, foot - 24)], leaves)


def garden(rng: np.random.Generator) -> Image.Image:
    place = Place(rng, (188, 228, 250), (118, 190, 84), 0.62)
    for x, y in place.scatter(7, place.horizon + 30, SIDE - 40):
        petals = ((226, 70, 110), (244, 196, 48), (150, 90, 200))[rng.integers(3)]
        place.canvas.line([(x, y), (x, y + 44)], (52, 122, 48), 8)
        for dx, dy in ((-11, 0), (11, 0), (0, -11), (0, 11)):
            place.dot(x + dx, y + dy, 11, petals)
        place.dot(x, y, 7, (255, 244, 200))
    return place.image


def beach(rng: np.random.Generator) -> Image.Image:
    place = Place(rng, (150, 216, 246), (40, 132, 200), 0.46)
    place.ground(0.2, (240, 214, 150))
    place.dot(rng.choice([0.15, 0.85]) * SIDE, 70, 44, (255, 214, 64))
    return place.image


def night(rng: np.random.Generator) -> Image.Image:
    place = Place(rng, (24, 28, 78), (40, 60, 96), 0.76)
    for x, y in place.scatter(14, 20, place.horizon - 30):
        place.dot(x, y, 6, (250, 246, 214))
    moon = rng.choice([0.15, 0.85]) * SIDE
    place.dot(moon, 80, 46, (250, 240, 180))
    return place.image


def snow(rng: np.random.Generator) -> Image.Image:
    place = Place(rng, (176, 202, 232), (240, 244, 250), 0.7)
    place.trees(4, 150, (58, 120, 104), (110, 76, 52))
    for x, y in place.scatter(22, 10, SIDE - 10):
        place.dot(x, y, 8, (252, 254, 255))
    return place.image


def forest(rng: np.random.Generator) -> Image.Image:
    place = Place(rng, (168, 206, 178), (84, 116, 56), 0.7)
    place.trees(7, 330, (36, 96, 56), (98, 66, 42))
    return place.image


def desert(rng: np.random.Generator) -> Image.Image:
    place = Place(rng, (250, 206, 140), (222, 160, 88), 0.6)
    for x, foot in place.scatter(3, place.horizon + 10, place.horizon + 60):
        green = place.vary((80, 134, 78))
        place.canvas.rounded_rectangle([x - 16, foot - 130, x + 16, foot], 16, green)
        place.canvas.rounded_rectangle([x - 54, foot - 76, x + 54, foot - 54], 11, green)
    return place.image


def rain(rng: np.random.Generator) -> Image.Image:
    place = Place(rng, (136, 148, 164), (96, 112, 120), 0.78)
    for x, y in place.scatter(26, 0, SIDE - 50):
        place.canvas.line([(x, y), (x - 14, y + 48)], (206, 222, 240), 7)
    return place.image


def sea(rng: np.random.Generator) -> Image.Image:
    place = Place(rng, (28, 120, 176), (214, 196, 140), 0.86)
    for x, y in place.scatter(12, 20, place.horizon):
        radius = rng.uniform(8, 18)
        place.canvas.ellipse([x - radius, y - radius, x + radius, y + radius], outline=(170, 226, 246), width=6)
    return place.image


# By the words that follow the thing in a caption.
PLACES: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "in a garden": garden,
    "on a beach": beach,
    "at night": night,
    "in snow": snow,
    "in a forest": forest,
    "in a desert": desert,
    "in the rain": rain,
    "under water": sea,
}

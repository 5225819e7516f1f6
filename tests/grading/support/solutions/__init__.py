"""Right and wrong texts for the TODO places: what the checks, the proof and the comparison are tried on."""

from __future__ import annotations

from solutions import wrong_controlnet, wrong_unet
from solutions.pieces import CONV, DOWN, INDENT, MID, PAIRS, SOLUTION, between_banners
from solutions.right import NOT_STRICT, RIGHT

__all__ = ["CONV", "DOWN", "INDENT", "MID", "NOT_STRICT", "PAIRS", "RIGHT", "SOLUTION", "WRONG", "between_banners"]

WRONG = [*wrong_controlnet.WRONG, *wrong_unet.WRONG]

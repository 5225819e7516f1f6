"""What a run folder says in JSON: measured scores, settings, prompts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Sequence

from .words import CONDITIONS

SCORES = {
    "iou": ("IoU", 3),
    "disc_color_difference": ("ΔE disc", 1),
    "background_color_difference": ("ΔE background", 1),
}


def read_json(path: Path, advice: str, problems: list[str]) -> dict[str, Any] | None:
    """A JSON object, or None and a problem."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path} is not there: {advice}.")
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{path} cannot be read ({error}): {advice}.")
        return None
    if not isinstance(value, dict):
        problems.append(f"{path} must hold a JSON object: {advice}.")
        return None
    return value


def read_prompts(path: Path, names: Sequence[str], advice: str, problems: list[str]) -> dict[str, str]:
    """The prompts by name from a JSON object, in the order of `names`; those that are not there are one problem."""
    prompts = read_json(path, advice, problems)
    if prompts is None:
        return {}
    found = {name: " ".join(prompts[name].split()) for name in names if isinstance(prompts.get(name), str)}
    missing = [name for name in names if not found.get(name)]
    if missing:
        problems.append(f"{path} has no prompt for {', '.join(missing)}: {advice}.")
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_scores(path: Path, metrics: dict[str, Any] | None, advice: str, problems: list[str]) -> list[list[list[str]]]:
    """For each condition pairs of a score's name and its value, as text; a colour that was not measured is a dash."""
    if metrics is None:
        return []
    rows = metrics.get("test_scores")
    if not isinstance(rows, list) or len(rows) != CONDITIONS or not all(isinstance(row, dict) for row in rows):
        problems.append(f'{path} must hold "test_scores" of the {CONDITIONS} test conditions: {advice}.')
        return []
    if not all(is_number(row.get("iou")) for row in rows):
        problems.append(f'"test_scores" in {path} have an "iou" that is no number: {advice}.')
        return []
    return [
        [
            [label, f"{row[key]:.{digits}f}" if is_number(row.get(key)) else "–"]
            for key, (label, digits) in SCORES.items()
        ]
        for row in rows
    ]


def figure(metrics: dict[str, Any] | None, *keys: str) -> float | None:
    """A number in nested objects, or None where there is none."""
    value: Any = metrics
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if is_number(value) else None


def caption_of(metrics: dict[str, Any] | None) -> str:
    """What Figure 1 shows and how it was measured, as far as metrics.json says it."""
    settings = [
        f"{name} {value:g}"
        for name, key in (("sampling steps", "num_inference_steps"), ("guidance", "guidance_scale"), ("seed", "seed"))
        if (value := figure(metrics, "settings", key)) is not None
    ]
    drawn_by = metrics.get("settings") if isinstance(metrics, dict) else None
    if isinstance(drawn_by, dict) and drawn_by.get("unconditional") == "base":
        settings.append("against the base’s own guess")
    caption = "The five test conditions, and what the trained ControlNet drew"
    caption += f" ({', '.join(settings)}). " if settings else ". "
    caption += (
        "IoU: overlap of the disc found in the picture with the outline’s inside; 1 is perfect. "
        "ΔE: colour difference (CIEDE2000) to the colour that the prompt names; below 2 an eye sees none."
    )
    mean, held_out = figure(metrics, "test", "mean_iou"), figure(metrics, "held_out", "mean_iou")
    without = figure(metrics, "held_out_without_controlnet", "mean_iou")
    if mean is not None:
        caption += f" Mean IoU of the five: {mean:.3f}"
        if held_out is not None:
            caption += f"; of {len(metrics.get('held_out_scores', [])) or 'the'} held-out conditions: {held_out:.3f}"
            caption += f", and {without:.3f} with ControlNet switched off" if without is not None else ""
        caption += "."
    return caption

"""What is to be seen, as HTML. Pictures stand in it as text: the page writes no file that somebody else might fetch."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Mapping

from ..conditions import Score, as_url
from ..found import Model
from ..jobs import Tile, View

GOOD, FAIR = 0.8, 0.5
WORDS = {
    "IoU": "overlap of the disc in the picture with the drawn one, 0 to 1",
    "edge F1": "how well the picture's edges match the condition's, 0 to 1",
}


def view(seen: View) -> str:
    """A heading and the pictures below it."""
    tiles = "".join(map(tile, seen.tiles))
    return f'<p class="said">{escape(seen.said)}</p><div class="tiles{" wide" if seen.wide else ""}">{tiles}</div>'


def tile(one: Tile) -> str:
    if one.image is None:
        picture = '<div class="missing"></div>'
    else:
        shown = "preview" if one.is_preview else "picture"
        picture = f'<img class="{shown}" alt="{escape(one.title)}" src="{as_url(one.image)}">'
    mark = "" if one.score is None else score(one.score)
    return (
        f'<figure data-tile="{escape(one.name)}">{picture}<figcaption><b>{escape(one.title)}</b>{mark}'
        f'<span class="note">{escape(one.note)}</span></figcaption></figure>'
    )


def score(one: Score) -> str:
    kind = "good" if one.value >= GOOD else "fair" if one.value >= FAIR else "poor"
    value = f"{one.value:.2f}"
    return f'<span class="score {kind}" title="{WORDS[one.measure]}">{one.measure} {value}</span>'


def waiting(text: str) -> str:
    """What stands where pictures will be."""
    return f'<p class="said">{escape(text)}</p>'


def note(runs: Path, nets: list[Model], others: int, loras: list[Model], empty: Mapping[str, str]) -> str:
    """What cannot be done yet, and the command that changes it; nothing where all is there."""
    lines = []
    if empty:
        places = "; ".join(f"TODO ({number}): {escape(what)}" for number, what in empty.items())
        lines.append(f"<b>Not filled in yet:</b> {places}. Until then no ControlNet draws here; the base and LoRAs do.")
    if not nets:
        also = f" ({others} there are for other bases.)" if others else ""
        lines.append(
            f"<b>No ControlNet for this base is in <code>{escape(runs.name)}/</code> yet.</b>{also} "
            "<code>make demo</code> trains one for the embedded base, in some minutes; it shows up here by itself, "
            "from its first checkpoint on."
        )
    if not loras:
        lines.append(
            "<b>No LoRA yet.</b> In <code>task_2_lora/</code>, "
            "<code>MODEL_NAME=../tiny_sd sh scripts/train_lora_custom.sh</code> trains one on the embedded base."
        )
    return "".join(f'<p class="todo">{line}</p>' for line in lines)

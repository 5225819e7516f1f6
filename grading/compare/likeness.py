"""What two hand-ins have in common, as a section of the teacher's page. It accuses nobody: it shows what is alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Sequence

from ..grades.teacher_page import escape

LINE = 0.5
MAX_SHOWN = 200  # pairs; of more the page says only how many there are

INTRODUCTION = """<p>This accuses nobody: it shows what is alike, the strongest first. Each line says for what an honest
reason is usual. Look at both, and ask, before you decide anything.</p>"""


@dataclass(frozen=True)
class Likeness:
    """One thing that two hand-ins have in common.

    `kind` is such as "LoRA"; `strength` is from 0 to 1, and what is at 0.5 or above is shown; `what` and `honest` are
    sentences: what is alike, and for what reason it may be. `passages` are texts of the first hand-in, `pictures`
    have a caption and a PNG file in base 64 each.
    """

    kind: str
    strength: float
    what: str
    honest: str
    passages: tuple[str, ...] = ()
    pictures: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class AlikePair:
    """Two hand-ins by name, and what they have in common, the strongest first."""

    first: str
    second: str
    likenesses: tuple[Likeness, ...]

    def weight(self) -> float:
        """By which pairs are put in order: of each kind the strongest counts once."""
        best: dict[str, float] = {}
        for one in self.likenesses:
            best[one.kind] = max(one.strength, best.get(one.kind, 0.0))
        return sum(best.values())


@dataclass(frozen=True)
class Comparison:
    """All pairs of `compared` hand-ins with something above the line, the strongest first.

    `below` has by kind a sentence about the strongest likeness that is below the line; `notes` say by hand-in what
    could not be compared; `groups` are sentences about what many have alike.
    """

    compared: int
    pairs: tuple[AlikePair, ...]
    below: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    groups: tuple[str, ...] = ()


def likeness_html(one: Likeness) -> str:
    passages = "".join(f"<pre>{escape(passage)}</pre>" for passage in one.passages)
    pictures = "".join(
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{escape(png)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, png in one.pictures
    )
    words = f"<p><b>{escape(one.kind)}</b>: {escape(one.what)}</p><p><i>{escape(one.honest)}</i></p>"
    return f"<li>{words}{passages}<div>{pictures}</div></li>"


def pair_html(pair: AlikePair, anchors: Mapping[str, str]) -> str:
    names = " and ".join(
        f'<a href="#{anchors[name]}">{escape(name)}</a>' if name in anchors else escape(name)
        for name in (pair.first, pair.second)
    )
    return f"<h3>{names}</h3><ul>{''.join(map(likeness_html, pair.likenesses))}</ul>"


def section(comparison: Comparison, anchors: Mapping[str, str] | None = None) -> str:
    """The section as HTML, with links to the hand-ins' own sections by their anchors."""
    total = comparison.compared * (comparison.compared - 1) // 2
    pairs = comparison.pairs
    shown = "".join(pair_html(pair, anchors or {}) for pair in pairs[:MAX_SHOWN])
    more = f"<p>And {len(pairs) - MAX_SHOWN} more pairs.</p>" if len(pairs) > MAX_SHOWN else ""
    below = "".join(f"<li>{escape(kind)}: {escape(words)}</li>" for kind, words in comparison.below.items())
    notes = "".join(
        f"<li>{escape(name)}: {escape(note)}</li>" for name, own in comparison.notes.items() for note in own
    )
    return (
        f'<section id="likeness"><h2>What hand-ins have in common</h2>{INTRODUCTION}'
        f"<p>{comparison.compared} hand-ins, {total} pairs, {len(pairs)} of them with something in common that other "
        f"pairs do not have:</p>{shown}{more}{''.join(f'<p>{escape(group)}</p>' for group in comparison.groups)}"
        + (f"<p>The strongest below the line:</p><ul>{below}</ul>" if below else "")
        + (f"<p>Not compared:</p><ul>{notes}</ul>" if notes else "")
        + "</section>"
    )

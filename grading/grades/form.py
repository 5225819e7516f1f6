"""The form for points by hand on the teacher's page: fields, what they know, and the script that keeps the entries.

The script runs from a page that was opened from disk, without a server. It is the only one that the page lets run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any, Mapping, Sequence

from .by_hand import Points, fields_in_use
from .results import is_graded, marks, share_left
from .rules import BY_HAND, Allowed, Rules

SCRIPT = Path(__file__).with_name("form.js").read_text(encoding="utf-8")
# Nothing else runs and nothing is loaded, whatever a hand-in may have smuggled into the page.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; script-src "
    f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
)
DATA_START, DATA_END = '<script type="application/json" id="points">', "</script>"
SAID_START, SAID_END = '<div id="points-said">', "</div>"
STYLE = """
.by-hand { display: flex; flex-wrap: wrap; gap: 1em; border: 1px solid #bbb; margin: 1em 0; padding: .5em 1em; }
.by-hand input, .by-hand select { font: inherit; width: 6em; } .by-hand input:invalid { background: #fbdfdc; }
.given { background: #dfe9fb; }
#points-bar { position: sticky; bottom: 0; background: #fff3cf; border-top: 2px solid #222; padding: .6em 1em; }
#points-bar p, #points-take p { margin: .2em 0; } [hidden] { display: none !important; }
button { font: inherit; padding: .2em 1em; }
"""


def data_block(content: Mapping[str, Any]) -> str:
    """JSON in an element of its own. No text in it can end the element: it has no <."""
    text = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    return f"{DATA_START}{text}{DATA_END}"


def said(sentences: Sequence[str]) -> str:
    """What there is to say about points by hand, in an element of its own: new points change it."""
    lines = "".join(f'<p class="wrong">{html.escape(sentence)}</p>' for sentence in sentences)
    return f"{SAID_START}{lines}{SAID_END}"


def form_data(
    results: Mapping[str, Mapping[str, Any]], folders: Mapping[str, str], points: Points, rules: Rules
) -> dict[str, Any]:
    """What the script must know: the fields, the program's points of each hand-in, and all entries so far."""
    hand_ins = []
    for name, result in results.items():
        own = marks(result, {})
        hand_ins.append(
            {
                "name": name,
                "folder": folders.get(name, ""),
                "graded": is_graded(result),
                "left": share_left(result),
                "task_1": own.task_1 if own else 0,
                "task_2": own.task_2 if own else 0,
            }
        )
    fields = [
        {"name": field, **asdict(rules.by_hand[field]), "words": rules.by_hand[field].words()}
        for field in fields_in_use(rules)
    ]
    entries = [asdict(entry) for entry in points.entries]
    return {"collection": points.collection, "fields": fields, "hand_ins": hand_ins, "entries": entries}


def field(name: str, allowed: Allowed, number: int) -> str:
    """One field of a hand-in's form. The script turns it on; without, nobody types for nothing."""
    place = f'data-input="{number}:{name}" disabled'
    if allowed.values is None:
        made = f'<input type="number" step="any" min="{allowed.low:g}" max="{allowed.high:g}" {place}>'
    else:
        options = "".join(f"<option>{value:g}</option>" for value in allowed.values)
        empty = "as proposed" if name == "task_2" else ""
        made = f'<select {place}><option value="">{empty}</option>{options}</select>'
    return f"<label>{BY_HAND[name]} ({allowed.words()}) {made}</label>"


def form(number: int, rules: Rules, left: float) -> str:
    """The fields of a hand-in."""
    fields = "".join(field(name, rules.by_hand[name], number) for name in fields_in_use(rules))
    less = f"<span>The rules take {100 * (1 - left):.4g} % off what you give, too.</span>" if left < 1 else ""
    return f'<div class="by-hand"><b>By hand</b>{fields}{less}</div>' if fields else ""


def bar(folder: str) -> str:
    """What the page says once something was entered: what to do with it."""
    command = html.escape(f"python -m grading.points points_by_hand.json --grades {shlex.quote(folder)}")
    return f"""<div id="points-take" hidden><p>This browser keeps <span id="points-others"></span> points by hand of
another grading for hand-ins of these names. <button type="button">Take them over</button></p></div>
<div id="points-bar" hidden><p><b><span id="points-count"></span> entries by hand are in this browser only.</b>
<button type="button" id="points-save">Save points_by_hand.json</button></p>
<p>Then bring them into the table and this page: <code>{command}</code>, with the place where your browser saved it, and
load this page again.</p>
<p id="points-lost" class="wrong" hidden>This browser keeps nothing of it: save before you close the page.</p></div>"""

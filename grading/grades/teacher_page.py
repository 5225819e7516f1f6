"""The teacher's page: all hand-ins in one HTML file, with points, reasons and pictures; it needs nothing else."""

from __future__ import annotations

import html
import re
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, Iterable, Mapping, Sequence

from . import form
from .by_hand import Points, ahead, fields_in_use, outdated, unused
from .numbers import Numbers
from .results import first_line, in_short, is_graded, share_left, tasks_of
from .rubric import FULL, TASKS
from .rules import BY_HAND, Rules

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3em .7em; border-bottom: 1px solid #ddd; vertical-align: top; }
td.points, th.points { text-align: right; white-space: nowrap; }
section { border-top: 3px solid #222; margin-top: 2.5em; }
.full { background: #e2f2e4; } .half { background: #fff3cf; } .zero { background: #fbdfdc; }
.reason { width: 30%; min-width: 11em; overflow-wrap: anywhere; }
pre { background: #f4f4f4; padding: .6em; overflow: auto; font-size: 12px; max-height: 24em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
figure { display: inline-block; margin: 0 .6em .8em 0; }
figure img { width: 128px; height: 128px; display: block; background: #eee; }
figcaption { font-size: 12px; color: #555; }
.rows { display: flex; flex-wrap: wrap; gap: 0 2em; } .row p { margin: .4em 0; font-size: 13px; }
.wrong { color: #a4231a; font-weight: 600; } .right { color: #1d6b2a; }
"""

LONGEST = 240  # letters of a sentence in the table on top

INTRO = (
    "Whether pictures have the style or the subject of their training data only a person can say: the points of Task 2 "
    "are a proposal, and the last word is yours."
)
QUICK_INTRO = (
    "A quick look at what is wrong at first sight: nothing was trained or drawn, so there are no points, and none to "
    "give by hand."
)


def escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def render(markdown: str) -> str:
    """The little Markdown of the reasons, as HTML: paragraphs, lists, **bold**, and fenced blocks as they are.

    All of it is escaped: it quotes what students wrote.
    """
    parts = []
    for quoted, text in pieces(markdown):
        if quoted:
            parts.append(f"<pre>{escape(text)}</pre>")
            continue
        lines = []
        for line in text.splitlines():
            line = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(line))
            lines.append(f"<li>{line[2:]}</li>" if line.startswith("- ") else f"<p>{line}</p>" if line.strip() else "")
        parts.append("\n".join(lines))
    return re.sub(r"((?:<li>.*</li>\s*)+)", r"<ul>\1</ul>", "\n".join(parts))


def pieces(markdown: str) -> list[tuple[bool, str]]:
    """The text in pieces: is it a fenced block, and what does it say."""
    found: list[tuple[bool, list[str]]] = [(False, [])]
    fence = None
    for line in markdown.splitlines():
        if line == fence:
            fence = None
            found.append((False, []))
        elif fence is None and re.fullmatch("`{3,}", line):
            fence = line
            found.append((True, []))
        else:
            found[-1][1].append(line)
    return [(quoted, "\n".join(lines)) for quoted, lines in found]


def kind(score: float) -> str:
    return "full" if score == FULL else "zero" if score == 0 else "half"


def in_brief(result: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    """What the table on top says of a task: the verdict, and of what is wrong the first; the rest stands below."""
    verdict = first_line(task["output"]).partition(" Trained for ")[0]
    group = f"{task['name'].partition(':')[0]}: "
    for test in result["tests"]:
        other = test["name"] == "Hand-in" or test["name"].startswith(group) and test is not task
        why = first_line(test["output"])
        if other and test["status"] != "passed" and why not in verdict:
            return f"{shortened(verdict)} {shortened(why)}"
    return shortened(verdict)


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def summary_row(name: str, number: int, result: Mapping[str, Any], rules: Rules) -> str:
    graded = is_graded(result)
    total = f"{result['score']:g}" if graded else ""
    link = f'<a href="#hand-in-{number}">{escape(name)}</a>'
    cells = [f'<td>{link}</td><td class="points"><b data-cell="{number}:total">{total}</b></td>']
    for task, test in zip(("task_1", "task_2"), tasks_of(result)):
        reason = escape(in_brief(result, test))
        points, style = (f"{test['score']:g}", kind(test["score"])) if graded else ("", "")
        cells.append(f'<td class="points {style}" data-cell="{number}:{task}">{points}</td>')
        cells.append(f'<td class="reason">{reason}</td>')
    cells += [f'<td class="points" data-cell="{number}:{field}"></td>' for field in more_columns(rules)]
    return f"<tr>{''.join(cells)}</tr>"


def more_columns(rules: Rules) -> list[str]:
    """The fields by hand that have a column of their own."""
    return [field for field in fields_in_use(rules) if field != "task_2"]


def heads(rules: Rules) -> str:
    tasks = "".join(
        f'<th class="points">{escape(task.partition(":")[0])}</th><th class="reason">reason</th>' for task in TASKS
    )
    return tasks + "".join(f'<th class="points">{BY_HAND[field]}</th>' for field in more_columns(rules))


def settings(numbers: Numbers) -> str:
    """All numbers and rules, one a line."""
    used = asdict(numbers)
    used.update(used.pop("rules"))
    return "\n".join(f"{name} = {value!r}" for name, value in used.items())


def picture_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Pictures in groups, such as a condition and what was generated for it, each with its prompt."""
    shown = []
    for title in dict.fromkeys(row["title"] for row in rows):
        groups = []
        for row in rows:
            if row["title"] == title:
                figures = "".join(
                    f'<figure><img alt="{escape(p["caption"])}" src="data:image/png;base64,{escape(p["png"])}">'
                    f"<figcaption>{escape(p['caption'])}</figcaption></figure>"
                    for p in row["pictures"]
                )
                groups.append(f'<div class="row"><p>{escape(row["text"])}</p>{figures}</div>')
        shown.append(f'<h3>{escape(title)}: pictures</h3><div class="rows">{"".join(groups)}</div>')
    return "".join(shown)


def hand_in_section(
    name: str, number: int, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], rules: Rules
) -> str:
    tests = []
    total = escape(in_short(result))
    if is_graded(result):
        total = f'<span data-cell="{number}:total">{result["score"]:g}</span> points'
    for test in result["tests"]:
        counts = test["max_score"] and is_graded(result)
        points = f"{test['score']:g} of {test['max_score']:g}" if counts else ""
        passed = test["status"] == "passed"
        mark = f'<span class="{"right" if passed else "wrong"}">{"right" if passed else "wrong"}</span>'
        style = kind(test["score"]) if counts else ""
        tests.append(
            f'<tr><td>{escape(test["name"])}</td><td class="points {style}">{points}</td><td>{mark}</td>'
            f"<td>{render(test['output'])}</td></tr>"
        )
    return (
        f'<section id="hand-in-{number}"><h2>{escape(name)}: {total}</h2>'
        f"<table>{''.join(tests)}</table>{picture_rows(rows)}"
        f"{form.form(number, rules, share_left(result))}</section>"
    )


def isolation(results: Mapping[str, Mapping[str, Any]]) -> str:
    gaps = dict.fromkeys(gap for result in results.values() for gap in result["extra_data"]["gaps"])
    if not gaps:
        return "<p>Student's code ran as another user, without a network, out of sight of everything else.</p>"
    listed = "".join(f"<li>{escape(gap)}</li>" for gap in gaps)
    return f'<p class="wrong">The sandbox was not complete on this machine:</p><ul>{listed}</ul>'


def anchors_of(names: Iterable[str]) -> dict[str, str]:
    """What each hand-in's section is called on the page."""
    return {name: f"hand-in-{i}" for i, name in enumerate(names)}


def end_of(
    results: Mapping[str, Mapping[str, Any]], folders: Mapping[str, str], points: Points, rules: Rules, output: str
) -> str:
    """What makes the fields by hand work."""
    data = form.data_block(form.form_data(results, folders, points, rules))
    return f"{form.bar(output)}\n{data}\n<script>{form.SCRIPT}</script>"


def page(
    results: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    numbers: Numbers,
    left_out: Sequence[str] = (),
    likeness: str = "",
    points: Points | None = None,
    folders: Mapping[str, str] | None = None,
    output: str = "build/grades",
) -> str:
    """The page as HTML.

    Args:
        results: the contents of results.json by hand-in.
        rows: the pictures, as `results.gallery` makes them.
        left_out: sentences about what was not graded.
        likeness: a section about what hand-ins have in common, HTML.
        points: those given by hand so far.
        folders: of each hand-in the folder with its results.json, in the folder `output`.
    """
    quick = any(result["extra_data"].get("quick") for result in results.values())
    rules, points = numbers.rules.without_points_by_hand() if quick else numbers.rules, points or Points("")
    summary = "".join(summary_row(name, i, result, rules) for i, (name, result) in enumerate(results.items()))
    sections = "".join(
        hand_in_section(name, i, result, rows[name], rules) for i, (name, result) in enumerate(results.items())
    )
    of_points = [*unused(points, numbers.rules, results), *ahead(points, datetime.now(timezone.utc))]
    of_points += outdated(points, results)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{form.POLICY}">
<title>Grades</title><style>{STYLE}{form.STYLE}</style></head><body>
<h1>Grades</h1>
<p>{QUICK_INTRO if quick else INTRO}</p>
{isolation(results)}
{"".join(f'<p class="wrong">{escape(sentence)}</p>' for sentence in left_out)}
{form.said(of_points)}
<table><tr><th>hand-in</th><th class="points">total</th>{heads(rules)}</tr>{summary}</table>
{likeness}
{sections}
<section><h2>The numbers that were used</h2><pre>{escape(settings(numbers))}</pre></section>
{"" if quick else end_of(results, folders or {}, points, rules, output)}
</body></html>
"""

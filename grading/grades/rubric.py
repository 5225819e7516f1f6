"""The assignment's rubric: from what was found out about a hand-in to points, each with its reason in words.

Task 1 and Task 2 have 0, 5 or 10 points each. Nothing here looks at files or runs anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from statistics import mean
from typing import Mapping

from ..handed_out.banners import TODOS
from ..handed_out.record import Change
from .numbers import Numbers
from .rules import FULL, TASKS, Rules, in_hundredths

HALF, ZERO = FULL / 2, 0.0
# The problem of an alignment that nobody looked for.
NOT_TRAINED = "A quick look trains nothing."


@dataclass(frozen=True)
class Todos:
    """What is wrong with each TODO place, nothing for a right one; `stuck` are those that did not come to an end.

    `notes` say what is worth saying about each and costs no points.
    """

    problems: Mapping[str, tuple[str, ...]]
    stuck: tuple[str, ...] = ()
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        return [todo for todo in TODOS if self.problems.get(todo)]


@dataclass(frozen=True)
class Alignment:
    """What the student's ControlNet drew after the grader's training; `problem` says why the code did not run.

    `ious` are the overlaps of the five test conditions, `held_out` those of the others, `pictures` five PNG files.
    `log` is the end of what the training printed. `proved_after` says after how many steps it was known that the
    training ends where the right solution's ended; 0: it was trained to its end, and `why_whole` says why.
    """

    problem: str | None = None
    log: str = ""
    ious: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()
    pictures: tuple[bytes, ...] = ()
    proved_after: int = 0
    why_whole: str = ""

    @property
    def mean_iou(self) -> float:
        return mean((*self.ious, *self.held_out))


@dataclass(frozen=True)
class Lora:
    """What is known of a LoRA: `problem` is what is wrong, `facts` what is right; `pictures` were drawn with it."""

    problem: str | None
    facts: str = ""
    pictures: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """All that was found out about a hand-in.

    missing: a sentence for each item that is not there, by item: "report", "code", "lora_1", "lora_2".
    unreadable: why the hand-in was not even unpacked; then nothing else is known.
    report: what is wrong with a report that can be read.
    unusable: why the text between the banners cannot be taken.
    changes: what was changed outside the banners.
    notes: what the teacher may want to know and is no fault.
    days_late: how many days after it was due it was handed in.
    of_reference: the time of the student's recipe in the contest, as a multiple of the reference's.
    """

    missing: Mapping[str, str]
    unreadable: str | None = None
    report: str | None = None
    unusable: str | None = None
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    todos: Todos | None = None
    alignment: Alignment | None = None
    loras: Mapping[str, Lora] | None = None
    plain_pictures: tuple[bytes, ...] = ()
    days_late: int = 0
    of_reference: float | None = None

    @property
    def mean_iou(self) -> float | None:
        """The overlap that was measured, if the student's code ran."""
        return self.alignment.mean_iou if self.alignment and not self.alignment.problem else None


@dataclass(frozen=True)
class Score:
    """One line of the result: points, whether it is as it should be, and the reason, in Markdown."""

    name: str
    score: float
    max_score: float
    passed: bool
    output: str


def block(text: str) -> str:
    """Text as it is in Markdown: fenced by more backticks than there are anywhere in it."""
    text = text.strip("\n")
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"\n\n{fence}\n{text}\n{fence}\n" if text else ""


def late_share(days: int, rules: Rules) -> float:
    """What so many late days take off the score."""
    if rules.late_last_day and days > rules.late_last_day:
        return 1.0
    return min(1.0, max(0, days - rules.late_free_days) * rules.late_day)


def deductions(evidence: Evidence, rules: Rules) -> dict[str, float]:
    """What the rules take off the score, as shares of it, by the sentences that say so."""
    days = f"{evidence.days_late} day{'s' if evidence.days_late > 1 else ''}"
    late, each = late_share(evidence.days_late, rules), rules.missing_item
    missing = "If any item is missing" if each == 1 else "For each item that is missing"
    found = {
        taken_off(missing, each): each * len(evidence.missing),
        taken_off("If code outside the TODO places is changed", rules.changes): rules.changes * bool(evidence.changes),
        taken_off("If the report breaks the rules", rules.long_report): rules.long_report * bool(evidence.report),
        taken_off(f"As it came {days} late", late): late,
    }
    return {sentence: share for sentence, share in found.items() if share}


def share_left(evidence: Evidence, rules: Rules) -> float:
    """What the rules leave of the score, as a share of it."""
    return 1 - min(1.0, sum(deductions(evidence, rules).values()))


def taken_off(condition: str, share: float) -> str:
    return f"{condition}, {'the score is zero' if share == 1 else f'{100 * share:.4g} % of the score are taken off'}."


def how_it_is_known(alignment: Alignment) -> str:
    """Whether it was trained to its end, or proved to end where the right solution ended; empty if nobody asked."""
    if alignment.proved_after:
        return (
            f" That is known without training it to its end: after {alignment.proved_after} steps its ControlNet "
            "equals the right solution's to the bit, and its code does the same in every step."
        )
    return f" It was trained to its end, as {alignment.why_whole}." if alignment.why_whole else ""


def judge_task_1(evidence: Evidence, numbers: Numbers) -> tuple[float, str]:
    """Points and the reason."""
    for item in ("report", "code"):
        if item in evidence.missing:
            return ZERO, evidence.missing[item]
    if evidence.unusable:
        return ZERO, evidence.unusable
    todos, alignment = evidence.todos, evidence.alignment
    wrong = "".join(f"\n- {problem}" for todo in todos.wrong for problem in todos.problems[todo])
    named = f"\n\nWhat is wrong:{wrong}" if wrong else ""
    if alignment.problem == NOT_TRAINED:
        return (HALF, f"There is something wrong.{named}") if wrong else (FULL, "Every TODO place does what it must.")
    if alignment.problem:
        return ZERO, f"The code cannot be executed: {alignment.problem}{named}{block(alignment.log)}"
    measured = (
        f"Trained for {numbers.train_steps} steps, it draws discs that overlap with their conditions by "
        f"{alignment.mean_iou:.2f} (mean IoU of {len(alignment.ious) + len(alignment.held_out)} conditions; at least "
        f"{numbers.least_iou:.2f} is asked for).{how_it_is_known(alignment)}"
    )
    if alignment.mean_iou < numbers.least_iou:
        return HALF, f"The generated images do not align with the conditions. {measured}{named}"
    if wrong:
        places = ", ".join(f"({todo})" for todo in todos.wrong)
        return HALF, f"The images align, but TODO {places} is wrong, so these are not full marks. {measured}{named}"
    return FULL, f"The generated images align with the conditions. {measured}"


def judge_task_2(evidence: Evidence, numbers: Numbers) -> tuple[float, str]:
    """Points and the reason."""
    if "report" in evidence.missing:
        return ZERO, evidence.missing["report"]
    problems = {name: evidence.missing.get(name) or lora.problem for name, lora in all_loras(evidence).items()}
    bad = {name: problem for name, problem in problems.items() if problem}
    if not bad:
        return FULL, "Both LoRAs are good."
    reasons = "".join(f"\n- {name}: {problem}" for name, problem in bad.items())
    points = HALF if len(bad) == 1 else numbers.rules.both_loras_wrong
    return points, f"Not both LoRAs are good: see {' and '.join(bad)}.{reasons}"


def all_loras(evidence: Evidence) -> dict[str, Lora]:
    found = evidence.loras or {}
    return {
        name: found.get(name, Lora(evidence.missing.get(name, "It was not judged."))) for name in ("lora_1", "lora_2")
    }


def describe_hand_in(evidence: Evidence, numbers: Numbers) -> Score:
    """What is there, what is not, and what was changed where nothing must be."""
    lines = [*evidence.missing.values(), *([evidence.report] if evidence.report else [])]
    text = "".join(f"- {line}\n" for line in lines)
    for change in evidence.changes:
        text += f"- {change.problem}{block(change.diff)}\n"
    if evidence.changes and not numbers.rules.changes:
        text += (
            "\nBy the rules, changed code outside the TODO places means a score of zero. Only the text between the "
            "banners was used here, so the points below are those of that text; the teacher decides.\n"
        )
    rules = deductions(evidence, numbers.rules)
    if rules:
        text += f"\n**{' '.join(rules)}** The reasons below say what else was found.\n"
    late = late_share(evidence.days_late, numbers.rules)
    if evidence.days_late and not late:
        text += f"- Note: Late days: {evidence.days_late}. They cost nothing.\n"
    text += "".join(f"- Note: {note}\n" for note in evidence.notes)
    passed = not (lines or evidence.changes or late)
    return Score(
        "Hand-in", 0.0, 0.0, passed, text or "All items are there, and nothing outside the TODO places is changed."
    )


def describe_todos(evidence: Evidence) -> list[Score]:
    """One line for each TODO place that was checked."""
    if evidence.todos is None:
        return []
    tests = []
    for todo in TODOS:
        problems = evidence.todos.problems.get(todo, ())
        text = "\n".join(f"- {problem}" for problem in problems) or "It does what it must."
        text += "".join(f"\n- Note: {note}" for note in evidence.todos.notes.get(todo, ()))
        tests.append(Score(f"Task 1: TODO ({todo})", 0.0, 0.0, not problems, text))
    return tests


def describe_loras(evidence: Evidence) -> list[Score]:
    return [
        Score(
            f"Task 2: {name}", 0.0, 0.0, not lora.problem, " ".join(part for part in (lora.problem, lora.facts) if part)
        )
        for name, lora in all_loras(evidence).items()
    ]


def grade(evidence: Evidence, numbers: Numbers) -> list[Score]:
    """The result: the hand-in, then each task's points and what they are made of. The score is their sum."""
    if evidence.unreadable:
        return [
            Score("Hand-in", ZERO, ZERO, False, evidence.unreadable),
            *(Score(name, ZERO, FULL, False, "The hand-in cannot be read.") for name in TASKS),
        ]
    rules = deductions(evidence, numbers.rules)
    left = share_left(evidence, numbers.rules)
    without = "this rule" if len(rules) == 1 else "these rules"
    tasks = []
    for name, judge in zip(TASKS, (judge_task_1, judge_task_2)):
        score, text = judge(evidence, numbers)
        if rules and score:
            text = f"{' '.join(rules)} Without {without} it would be {score:g} points: {text}"
            score = in_hundredths(score * left)
        tasks.append(Score(name, score, FULL, score == FULL, text))
    return lines(evidence, numbers, *tasks)


def look_quickly(evidence: Evidence, numbers: Numbers) -> list[Score]:
    """The lines of `grade` without points, where nothing was trained or drawn: a task passes if nothing is wrong."""
    if evidence.unreadable:
        return grade(evidence, numbers)
    tasks = []
    for name, judge in zip(TASKS, (judge_task_1, judge_task_2)):
        score, text = judge(evidence, numbers)
        tasks.append(Score(name, ZERO, FULL, score == FULL, f"{text}\n\nA quick look trains and draws nothing."))
    return lines(evidence, numbers, *tasks)


def lines(evidence: Evidence, numbers: Numbers, task_1: Score, task_2: Score) -> list[Score]:
    """The result's lines, those of the two tasks among them."""
    return [
        describe_hand_in(evidence, numbers),
        task_1,
        *describe_todos(evidence),
        task_2,
        *describe_loras(evidence),
    ]

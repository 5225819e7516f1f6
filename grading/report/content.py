"""What stands in the report: the student's words, and what the run folders hold, as plain data for the template."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence

from PIL import Image

from .pictures import Picture, fit_box, justified_row, list_pictures, open_picture
from .scores import caption_of, read_json, read_prompts, read_scores
from .words import CONDITIONS, KEYS, OPTIONAL_TASK, ReportError, Words

ROOT = Path(__file__).resolve().parents[2]
TEST_CONDITIONS = ROOT / "task_1_controlnet" / "data" / "test_conditions"
TEST_PROMPTS = ROOT / "task_1_controlnet" / "data" / "test_prompts.json"
RESTORE = "restore it, it comes with the assignment"
# What a page has room for, mm; the template lays its columns out with these.
ROW_WIDTH, GAP, MAX_HEIGHT = 172.0, 3.0, 41.0
MAX_TRAINING = 6
# The keys under which words stand that somebody wrote: strings, or lists of paragraphs.
WRITTEN = ("opening", "source", "prompt", "analysis", "text", "comment")


@dataclass
class Content:
    """The report as data for the template, where a picture is {"file", "width", "height"} with sizes in mm.

    `pictures` has them by file. `problems` says in a sentence each what is missing or wrong; only without any is the
    rest whole. `notes` are for the student too, and stop nothing.
    """

    sections: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, Picture] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def place(self, picture: Picture) -> dict[str, Any]:
        name = f"picture-{len(self.pictures)}"
        self.pictures[name] = picture
        return {"file": name, "width": picture.width, "height": picture.height}

    def open_all(self, paths: Sequence[Path], advice: str) -> list[Image.Image]:
        """The pictures that can be opened; the others are noted as problems, with `advice` on how to get them."""
        missing = [str(path) for path in paths if not path.exists()]
        if missing:
            self.problems.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not there: {advice}.")
        images = []
        for path in paths:
            try:
                images += [open_picture(path)] if path.exists() else []
            except ReportError as error:
                self.problems.append(f"{error}.")
        return images


def paragraphs(text: str) -> list[str]:
    """Text between empty lines, each on one line."""
    blocks = "\n".join(line.strip() for line in text.splitlines()).split("\n\n")
    return [" ".join(block.split()) for block in blocks if block.strip()]


# Task 1


def task_1(words: Words, content: Content) -> None:
    """Adds the section: one column for each condition, with what evaluate.py measured."""
    conditions = content.open_all([TEST_CONDITIONS / f"{i}.png" for i in range(CONDITIONS)], RESTORE)
    prompts = read_prompts(TEST_PROMPTS, [str(i) for i in range(CONDITIONS)], RESTORE, content.problems).values()
    if not words.get("task_1.run"):
        return
    run = words.folder / words.get("task_1.run")
    program = f"`python evaluate.py --controlnet FOLDER --output_dir {run.resolve()}` in task_1_controlnet/ writes it"
    if not run.is_dir():
        content.problems.append(f"The folder {run} (task_1.run) is not there: `make demo`, or {program}.")
        return
    generated = content.open_all([run / "generated" / f"{i}.png" for i in range(CONDITIONS)], program)
    metrics = read_json(run / "metrics.json", program, content.problems)
    scores = read_scores(run / "metrics.json", metrics, program, content.problems)
    columns = columns_of(content, conditions, generated, prompts)
    for i, (column, row) in enumerate(zip(columns, scores)):
        column.update(scores=row, analysis=paragraphs(words.get(f"task_1.analysis.{i}")))
    content.sections.append(
        {
            "name": "Task 1",
            "title": "ControlNet on Fill50K",
            "opening": [],
            "columns": columns,
            "caption": caption_of(metrics),
            "comment": paragraphs(words.get("task_1.comment")),
        }
    )


def columns_of(
    content: Content, conditions: Sequence[Image.Image], generated: Sequence[Image.Image], prompts: Iterable[str]
) -> list[dict[str, Any]]:
    width = (ROW_WIDTH - GAP * (CONDITIONS - 1)) / CONDITIONS
    return [
        {
            "prompt": prompt,
            "condition": content.place(fit_box(condition, width, MAX_HEIGHT)),
            "generated": content.place(fit_box(image, width, MAX_HEIGHT)),
        }
        for condition, image, prompt in zip(conditions, generated, prompts)
    ]


# Task 1-1 and Task 2


def chosen_pictures(words: Words, key: str, most: int, content: Content) -> list[Path]:
    """The files of a key, at most `most`: of a folder the first by name, which is noted; a longer list is a problem."""
    chosen = words.get(key)
    if not chosen:
        return []
    try:
        paths = list_pictures(chosen, words.folder)
    except ReportError as error:
        content.problems.append(f"{key}: {error}. Name {KEYS[key].hint}.")
        return []
    if len(paths) > most and isinstance(chosen, str):
        content.notes.append(f"{key}: shows the first {most} of {len(paths)} pictures; to choose, list the files.")
    elif len(paths) > most:
        content.problems.append(f"{key} lists {len(paths)} pictures, and {most} have room: take some out.")
    return paths[:most]


def five_pictures(words: Words, key: str, content: Content) -> tuple[list[Path], list[Image.Image]]:
    paths = chosen_pictures(words, key, CONDITIONS, content)
    if paths and len(paths) < CONDITIONS:
        content.problems.append(f"{key} has only {len(paths)} pictures: five are asked for.")
    return paths, content.open_all(paths, f"draw it, or mend {key}")


def prompts_of(words: Words, task: str, paths: Sequence[Path], content: Content) -> list[str]:
    """The prompts of the generated pictures, from the words or from a prompts.json beside each picture."""
    prompts = words.get(f"{task}.prompts", [])
    if prompts and paths and len(prompts) != len(paths):
        content.problems.append(f"{task}.prompts must be {len(paths)}, one for each picture, and are {len(prompts)}.")
    if prompts or not paths:
        return [" ".join(prompt.split()) for prompt in prompts]
    known: dict[Path, str] = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        names = [path.name for path in paths if path.parent == folder]
        advice = f'write {{"{names[0]}": "its prompt", ...}} into it, or give {task}.prompts'
        found = read_prompts(folder / "prompts.json", names, advice, content.problems)
        known.update({folder / name: prompt for name, prompt in found.items()})
    return [known.get(path, "") for path in paths]


def task_1_1(words: Words, content: Content) -> None:
    """Adds the section, if the student did the task."""
    if not words.has_task_1_1:
        return
    _, conditions = five_pictures(words, f"{OPTIONAL_TASK}.conditions", content)
    paths, generated = five_pictures(words, f"{OPTIONAL_TASK}.generated", content)
    prompts = prompts_of(words, OPTIONAL_TASK, paths, content)
    content.sections.append(
        {
            "name": "Task 1-1",
            "title": "ControlNet on another condition",
            "opening": paragraphs(words.get(f"{OPTIONAL_TASK}.explanation")),
            "columns": columns_of(content, conditions, generated, prompts),
            "caption": "Conditions, prompts, and what the ControlNet of Task 1-1 drew.",
            "comment": paragraphs(words.get(f"{OPTIONAL_TASK}.comment")),
        }
    )


def task_2(words: Words, task: str, name: str, title: str, content: Content) -> None:
    """Adds the section of a LoRA: its data, training pictures, and generated pictures with prompts."""
    paths = chosen_pictures(words, f"{task}.training", MAX_TRAINING, content)
    training = content.open_all(paths, f"mend {task}.training")
    captions = words.get(f"{task}.training_captions", [])
    if captions and paths and len(captions) != len(paths):
        content.problems.append(f"{task}.training_captions must be {len(paths)}, and are {len(captions)}.")
    generated_paths, generated = five_pictures(words, f"{task}.generated", content)
    prompts = prompts_of(words, task, generated_paths, content)
    rows = [("training", training, captions or [""] * len(training)), ("generated", generated, prompts)]
    content.sections.append(
        {
            "name": name,
            "title": title,
            "opening": paragraphs(words.get(f"{task}.description")),
            "source": " ".join(words.get(f"{task}.source").split()),
            "rows": [row_of(content, *row) for row in rows],
            "caption": "Training pictures (top row), and what the LoRA drew for the prompts below (bottom row).",
            "comment": paragraphs(words.get(f"{task}.comment")),
        }
    )


def row_of(content: Content, label: str, images: Sequence[Image.Image], texts: Sequence[str]) -> dict[str, Any]:
    row = justified_row(images, ROW_WIDTH, GAP, MAX_HEIGHT) if images else []
    return {"label": label, "pictures": [{**content.place(p), "text": text} for p, text in zip(row, texts)]}


# All of it


def read_content(words: Words, problems: Sequence[str]) -> Content:
    """Everything that the report shows. What is missing or wrong is in its `problems`, after those given."""
    content = Content()
    task_1(words, content)
    task_1_1(words, content)
    task_2(words, "task_2_1", "Task 2-1", "LoRA on a visual style", content)
    task_2(words, "task_2_2", "Task 2-2", "DreamBooth with LoRA on one subject", content)
    content.problems[:0] = problems
    return content


def parts_of(section: dict[str, Any]) -> list[dict[str, Any]]:
    """The section itself, and its columns or the pictures of its rows: all that can have words or pictures."""
    return [section, *section.get("columns", []), *(p for row in section.get("rows", []) for p in row["pictures"])]


def files_of(section: dict[str, Any]) -> list[str]:
    """The files of the section's pictures."""
    places = [place for part in parts_of(section) for place in (part, part.get("condition"), part.get("generated"))]
    return [place["file"] for place in places if place and "file" in place]


def written(section: dict[str, Any]) -> Iterator[str]:
    """The texts of a section that somebody wrote: the student's words and the prompts."""
    for part in parts_of(section):
        for key in WRITTEN:
            value = part.get(key, "")
            yield from [value] if isinstance(value, str) else value


def count_words(sections: Sequence[dict[str, Any]]) -> Counter[str]:
    """The number of written words by section."""
    return Counter({section["name"]: sum(len(text.split()) for text in written(section)) for section in sections})


def shorten(section: dict[str, Any], limit: int) -> dict[str, Any]:
    """The section with each of its written texts cut to `limit` words."""
    section = copy.deepcopy(section)
    for part in parts_of(section):
        for key in WRITTEN:
            value = part.get(key, "")
            words = (value if isinstance(value, str) else " ".join(value)).split()
            if len(words) > limit:
                short = " ".join(words[:limit])
                part[key] = short if isinstance(value, str) else [short]
    return section

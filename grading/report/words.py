"""The student's words for the report: a TOML file, read and checked key by key."""

from __future__ import annotations

import codecs
import difflib
import re
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONDITIONS = 5
OPTIONAL_TASK = "task_1_1"
STUDENT_ID = re.compile(r"20\d{6}", re.ASCII)
ID_IN_WORDS = "eight digits that begin with 20, such as 20241234"


class ReportError(Exception):
    """The report cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Key:
    """One key of the words file: `hint` says what to write there, `kind` is text, texts (a list) or pictures (either).

    A key that is not `required` may be left out; the keys of Task 1-1 are wanted only where its table is there.
    """

    hint: str
    kind: str = "text"
    required: bool = True


FIVE_GENERATED = "the five generated pictures: a folder, or a list of files"
PROMPTS = Key("the five prompts, if no prompts.json stands beside the pictures", "texts", required=False)
COMMENT = Key("a sentence or two under the figure", required=False)


def lora_keys(task: str, what: str) -> dict[str, Key]:
    return {
        f"{task}.description": Key(f"describe {what}: what they show, how many there are, how they were captioned"),
        f"{task}.source": Key("say where the pictures come from: a link, a citation, or that you made them"),
        f"{task}.training": Key("the training pictures: a folder, or a list of up to six files", "pictures"),
        f"{task}.training_captions": Key("a caption for each training picture", "texts", required=False),
        f"{task}.generated": Key(FIVE_GENERATED, "pictures"),
        f"{task}.prompts": PROMPTS,
        f"{task}.comment": COMMENT,
    }


KEYS = {
    "student_id": Key("your student id"),
    "name": Key("your name"),
    "task_1.run": Key("the folder that task_1_controlnet/evaluate.py wrote, such as runs/demo"),
    **{f"task_1.analysis.{i}": Key(f"say what you see in the picture of condition {i}") for i in range(CONDITIONS)},
    "task_1.comment": COMMENT,
    f"{OPTIONAL_TASK}.explanation": Key("describe the training data and how well the training went"),
    f"{OPTIONAL_TASK}.conditions": Key("the five conditions: a folder, or a list of files", "pictures"),
    f"{OPTIONAL_TASK}.generated": Key(FIVE_GENERATED, "pictures"),
    f"{OPTIONAL_TASK}.prompts": PROMPTS,
    f"{OPTIONAL_TASK}.comment": COMMENT,
    **lora_keys("task_2_1", "the pictures of your style"),
    **lora_keys("task_2_2", "the pictures of your subject"),
}


@dataclass(frozen=True)
class Words:
    """The words by dotted key, such as "task_1.analysis.0"; keys that were left out or empty are not in it.

    `folder` is where the words file stands: paths in it start there.
    """

    values: dict[str, Any]
    folder: Path
    has_task_1_1: bool

    def get(self, key: str, default: Any = "") -> Any:
        return self.values.get(key, default)


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def parse(path: Path) -> dict[str, Any]:
    """The TOML file as nested tables. Raises ReportError if it is missing, is not UTF-8, or is not TOML."""
    try:
        content = path.read_bytes()
        # Windows' PowerShell up to 5.1 writes UTF-16 where another shell's `>` writes what it was given.
        encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        return tomllib.loads(content.decode(encoding).replace("\r\n", "\n"))
    except FileNotFoundError:
        raise ReportError(
            f"There is no file {path}: `python -m grading.report --example > {path}` writes one to fill in."
        ) from None
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ReportError(
            f"{path} is not {error.encoding.upper()} text (byte {error.start}): store it as UTF-8."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ReportError(
            f"{path} is not right TOML: {error}. Text stands in quotes, a long one between ''' and ''', where "
            f"backslashes and quotes may be used freely."
        ) from None


def wrong_kind(key: str, value: Any) -> str | None:
    """What is wrong with a value, or None."""
    kind = KEYS[key].kind
    is_text = isinstance(value, str)
    is_texts = isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value)
    for text in value if is_texts else [value] if is_text else []:
        if any(unicodedata.category(character) == "Cc" and character not in "\n\t" for character in text):
            return f"{key} has a control character, such as \\b makes in a text between \" and \": use ''' there."
    if kind == "text":
        return None if is_text else f"{key} must be text in quotes."
    if kind == "texts":
        return None if is_texts else f'{key} must be a list of texts, none of them empty: ["...", "..."].'
    if any("\n" in text or "\t" in text for text in ([value] if is_text else value if is_texts else [])):
        return (
            f"{key} has a line's end or a tab, which \\n and \\t make between \" and \": put the path between ' and '."
        )
    return None if is_text or is_texts else f'{key} must be a folder in quotes, or a list of files: ["...", "..."].'


def clean(value: Any) -> Any:
    """Text in composed Unicode (macOS and some keyboards decompose Hangul and accents), without space around it."""
    if isinstance(value, list):
        return [clean(item) for item in value]
    return unicodedata.normalize("NFC", value).strip()


def unknown_key(key: str) -> str:
    close = difflib.get_close_matches(key, KEYS, n=1)
    return f"{key} is not a key of the report" + (f": did you mean {close[0]}?" if close else ": take it out.")


def read_words(path: Path) -> tuple[Words, list[str]]:
    """The words, and a sentence for each key that is missing, unknown or of the wrong type.

    Raises:
        ReportError: if the file is missing, is not UTF-8, or is not TOML.
    """
    tables = parse(path)
    flat = flatten(tables)
    problems = [unknown_key(key) for key in flat if key not in KEYS]
    problems += [wrong for key in flat if key in KEYS and (wrong := wrong_kind(key, flat[key]))]
    values = {key: clean(value) for key, value in flat.items() if key in KEYS and not wrong_kind(key, value)}
    words = Words({key: value for key, value in values.items() if value}, path.parent, OPTIONAL_TASK in tables)
    for key, wanted in KEYS.items():
        asked = wanted.required and (words.has_task_1_1 or not key.startswith(f"{OPTIONAL_TASK}."))
        if asked and key not in words.values and (key not in flat or key in values):
            problems.append(f"{key} is {'empty' if key in flat else 'missing'} in {path.name}: {wanted.hint}.")
    student_id = words.get("student_id")
    if student_id and not STUDENT_ID.fullmatch(student_id):
        problems.append(f"student_id {student_id!r} must be {ID_IN_WORDS}: it names the PDF.")
    return words, problems

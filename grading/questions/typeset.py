"""The page as a PDF, and the teacher's key of the same page."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, Sequence

from .drawing import HEADS, NORM_GROUPS, TEXT_TOKENS, Configuration
from .sheet import QuestionsError, Sheet

TEMPLATE = Path(__file__).with_name("page.typ")
TITLE, KEY_TITLE = "Six questions on your ControlNet", "Key: six questions on ControlNet"
INTRO = (
    "Answer with a number, a shape or a name, and say in a few words how you found it. The label of a question says "
    "which place of the assignment it is about. Shapes are PyTorch's: (batch, channels, height, width)."
)
KEY_INTRO = (
    "For the teacher. What is right was computed from the models of the solution; below it stands how a student can "
    "find it."
)
FOOTER = "The numbers of this page are drawn from your student id."
KEY_FOOTER = "Not for students."


def load_typst() -> ModuleType:
    """Raises QuestionsError where the package is not installed."""
    try:
        import typst
    except ImportError as error:
        raise QuestionsError(
            f"The package typst, which makes the PDF, cannot be imported ({error}): pip install typst, or install all "
            f"of requirements.txt."
        ) from None
    return typst


def describe(configuration: Configuration) -> list[tuple[str, str]]:
    """The page's table: names as in the code, and values, code between backticks."""
    c = configuration
    kinds = ", ".join(c.down_block_types)
    sides = f"{c.height}, {c.width}"
    return [
        ("block_out_channels", f"`{c.block_out_channels}`"),
        ("down_block_types", f"`{kinds}`; the UNet's `up_block_types` are their mirror image"),
        ("layers_per_block", f"`{c.layers_per_block}`"),
        ("cross_attention_dim", f"`{c.cross_attention_dim}`, with `attention_head_dim={HEADS}` heads"),
        ("norm_num_groups", f"`{NORM_GROUPS}`"),
        ("conditioning_embedding_out_channels", f"`{c.condition_widths}`"),
        ("sample", f"`({c.batch}, 4, {sides})`, the noisy latents, which both models take"),
        ("encoder_hidden_states", f"`({c.batch}, {TEXT_TOKENS}, {c.cross_attention_dim})`, the text"),
        ("controlnet_cond", f"`({c.batch}, 3, {8 * c.height}, {8 * c.width})`, the condition images"),
    ]


def page_data(sheet: Sheet, answers: Sequence[str] | None) -> dict[str, Any]:
    """What page.typ shows: a student's page, or with `answers` the key."""
    is_key = answers is not None
    questions = [{"place": one.question.place, "text": one.text} for one in sheet.asked]
    for question, one, answer in zip(questions, sheet.asked, answers or ()):
        question.update(answer=answer, why=one.question.why)
    return {
        "student_id": sheet.student_id,
        "is_key": is_key,
        "title": KEY_TITLE if is_key else TITLE,
        "intro": KEY_INTRO if is_key else INTRO,
        "footer": KEY_FOOTER if is_key else FOOTER,
        "configuration": describe(sheet.configuration),
        "questions": questions,
    }


def typeset(sheet: Sheet, answers: Sequence[str] | None = None, kind: str = "pdf") -> bytes:
    """The page as a PDF (or "png"), the same bytes for the same sheet.

    Raises:
        QuestionsError: if typst is missing.
    """
    typst = load_typst()
    with tempfile.TemporaryDirectory(prefix="questions-") as name:
        folder = Path(name).resolve()
        shutil.copy(TEMPLATE, folder / "page.typ")
        (folder / "page.json").write_text(json.dumps(page_data(sheet, answers)), encoding="utf-8")
        fonts = typst.Fonts(include_system_fonts=False, font_paths=[])
        compiler = typst.Compiler(str(folder / "page.typ"), root=str(folder), font_paths=fonts)
        return compiler.compile(format=kind, ppi=110 if kind == "png" else None)

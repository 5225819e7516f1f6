"""The page without the page: what the browser sends goes in, HTML comes out.

Nothing here raises for what came from the browser: what is wrong is said where the pictures would be.
"""

from __future__ import annotations

import functools
import html as text
import traceback
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator

from finetune.model.base import BaseModelError
from finetune.run.checkpoints import CheckpointError

from . import TASK_1, conditions, jobs
from .browser import html
from .found import Model, chosen, controlnets, empty_places, loras
from .requests import MOST_SCALE, Refused, Settings, checked, number, whole
from .studio import Steering, Studio

EXPECTED = (ValueError, BaseModelError, CheckpointError, OSError)
PROBLEM = '<p class="problem">{}</p>'


def in_words(error: Exception) -> str:
    """What went wrong, for whoever sits before the page. What nobody expected goes to the terminal whole."""
    if isinstance(error, NotImplementedError):
        return f"{error} - this place is not filled in yet; write it, then start the page again."
    if isinstance(error, EXPECTED):
        return str(error)
    traceback.print_exc()
    return "That did not work, and nobody expected it: the terminal in which the page was started says why."


def shown(action: Callable[..., Iterator[jobs.View]]) -> Callable[..., Iterator[str]]:
    """An action whose views come as HTML, and its errors as a sentence."""

    @functools.wraps(action)
    def run(*arguments: Any) -> Iterator[str]:
        seen = ""
        try:
            with closing(action(*arguments)) as views:  # whoever stops looking stops the drawing
                for view in views:
                    yield html.view(view)
                    seen = html.view(replace(view, said=""))
        except Exception as error:
            yield PROBLEM.format(text.escape(in_words(error))) + seen  # what was drawn before stays

    return run


class Actions:
    """What the page's buttons do.

    Args:
        runs: the folder that is searched for ControlNets and LoRAs.
    """

    def __init__(self, studio: Studio, runs: Path) -> None:
        self.studio, self.runs = studio, runs

    def controlnets(self) -> tuple[list[Model], int]:
        return controlnets(self.runs, self.studio.plain.unet.config)

    def loras(self) -> list[Model]:
        return loras(self.runs)

    def note(self) -> str:
        """What cannot be done yet, as HTML."""
        return html.note(self.runs, *self.controlnets(), self.loras(), empty_places(TASK_1))

    def steering(self, sent: Any, label: Any) -> Steering:
        """The condition first: whoever forgot it is to hear of that. Raises Refused."""
        condition = conditions.condition(sent)
        return Steering(chosen(self.controlnets()[0], label, "ControlNet"), condition)

    @shown
    def pair(self, sent: Any, label: Any, *settings: Any) -> Iterator[jobs.View]:
        """`sent` is the condition, `label` names the ControlNet, and `settings` are the arguments of `checked`."""
        wanted, condition = checked(*settings), conditions.condition(sent)
        nets = self.controlnets()[0]
        net = chosen(nets, label, "ControlNet") if nets else None
        return jobs.pair(self.studio, wanted, condition, net)

    @shown
    def scales(self, sent: Any, label: Any, *settings: Any) -> Iterator[jobs.View]:
        return jobs.scales(self.studio, checked(*settings), self.steering(sent, label))

    @shown
    def styles(
        self, lora: Any, strength: Any, with_controlnet: Any, sent: Any, label: Any, *settings: Any
    ) -> Iterator[jobs.View]:
        model = chosen(self.loras(), lora, "LoRA")
        strength = number("The LoRA's scale", strength, 0, MOST_SCALE)
        steering = self.steering(sent, label) if with_controlnet is True else None
        return jobs.styles(self.studio, checked(*settings), (model, strength), steering)

    @shown
    def inside(self, sent: Any, label: Any, *settings: Any) -> Iterator[jobs.View]:
        return jobs.look_inside(self.studio, checked(*settings), self.steering(sent, label))

    def edges(self, sent: Any) -> str:
        """The edges of a picture, as a picture for the canvas; an empty canvas for what is none."""
        try:
            return conditions.as_url(conditions.edges(conditions.picture(sent)))
        except Refused:
            return ""

    def test_prompt(self, number: Any) -> str:
        """The prompt of a test condition; that of the first for a number that is none."""
        tests = conditions.test_conditions()
        try:
            return tests[whole("The test condition", number, 0, len(tests) - 1)][1]
        except Refused:
            return tests[0][1]


def labels(models: list[Model]) -> list[str]:
    return [model.label for model in models]


def still(current: Any, models: list[Model]) -> str | None:
    """What is to be chosen now: what was, if it is still there, else the newest."""
    there = labels(models)
    return current if current in there else there[0] if there else None


def default_settings(studio: Studio) -> Settings:
    """What suits the base: the embedded one, of 128 px, wants few steps, and little guidance, which is to draw out what
    ControlNet says, too (docs/task_1.md)."""
    prompt = "gold circle with a navy background"  # two colours that nobody takes for each other
    if studio.resolution <= 128:
        return Settings(prompt, steps=12, guidance=3.0, unconditional="base")
    return Settings(prompt, steps=20, guidance=7.5)

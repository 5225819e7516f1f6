"""All numbers of the grader that a teacher may want to change, each with its reason; the rules are in rules.toml."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Sequence

from ..handed_out.taken import MAX_TEXT_BYTES
from ..sandbox.cores import usable_cores
from ..sandbox.limits import Limits
from .rules import KINDS, Rules, read_rules

LEAST_PROOF = 5
# What may be zero; without any of the others nothing can be graded.
FROM_ZERO = (
    "warmup_steps", "seed", "guidance_scale", "sd_guidance_scale", "least_iou", "least_change", "least_contrast",
    "least_smoothness", "least_calm", "lora_norm",
)  # fmt: skip
AT_MOST = {
    "seed": 2**32 - 1,
    **dict.fromkeys(("least_iou", "least_smoothness", "least_calm"), 1),
    **dict.fromkeys(("least_change", "least_contrast"), 255),
}


@dataclass(frozen=True)
class Numbers:
    """Change a default here, or for one run with `--set NAME=VALUE`."""

    # Task 1: the student's ControlNet is trained on the embedded base, as the preset `grade` in finetune/presets.py
    # says. Enough steps that a correct one reaches twice the overlap that chance gives, and few enough for two cores.
    train_steps: int = 700
    warmup_steps: int = 50
    # Further flags of train.py, which override the preset, as in train_flags=("--learning_rate", "6e-4").
    train_flags: tuple[str, ...] = ()
    seed: int = 0
    # The overlap (IoU) of the five test conditions and of held-out ones together. Without ControlNet it is about 0.15.
    # Measured after 700 steps on the base of 2026-12-02, ten seeds each, in bfloat16 on an AMD EPYC (the same day,
    # tests/grading/measurements/repeats.py): the right solution 0.86 to 0.90, one without the zero convolutions of TODO
    # (3) 0.15 to 0.23. The limit lies half-way, and what is between them is eight times what seeds differ.
    held_out: int = 32  # two batches
    guidance_scale: float = 3.0  # what the embedded base's model card recommends
    least_iou: float = 0.55
    # Training is deterministic: a hand-in whose ControlNet equals the right solution's to the bit after so many steps,
    # and whose code does the same in every step, ends where that one ended, and is not trained further. False: all are
    # trained to their end. Fewer than five would prove nothing: the learning rate starts at zero, and what lies behind
    # two zero convolutions gets its first gradient two steps after them.
    prove: bool = True
    prove_steps: int = 8
    text_bytes: int = MAX_TEXT_BYTES  # between the banners of a place

    # Task 2: pictures are drawn without and with each LoRA, from the same noise.
    lora_prompts: tuple[str, ...] = (
        "a photo of sks cat",
        "a drawing of a cat",
        "a red car",
        "sea green circle with a light cyan background",
    )
    # How much a picture must change, as the mean absolute difference of its pixels, of 255; an eye sees about 2.
    least_change: float = 2.0
    # Below this deviation of its pixels, of 255, a picture is one flat colour.
    least_contrast: float = 4.0
    # A picture is noise if neither its pixels one latent (8 px) apart have to do with each other (1: the same), nor a
    # share of it is calm. Measured: pictures 0.4 and 0.6 or more, hatched drawings 0.1 and 0.4, noise at most
    # 0.45 and 0.15.
    least_smoothness: float = 0.5
    least_calm: float = 0.25
    # LoRAs of Stable Diffusion are drawn as well, and all pictures scored by CLIP and DINO, where a GPU and these
    # models are at hand: folders, or names that the hub's cache holds, such as CompVis/stable-diffusion-v1-4,
    # openai/clip-vit-large-patch14 and facebook/dino-vits16. Empty: without.
    sd_base: str = ""
    clip_model: str = ""
    dino_model: str = ""
    sd_guidance_scale: float = 7.5
    # The norm of all that a LoRA of Stable Diffusion adds, where no pictures are drawn. One step of training at the
    # usual learning rate makes 0.03, a whole training makes 1 and more; 1000 would bury the weights it is added to.
    lora_norm: tuple[float, float] = (0.1, 1000.0)

    # Where the assignment leaves a choice or the teacher may want to be milder.
    rules: Rules = field(default_factory=read_rules)

    # Time, s, by the clock, for all of a hand-in: a machine that needs more is too slow or too busy, and the hand-in is
    # not graded. Gradescope's own limit must be above the second.
    total_seconds: float = 2 * 60 * 60
    gradescope_seconds: float = 18 * 60
    # Of student's code its own time, in which waiting for a busy processor does not count; see sandbox/limits.py.
    observe_seconds: float = 120
    observe_one_seconds: float = 60
    train_seconds: float = 600
    # A container of Gradescope may see all cores of its host, but gets the time of so many.
    gradescope_cores: int = 2
    # What the student's code may use. PyTorch itself takes about 2 GiB here, Gradescope's container has 6 GB.
    memory_mib: int = 4096
    disk_mib: int = 512
    threads: int = 128
    # Of the largest observations of a right solution, less than a twentieth.
    observation_bytes: int = 50_000_000

    def limits(self, seconds: float) -> Limits:
        """For student's code that may take so long: all cores for the whole time, and then some, on any machine."""
        return Limits(
            seconds=seconds,
            cpu_seconds=2 * usable_cores() * seconds,
            memory_mib=self.memory_mib,
            disk_mib=self.disk_mib,
            threads=self.threads,
        )


def parsed(name: str, text: str, usual: Any) -> Any:
    """A number's value from the command line. Raises ValueError with what it must be, for what it cannot be."""
    if isinstance(usual, str):
        return text
    usual_parts = usual if isinstance(usual, tuple) else (usual,)
    kind = type(usual_parts[0]) if usual_parts else str
    try:
        value = ast.literal_eval(text)
        parts = value if isinstance(value, tuple) else (value,)
        if kind is float:
            parts = tuple(float(part) if type(part) is int else part for part in parts)
    except (ValueError, SyntaxError, OverflowError, MemoryError, RecursionError):
        raise ValueError(f"written as in Python, such as {name}={usual!r}") from None
    count = len(parts) == len(usual_parts) or kind is str and (parts or not usual_parts)
    if (
        isinstance(value, tuple) != isinstance(usual, tuple)
        or not count
        or any(type(part) is not kind for part in parts)
    ):
        raise ValueError(f"of the same kind as {usual!r}")
    if kind in (int, float):
        check_range(name, parts)
    return parts if isinstance(usual, tuple) else parts[0]


def check_range(name: str, parts: Sequence[float]) -> None:
    """Raises ValueError with what a value must be, unless all its parts can be graded with."""
    if not all(0 <= part < math.inf for part in parts):
        raise ValueError("finite and not below 0")
    if name not in FROM_ZERO and not all(parts):
        raise ValueError("above 0")
    if max(parts) > AT_MOST.get(name, math.inf):
        raise ValueError(f"at most {AT_MOST[name]}")
    if list(parts) != sorted(parts):
        raise ValueError("two numbers, the smaller one first")


def with_settings(numbers: Numbers, settings: Sequence[str]) -> Numbers:
    """The numbers with some replaced by "name=value", where a value is written as in Python, of rules as in rules.toml.

    Raises:
        ValueError: for a name that is not there, or a value of another kind than it has.
    """
    known = {one.name: getattr(numbers, one.name) for one in fields(numbers) if one.name != "rules"}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name in KINDS:
            numbers = replace(numbers, rules=numbers.rules.changed(name, text))
            continue
        if name not in known:
            names = ", ".join([*known, *KINDS])
            raise ValueError(f"There is no number {name!r}; those of grades/numbers.py and rules.toml are: {names}.")
        try:
            numbers = replace(numbers, **{name: parsed(name, text, known[name])})
        except ValueError as error:
            raise ValueError(f"{setting[:80]!r}: the value must be {error}.") from None
    if numbers.prove and numbers.prove_steps < LEAST_PROOF:
        raise ValueError(f"prove_steps must be at least {LEAST_PROOF}: before, not every weight has had a gradient.")
    return numbers

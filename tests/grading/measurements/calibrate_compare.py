"""Calibrates the comparison of hand-ins: honest pairs, which must stay below the line, and copies, which must not.

    python tests/grading/measurements/calibrate_compare.py --output runs/compare

trains LoRAs on the embedded base from the sample data with seven seeds, draws with them, makes seven hand-ins of them
(21 honest pairs) and 23 copies, and prints what is found, for docs/teacher.md. Half an hour to an hour on two cores;
what is finished stays, so a second start goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
from paths import ROOT
from PIL import Image
from safetensors.numpy import load_file, save

from finetune.run.progress import progress_bar
from grading.compare.facts import Facts, kept_facts
from grading.compare.given import our_code
from grading.compare.likeness import LINE
from grading.compare.pairs import CODE_LINE, Compare, compare
from grading.compare.texts import BETWEEN, Text, code, in_common
from grading.handed_out.banners import TODOS
from hand_ins import FILE_OF, LORA_1, LORA_2, PDF, hand_in, with_text, write_zip
from made_pictures import jpeg, pdf_of, png
from solutions import RIGHT

# Seven reports about the same pictures, written for this, each by itself.
REPORTS = Path(__file__).with_name("honest_reports.txt").read_text(encoding="utf-8").split("\n\n")
TASK_2 = ROOT / "task_2_lora"
DATA = {"style": "sample_data/artistic-custom/train", "subject": "sample_data/dreambooth-cat"}
OWN_FLAGS = {
    "style": ["train_lora.py", "--train_data_dir", DATA["style"], "--proportion_empty_prompts", "0.1"],
    "subject": ["train_dreambooth_lora.py", "--instance_data_dir", DATA["subject"], "--instance_prompt", "a sks cat"],
}
FLAGS = (
    "--pretrained_model_name_or_path ../tiny_sd --resolution 64 --train_batch_size 4 --learning_rate 5e-4 "
    "--lr_scheduler cosine --rank 32 --lora_layers all --train_text_encoder --validation_epochs 0"
).split()
# Those of evaluate.py.
PROMPTS = {
    "style": [f"a print of {thing} with rays" for thing in ("a house", "a tree", "a fish", "a rabbit", "an umbrella")],
    "subject": [f"a sks cat{where}" for where in ("", " in a garden", " in snow", " on a light blue background",
                                                  " in a forest")],
}  # fmt: skip
DRAW = ROOT / "grading" / "autograder" / "programs" / "draw_loras.py"
STEPS, MORE_STEPS, SEEDS = 150, 100, range(1, 8)
WEIGHTS = "pytorch_lora_weights.safetensors"
Files = "dict[str, bytes]"


class Runs:
    """The folder of trainings and drawings, and how each is made if it is not there."""

    def __init__(self, output: Path) -> None:
        self.output = output.resolve()
        self.log = self.output / "log.txt"

    def start(self, *command: str) -> None:
        """Runs a program of Task 2. Raises subprocess.CalledProcessError if it fails; log.txt says why."""
        here = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.log.open("a") as log:
            subprocess.run([sys.executable, *command], cwd=TASK_2, check=True, stdout=log, stderr=log, env=here)

    def train(self, kind: str, seed: int) -> Path:
        folder = self.output / f"{kind}-{seed}"
        if not (folder / WEIGHTS).is_file():
            goes_on = ["--checkpointing_steps", str(STEPS), "--resume_from_checkpoint", "latest"]
            steps = ["--max_train_steps", str(STEPS), "--seed", str(seed), "--output_dir", str(folder)]
            self.start(*OWN_FLAGS[kind], *FLAGS, *steps, *goes_on)
        return folder

    def train_further(self, kind: str, seed: int) -> Path:
        """A LoRA that somebody else's was the start of: other seed, 100 more steps."""
        folder = self.output / f"{kind}-{seed}-further"
        if not (folder / WEIGHTS).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            checkpoint = self.output / f"{kind}-{seed}" / f"checkpoint-{STEPS}"
            steps = ["--max_train_steps", str(STEPS + MORE_STEPS), "--seed", str(seed + 50)]
            place = ["--output_dir", str(folder), "--resume_from_checkpoint", str(checkpoint)]
            self.start(*OWN_FLAGS[kind], *FLAGS, *steps, *place, "--checkpointing_steps", "0")
        return folder

    def draw(self, kind: str) -> None:
        """Draws five prompts with each LoRA of a kind, all from the same noise, as evaluate.py does."""
        target = self.output / f"drawn-{kind}"
        if not (target / "scores.json").is_file():
            prompts = [text for prompt in PROMPTS[kind] for text in ("--prompt", prompt)]
            paths = {seed: self.output / f"{kind}-{seed}" / WEIGHTS for seed in SEEDS}
            loras = [text for seed, path in paths.items() for text in ("--lora", f"{seed}={path}")]
            how = ["--base", "../tiny_sd", "--guidance_scale", "2.5", "--output_dir", str(target)]
            self.start(str(DRAW), *how, *prompts, *loras)

    def drawn(self, kind: str, seed: int) -> list[Image.Image]:
        paths = [self.output / f"drawn-{kind}" / f"{seed}-{i}.png" for i in range(len(PROMPTS[kind]))]
        return [Image.open(path).convert("RGB") for path in paths]


def todo_files(number: int) -> Files:
    """One right solution of the tests for each place, chosen by the hand-in's number."""
    source, files = random.Random(number), {}
    for todo in TODOS:
        text = source.choice([text for place, _, text in RIGHT if place == todo])
        files = merged(files, todo, with_text(todo, text))
    return files


def merged(files: Files, todo: str, changed: Files) -> Files:
    """The file of a place with this text in it, and the texts of the places before."""
    from grading.handed_out.banners import extract, fill

    name = FILE_OF[todo]
    before = files.get(name, hand_in()[name]).decode()
    return {**files, name: fill(before, {todo: extract(changed[name].decode())[todo]}).encode()}


class Course:
    """The honest hand-ins as files, each of a seed, and what copies are made of."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        samples = [sorted((TASK_2 / DATA[kind]).glob("*.png")) for kind in DATA]
        self.samples = [Image.open(path).convert("RGB") for paths in samples for path in paths]
        self.drawn = {seed: [p for kind in DATA for p in runs.drawn(kind, seed)] for seed in SEEDS}

    def lora(self, kind: str, seed: int, further: bool = False) -> dict[str, np.ndarray]:
        return load_file(self.runs.output / f"{kind}-{seed}{'-further' if further else ''}" / WEIGHTS)

    def report(self, words: int, pictures: int, encode: Callable[[Image.Image], bytes] = png) -> bytes:
        folder = self.runs.output / "typeset" / f"{words}-{pictures}"
        return pdf_of(REPORTS[words - 1], [*self.samples, *self.drawn[pictures]], folder, encode)

    def honest(self, seed: int) -> Files:
        loras = {LORA_1: save(self.lora("style", seed)), LORA_2: save(self.lora("subject", seed))}
        return hand_in(**todo_files(seed), **loras, **{PDF: self.report(seed, seed)})

    def with_lora(self, own: int, tensors: dict[str, np.ndarray]) -> Files:
        return {**self.honest(own), LORA_1: save(tensors)}

    def copies(self) -> Iterator[tuple[str, int, Files]]:
        """What was done, whose it was, and a hand-in that is otherwise honest, of another seed."""
        for whose, own in ((1, 2), (2, 3), (3, 4)):
            yield "renamed", whose, self.with_lora(own, renamed(self.lora("style", whose)))
        for whose, factor in ((1, 0.5), (4, 1.7), (5, 0.05)):
            yield f"scaled by {factor}", whose, self.with_lora(whose + 1, scaled(self.lora("style", whose), factor))
        for whose, worst in ((1, 1.0), (2, 30.0), (6, 1e4)):
            name = f"rotated, condition {worst:g}"
            yield name, whose, self.with_lora(whose + 1, rotated(self.lora("style", whose), worst))
        for whose in (3, 5):
            half = {name: tensor.astype(np.float16) for name, tensor in self.lora("style", whose).items()}
            yield "in float16", whose, self.with_lora(whose + 1, half)
        for whose in (1, 2, 3, 4):
            yield "100 more steps", whose, self.with_lora(whose + 1, self.lora("style", whose, further=True))
        for whose, scale, quality in ((1, 1.0, 60), (2, 0.7, 80), (3, 2.0, 40), (4, 0.5, 90)):
            report = self.report(whose + 1, whose, jpeg(scale, quality))
            yield f"pictures, JPEG {quality}, x {scale}", whose, {**self.honest(whose + 1), PDF: report}
        for whose in (5, 6):
            yield "report's words", whose, {**self.honest(whose + 1), PDF: self.report(whose, whose + 1)}
        for whose in (4, 5):
            yield "TODO texts", whose, {**self.honest(whose + 1), **todo_files(whose)}


def renamed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In another of diffusers' spellings."""
    names = {"lora_A": "lora.down", "lora_B": "lora.up"}
    return {name.replace(old, new): t for name, t in tensors.items() for old, new in names.items() if old in name}


def scaled(tensors: dict[str, np.ndarray], factor: float) -> dict[str, np.ndarray]:
    return {name: (tensor * np.float32(factor if ".lora_B." in name else 1)) for name, tensor in tensors.items()}


def rotated(tensors: dict[str, np.ndarray], condition: float) -> dict[str, np.ndarray]:
    """B R and R^-1 A for a random R of this condition number: other matrices, the same product."""
    source, result = np.random.default_rng(0), {}
    for name in [name for name in tensors if ".lora_A." in name]:
        a, b = tensors[name], tensors[name.replace(".lora_A.", ".lora_B.")]
        left, right = (np.linalg.qr(source.normal(size=(len(a), len(a))))[0] for _ in range(2))
        mixing = left * np.geomspace(1, condition, len(a)) @ right
        new_a = (np.linalg.inv(mixing) @ a.reshape(len(a), -1).astype(float)).reshape(a.shape)
        new_b = (b.reshape(len(b), -1).astype(float) @ mixing).reshape(b.shape)
        result[name] = np.ascontiguousarray(new_a, np.float32)
        result[name.replace(".lora_A.", ".lora_B.")] = np.ascontiguousarray(new_b, np.float32)
    return result


def spread(values: Any) -> str:
    values = sorted(values)
    return (
        f"{values[0]:.3f} to {values[-1]:.3f}, mean {sum(values) / len(values):.3f} ({len(values)})" if values else "-"
    )


def measures(facts: dict[str, Facts], work: Path) -> None:
    """What the honest hand-ins have in common, by kind, whether above the line or not."""
    found: dict[str, list[float]] = {}
    for one in Compare(facts, work).findings():
        found.setdefault(one.likeness.kind, []).append(one.likeness.strength)
        if one.likeness.kind != "LoRA":
            print(f"  {one.likeness.kind}, strength {one.likeness.strength:.2f}: {one.likeness.what}")
    for kind, strengths in found.items():
        print(f"  {kind}: strengths {spread(strengths)}; the line is at {LINE}")


def todo_texts(number: int) -> Text:
    source = random.Random(number)
    return code(BETWEEN.join(source.choice([text for place, _, text in RIGHT if place == todo]) for todo in TODOS))


def letters_of_todos(count: int = 60) -> None:
    """What sets of right solutions have in common, where two who choose the same form write it letter by letter."""
    texts, ours = [todo_texts(number) for number in range(count)], our_code()
    shared = sorted(in_common(*pair, ours).letters for pair in itertools.combinations(texts, 2))
    places = {share: shared[int(share * len(shared))] for share in (0.5, 0.95, 0.99)}
    print(f"letters in common of {len(shared)} pairs of right TODO texts, by share of pairs: {places}")
    whole = [in_common(text, text, ours).letters for text in texts]
    print(f"copies of all five texts above the line: {sum(n >= CODE_LINE for n in whole)} of {count}")


def cosines_of(facts: dict[str, Facts], work: Path) -> None:
    from grading.files.lora_likeness import cosines

    slots = {"style": "lora_1", "subject": "lora_2"}
    paths = {kind: [work / one.loras[slot].canonical for one in facts.values()] for kind, slot in slots.items()}
    for kind, own in paths.items():
        table = cosines(own)
        pairs = [table[i, j] for i, j in itertools.combinations(range(len(own)), 2)]
        print(f"cosine, {kind}, same data, other seeds: {spread(pairs)}")
    both = cosines([*paths["style"], *paths["subject"]])
    count = len(paths["style"])
    print(f"cosine, other data, same seed: {spread(both[i, i + count] for i in range(count))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/compare"), help="trainings, pictures, hand-ins")
    args = parser.parse_args()
    runs = Runs(args.output)
    runs.output.mkdir(parents=True, exist_ok=True)
    wanted = [(runs.train, kind, seed) for kind in DATA for seed in SEEDS]
    wanted += [(runs.train_further, "style", seed) for seed in (1, 2, 3, 4)]
    for make, kind, seed in progress_bar(wanted, desc="Trainings", unit="training"):
        make(kind, seed)
    for kind in progress_bar(DATA, desc="Drawings", unit="kind"):
        runs.draw(kind)
    course, work, zips = Course(runs), runs.output / "work", runs.output / "zips"
    for folder in (work, zips):
        folder.mkdir(exist_ok=True)
    facts = {str(s): kept_facts(write_zip(course.honest(s), zips / f"{s}.zip"), work) for s in SEEDS}
    letters_of_todos()
    cosines_of(facts, work)
    measures(facts, work)
    honest = compare(facts, work)
    count = len(SEEDS) * (len(SEEDS) - 1) // 2
    print(f"honest pairs: {len(honest.pairs)} of {count} above the line (none must be)")
    missed = total = 0
    for number, (name, whose, files) in enumerate(course.copies(), 1):
        copy = kept_facts(write_zip(files, zips / f"copy-{number}.zip"), work)
        found = compare({"the one": facts[str(whose)], "the copy": copy}, work).pairs
        said = "; ".join(f"{one.kind} {one.strength:.2f}: {one.what}" for p in found for one in p.likenesses)
        print(f"copy {number}, {name}: {said or 'NOT FOUND'}")
        total, missed = number, missed + (not found)
    print(f"copies: {total - missed} of {total} above the line (all must be)")
    sys.exit(bool(missed or honest.pairs))


if __name__ == "__main__":
    main()

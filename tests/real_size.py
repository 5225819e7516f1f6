"""Runs the programs for Stable Diffusion once at its real size, without its weights and without a GPU.

    python tests/real_size.py                  # or make real-size: at most half an hour, and 22 GB of memory and disk
    python tests/real_size.py --size small     # the same steps with narrow models: a few minutes

It makes a base model in the layout of the hub's Stable Diffusion 1.4, with CLIP's real vocabulary and random weights.
Then it trains by train.sh, kills that and goes on, scores one condition by evaluate.py, trains both LoRAs with Kohya's
layout beside, and loads all results by diffusers. What took how long and how much memory is in OUTPUT_DIR/result.json.
Stopped? The base is not made again; the steps are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Callable

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TASK_1, TASK_2 = ROOT / "task_1_controlnet", ROOT / "task_2_lora"
GB = 1e9
# Parameters of diffusers' ControlNet for Stable Diffusion 1.4.
CONTROLNET_PARAMETERS = {"sd14": 361_279_120}
# Of the narrow size many steps, so that it can be killed between two of them.
TRAIN_STEPS = {"sd14": 2, "small": 30}
RESOLUTION = {"sd14": 512, "small": 128}


class Failed(Exception):
    """A step did not do what it has to; the message says what."""


class Memory:
    """The most memory that this process and all that it started had at once, looked at twice a second."""

    def __init__(self) -> None:
        self.peak = 0
        self.done = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        me = psutil.Process()
        while not self.done.wait(0.5):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it has just ended
                    continue
            self.peak = max(self.peak, total)


class RealSize:
    """The steps, in one folder; each raises Failed."""

    def __init__(self, size: str, folder: Path, vocabulary: Path | None) -> None:
        self.size, self.folder, self.vocabulary = size, folder, vocabulary
        self.base = folder / "base"
        self.log = folder / "output.txt"
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {
            **os.environ, "PYTHONPATH": path, "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1",
            "MODEL_DIR": str(self.base), "MODEL_NAME": str(self.base), "DATASET_NAME": "rendered",
            "TRAIN_DATA_DIR": str(TASK_2 / "sample_data" / "artistic-custom" / "train"),
            "INSTANCE_DIR": str(TASK_2 / "sample_data" / "dreambooth-cat"), "CLASS_DIR": str(folder / "class"),
        }  # fmt: skip
        self.flags = [
            "--resolution", str(RESOLUTION[size]), "--train_batch_size", "1", "--mixed_precision", "bf16",
        ]  # fmt: skip

    def start(self, command: list[str], where: Path, output_dir: Path) -> subprocess.Popen:
        """A program whose output goes to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**self.environment, "OUTPUT_DIR": str(output_dir)}
        with self.log.open("a", encoding="utf-8") as log:
            print(f"\n$ {' '.join(command)}", file=log, flush=True)
            return subprocess.Popen(command, cwd=where, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def run(self, command: list[str], where: Path, output_dir: Path) -> str:
        """To its end, which must be a good one; what it said."""
        before = self.log.stat().st_size if self.log.is_file() else 0
        process = self.start(command, where, output_dir)
        try:
            status = process.wait()
        finally:
            process.kill()
        with self.log.open("rb") as log:
            log.seek(before)
            said = log.read().decode(errors="replace")
        if status:
            raise Failed(f"{command[0]} {command[1]} ended with {status}:\n{said[-2000:]}")
        return said

    def build(self) -> None:
        """The base model, unless an earlier run has made it whole."""
        if not self.base.exists():
            make = [sys.executable, str(HERE / "real_size_base.py"), self.size, str(self.base)]
            self.run([*make, str(self.vocabulary)] if self.vocabulary else make, ROOT, self.base)

    def fresh(self, name: str) -> Path:
        """The path of a folder that is not there any more."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def train_controlnet(self) -> None:
        """Two steps by train.sh, killed after the first."""
        output = self.fresh("controlnet")
        steps = str(TRAIN_STEPS[self.size])
        command = [
            "sh", "train.sh", *self.flags, "--gradient_accumulation_steps", "1", "--max_train_samples", "2",
            "--max_train_steps", steps, "--checkpointing_steps", "1", "--checkpoints_total_limit", "1",
            "--validation_steps", "0", "--dataloader_num_workers", "0",
        ]  # fmt: skip
        process = self.start(command, TASK_1, output)
        try:
            while not list(output.glob("checkpoint-*")):
                if process.poll() is not None:
                    raise Failed(f"train.sh ended before its first checkpoint: see {self.log}")
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        if (output / "controlnet").exists():
            raise Failed("train.sh had finished before it could be killed")
        said = self.run(command, TASK_1, output)
        if "Resuming from" not in said or f"of {steps}." not in said:
            raise Failed(f"train.sh did not go on from its checkpoint:\n{said[-2000:]}")

    def evaluate(self) -> None:
        """One condition with two steps of sampling, with the ControlNet and without."""
        edges, output = self.fresh("edges"), self.fresh("evaluation")
        pictures = self.environment["TRAIN_DATA_DIR"]
        python, size = sys.executable, str(RESOLUTION[self.size])
        make = [python, "make_canny.py", "--dataset_name", pictures, "--max_samples", "1", "--resolution", size]
        self.run([*make, "--output_dir", str(edges)], TASK_1, edges)
        trained = ["--controlnet", str(self.folder / "controlnet" / "controlnet"), "--base", str(self.base)]
        draw = ["--edges", str(edges), "--num_conditions", "1", "--num_inference_steps", "2"]
        self.run([python, "evaluate.py", *trained, *draw, "--output_dir", str(output)], TASK_1, output)
        figures = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        if not any("mean_edge_f1" in value for value in figures.values()):
            raise Failed(f"evaluate.py measured nothing: {output / 'metrics.json'}")

    def train_loras(self) -> None:
        """Two steps of each script, with Kohya's layout beside."""
        flags = [*self.flags, "--max_train_steps", "2", "--also_save", "kohya", "--validation_epochs", "0"]
        classes = self.fresh("class")
        classes.mkdir()
        for i in range(2):  # one's own pictures of the class count, so that none are drawn
            shutil.copy(Path(self.environment["INSTANCE_DIR"]) / f"{i}.png", classes / f"own-{i}.png")
        style, subject = self.fresh("style"), self.fresh("subject")
        self.run(["sh", "scripts/train_lora_custom.sh", *flags, "--max_train_samples", "1"], TASK_2, style)
        command = ["sh", "scripts/train_dreambooth_lora.sh", *flags, "--num_class_images", "2"]
        self.run(command, TASK_2, subject)

    def load(self) -> None:
        """Everything that was trained, by diffusers."""
        results = [str(self.folder / name) for name in ("controlnet/controlnet", "style", "subject")]
        said = self.run([sys.executable, str(HERE / "real_size_load.py"), str(self.base), *results], ROOT, self.base)
        wanted = CONTROLNET_PARAMETERS.get(self.size)
        if wanted and f"ControlNet: {wanted} parameters" not in said:
            raise Failed(f"The ControlNet does not have {wanted} parameters:\n{said[-2000:]}")

    def steps(self) -> dict[str, tuple[Callable[[], None], float]]:
        """What is done, and of the half hour how many minutes it may take."""
        return {
            "base model": (self.build, 4),
            "train.sh, killed and resumed": (self.train_controlnet, 12),
            "evaluate.py": (self.evaluate, 5),
            "both LoRA scripts": (self.train_loras, 7),
            "loading by diffusers": (self.load, 2),
        }


def require_room(size: str, folder: Path, disk_gb: float = 20, memory_gb: float = 17) -> None:
    """Raises Failed where disk or memory cannot be enough."""
    if size != "sd14":
        return
    folder.mkdir(parents=True, exist_ok=True)
    disk, memory = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    for what, found, wanted in (("on the disk", disk, disk_gb), ("in the memory", memory, memory_gb)):
        if found < wanted * GB:
            raise Failed(f"There are {found / GB:.0f} GB {what}, and {wanted:g} GB are needed: make room first.")


def run_all(work: RealSize, max_gb: float, max_minutes: float) -> list[dict[str, object]]:
    """All steps, one after the other; a row for each with its seconds and the peak of the memory."""
    rows: list[dict[str, object]] = []
    start = time.monotonic()
    for number, (name, (step, minutes)) in enumerate(work.steps().items(), 1):
        allowed = f", up to {minutes:g} minutes" if work.size == "sd14" else ""
        print(f"{number} of {len(work.steps())}: {name}{allowed} ...", flush=True)
        before, memory = time.monotonic(), Memory()
        try:
            step()
        finally:
            memory.done.set()
        seconds = time.monotonic() - before
        rows.append({"step": name, "seconds": round(seconds, 1), "peak_gb": round(memory.peak / GB, 2)})
        print(f"    {seconds:.0f} s, at most {memory.peak / GB:.1f} GB", flush=True)
    whole = (time.monotonic() - start) / 60
    too_much = [str(row["step"]) for row in rows if float(str(row["peak_gb"])) > max_gb]
    if too_much:
        raise Failed(f"More than {max_gb:g} GB of memory were taken by: {', '.join(too_much)}.")
    if whole > max_minutes:
        raise Failed(f"It took {whole:.0f} minutes, of at most {max_minutes:g}.")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=list(RESOLUTION), default="sd14", help="small: narrow models, for a test of this program")
    add("--output_dir", type=Path, default=ROOT / "runs" / "real-size")
    add("--vocabulary", type=Path, help="CLIP's bpe_simple_vocab_16e6.txt.gz (default: fetched with open_clip_torch)")
    add("--max_gb", type=float, default=22, help="memory that may be taken")
    add("--max_minutes", type=float, default=30, help="time that may be taken")
    args = parser.parse_args()
    folder = args.output_dir.resolve() / args.size
    try:
        require_room(args.size, folder)
        rows = run_all(RealSize(args.size, folder, args.vocabulary), args.max_gb, args.max_minutes)
    except Failed as failed:
        sys.exit(f"\nError: {failed}")
    except KeyboardInterrupt:
        sys.exit(f"\nStopped. The base model in {folder} is kept; all output is in {folder / 'output.txt'}.")
    (folder / "result.json").write_text(json.dumps({"size": args.size, "steps": rows}, indent=1) + "\n")
    print(f"All of it ran, on {time.strftime('%Y-%m-%d at %H:%M')}. Figures: {folder / 'result.json'}")


if __name__ == "__main__":
    main()

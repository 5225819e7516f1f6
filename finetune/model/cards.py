"""What a trained model says of itself: the texts beside its tensors, and the model card beside its files.

The texts' names are ModelSpec's (https://github.com/Stability-AI/ModelSpec), of which file managers tell which base a
file is for, and those of Kohya's trainer (`ss_*`), which AUTOMATIC1111 and managers of ComfyUI's files show. Nothing of
them depends on the clock or on where things lie: the same run writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .. import __version__
from ..run.checkpoints import write_file
from ..run.settings import read_run

CARD_FILE, PICTURE_FILE = "README.md", "samples.png"
LENGTH_BYTES = 8  # of the header's length, with which a safetensors file begins
# Flags under the names that Kohya's trainer has for them.
KOHYA_NAMES = {
    "max_train_steps": "ss_max_train_steps",
    "learning_rate": "ss_learning_rate",
    "lr_scheduler": "ss_lr_scheduler",
    "lr_warmup_steps": "ss_lr_warmup_steps",
    "max_grad_norm": "ss_max_grad_norm",
    "mixed_precision": "ss_mixed_precision",
    "seed": "ss_seed",
    "snr_gamma": "ss_min_snr_gamma",
    "noise_offset": "ss_noise_offset",
    "samples_per_step": "ss_total_batch_size",
}


@dataclass(frozen=True)
class Origin:
    """How a trained model came about.

    `kind` is "LoRA" or "ControlNet", `settings` are those of its `Run`, `steps` the steps that it was trained for;
    `architecture` is ModelSpec's name for the base, and `prediction_type` what that predicts, in diffusers' words.
    `figures` are what was measured last, by name.
    """

    kind: str
    settings: Mapping[str, Any]
    steps: int
    architecture: str
    prediction_type: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def base(self) -> str:
        return public_name(self.settings["base"]["words"])

    def data(self, role: str = "data") -> tuple[int, str]:
        """The number of the samples that it was trained on, and their name; `role` as in `Run.add_data`."""
        number, _, name = self.settings[role]["words"].partition(" samples of ")
        return int(number), public_name(name)

    @property
    def title(self) -> str:
        return f"{self.kind} for {self.base}, trained on {self.data()[1]}"


def public_name(path: str) -> str:
    """A hub's name as it is, of a path the last part: whose computer it was is nobody's business."""
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        return path
    return " ".join(re.split(r"[/\\]", path.rstrip("/\\"))[-1].split()) or path


def architecture_of(unet: Mapping[str, Any], prediction_type: str, base: str) -> str:
    """ModelSpec's name for Stable Diffusion 1.x and 2.x, by the UNet's configuration; of any other base its own name.

    The names with the kind of file behind them are what programs compare: `stable-diffusion-v1/lora`.
    """
    # The text's width tells both kinds apart: CLIP ViT-L/14 has 768, OpenCLIP ViT-H 1,024.
    if list(unet["block_out_channels"]) == [320, 640, 1280, 1280] and unet["in_channels"] == 4:
        if unet["cross_attention_dim"] == 768:
            return "stable-diffusion-v1"
        if unet["cross_attention_dim"] == 1024:
            return "stable-diffusion-v2-768-v" if prediction_type == "v_prediction" else "stable-diffusion-v2-512"
    return public_name(base).replace("_", "-").lower()


def model_spec(origin: Origin) -> dict[str, str]:
    """ModelSpec's texts, but for the hash of the tensors."""
    side = origin.settings["resolution"]
    number, data = origin.data()
    texts = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{origin.architecture}/{origin.kind.lower()}",
        "implementation": "diffusers",
        "title": origin.title,
        "description": f"Trained on {number} samples of {data} for {origin.steps} steps.",
        "resolution": f"{side}x{side}",
        "prediction_type": "v" if origin.prediction_type == "v_prediction" else "epsilon",
    }
    # What has to be typed to get the subject: without it nobody who finds the file can use it.
    if "instance_prompt" in origin.settings:
        texts["trigger_phrase"] = origin.settings["instance_prompt"]
    return {f"modelspec.{name}": text for name, text in texts.items()}


def kohya_texts(origin: Origin) -> dict[str, str]:
    """The texts of Kohya's trainer. A LoRA's alpha is that of its file, where the strength is in the matrices."""
    settings, side = origin.settings, origin.settings["resolution"]
    number, data = origin.data()
    texts = {
        "ss_sd_model_name": origin.base,
        "ss_resolution": f"({side}, {side})",
        "ss_steps": origin.steps,
        "ss_num_train_images": number,
        "ss_dataset_dirs": json.dumps({data: {"n_repeats": 1, "img_count": number}}, sort_keys=True),
        **{kohya: settings[name] for name, kohya in KOHYA_NAMES.items() if name in settings},
    }
    if origin.architecture.startswith("stable-diffusion-v"):
        version = origin.architecture[len("stable-diffusion-v")]
        texts.update(ss_base_model_version=f"sd_v{version}", ss_v2=version == "2")
    if "class" in settings:
        texts["ss_num_reg_images"], name = origin.data("class")
        texts["ss_reg_dataset_dirs"] = json.dumps({name: {"n_repeats": 1, "img_count": texts["ss_num_reg_images"]}})
    if origin.kind == "LoRA":
        rank = settings["rank"]
        # The rank as alpha, since the strength is in the matrices: a reader who believes either draws the same.
        texts.update(ss_network_module="networks.lora", ss_network_dim=rank, ss_network_alpha=float(rank))
    return {name: str(text) for name, text in texts.items() if text is not None}


def file_texts(origin: Origin) -> dict[str, str]:
    """All texts for a trained file, by name: those of others, and under `finetune.` what they have no name for."""
    own = {"version": __version__, "program": origin.settings["program"], "data": origin.data()[1]}
    if origin.kind == "LoRA":  # what was trained with, while the file's alpha is its rank
        own.update(alpha=origin.settings["alpha"], layers=origin.settings["lora_layers"])
    texts = {"format": "pt", **model_spec(origin), **kohya_texts(origin)}
    return {**texts, **{f"finetune.{name}": str(text) for name, text in own.items()}}


def read_texts(file: Path) -> dict[str, str]:
    """The texts beside the tensors of a safetensors file."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(LENGTH_BYTES), "little")))
    return header.get("__metadata__") or {}


def write_texts(file: Path, texts: Mapping[str, str]) -> None:
    """Gives a safetensors file these texts and no others, and the hash of its tensors where they are ModelSpec's.

    The library writes texts in another order each time; here the same ones make the same bytes. The file is whole, as
    it was or as it is to be, whatever happens.
    """
    temporary = file.with_name(f".{file.name}.texts")
    texts = dict(texts)
    try:
        with file.open("rb") as source, temporary.open("wb") as target:
            header = json.loads(source.read(int.from_bytes(source.read(LENGTH_BYTES), "little")))
            # A safetensors file is the length of its header, the header as JSON, and the tensors, which do not change.
            tensors = source.tell()
            if "modelspec.sai_model_spec" in texts:
                texts["modelspec.hash_sha256"] = f"0x{hash_of_rest(source)}"
            header["__metadata__"] = dict(sorted(texts.items()))
            content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
            content += b" " * (-len(content) % LENGTH_BYTES)  # the tensors stay where a CPU reads them best
            target.write(len(content).to_bytes(LENGTH_BYTES, "little") + content)
            source.seek(tensors)
            shutil.copyfileobj(source, target, 2**20)
        shutil.copymode(file, temporary)
        os.replace(temporary, file)
    finally:
        if temporary.exists():
            temporary.unlink()


def origin_of(kind: str, training: Any, unet: Mapping[str, Any], base: Any) -> Origin:
    """How what a `Training` trains came about, as it is now; `unet` is its configuration, `base` the `BaseModel`."""
    predicted = base.scheduler.config.prediction_type
    architecture = architecture_of(unet, predicted, base.name)
    return Origin(kind, training.trained_with, training.step, architecture, predicted, training.figures)


def give_texts(origin: Origin, folder: Path) -> None:
    """Writes into each of a folder's safetensors files how it came about."""
    for file in folder.glob("*.safetensors"):
        write_texts(file, file_texts(origin))


def hash_of_rest(stream: Any) -> str:
    digest = hashlib.sha256()
    for piece in iter(lambda: stream.read(2**20), b""):
        digest.update(piece)
    return digest.hexdigest()


def command_line() -> str:
    """The program as it was called, without the places on this computer."""
    words = [re.sub(r"(^|=)(?:[A-Za-z]:[\\/]|[/~]).*[/\\](?=[^/\\])", r"\1", word) for word in sys.argv[1:]]
    return shlex.join(["python", Path(sys.argv[0]).name, *words])


def fenced(text: str, language: str = "") -> str:
    """Text as it is in Markdown: within more backticks than there are anywhere in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def front_matter(origin: Origin) -> ModelCardData:
    """What the hub sorts models by. The licence is left out: it is whatever the base's and the data's allow."""
    base, (_, data) = origin.settings["base"], origin.data()
    of_hub = base["identity"] == base["words"]  # a folder is known by what it holds
    results = [
        EvalResult(
            task_type="text-to-image", dataset_type="test-conditions", dataset_name="the five test conditions",
            metric_type="iou", metric_name="mean IoU of disc and outline", metric_value=round(value, 4),
        )
        for name, value in origin.figures.items() if name == "validation/mean_iou"
    ]  # fmt: skip
    return ModelCardData(
        base_model=base["words"] if of_hub else None,
        datasets=[data] if "/" in data and repr(data) in origin.settings["data"]["identity"] else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "diffusers", "text-to-image", origin.kind.lower()],
        instance_prompt=origin.settings.get("instance_prompt"),
        model_name=origin.title if results else None,
        eval_results=results or None,
    )


def example(origin: Origin) -> str:
    """A few lines of diffusers that draw with the model; `.` is the folder, which on the hub has another name."""
    if origin.kind == "LoRA":
        return (
            "from diffusers import StableDiffusionPipeline\n\n"
            f"pipeline = StableDiffusionPipeline.from_pretrained({origin.base!r})\n"
            'pipeline.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")'
        )
    return (
        "from diffusers import ControlNetModel, StableDiffusionControlNetPipeline\n\n"
        'controlnet = ControlNetModel.from_pretrained(".")\n'
        f"pipeline = StableDiffusionControlNetPipeline.from_pretrained({origin.base!r}, controlnet=controlnet)"
    )


def card_text(origin: Origin, with_picture: bool) -> str:
    """The card's Markdown behind the front matter."""
    number, data = origin.data()
    lines = [f"# {origin.title}", ""]
    lines += [f"{number} samples of {data}, {origin.steps} steps of {origin.settings['samples_per_step']} samples.", ""]
    if "instance_prompt" in origin.settings:
        lines += ["What it learnt is called:", "", fenced(origin.settings["instance_prompt"]), ""]
    if with_picture:
        lines += [f"![Drawn at step {origin.steps}, while it was trained]({PICTURE_FILE})", ""]
    flags = {name: value for name, value in origin.settings.items() if isinstance(value, (int, float, str))}
    flags = {name: value for name, value in flags.items() if name not in ("instance_prompt", "class_prompt")}
    for title, rows in (("Figures", {n: f"{v:.4g}" for n, v in origin.figures.items()}), ("Settings", flags)):
        if rows:
            lines += [f"## {title}", "", "| | |", "|---|---|", *(table_row(*row) for row in rows.items()), ""]
    lines += ["## Use", "", fenced(example(origin), "python"), "", "## How it was trained", ""]
    return "\n".join([*lines, fenced(command_line(), "sh"), ""])


def table_row(name: str, value: object) -> str:
    cell = " ".join(str(value).split()).replace("|", r"\|")
    return f"| {name} | {cell} |"


def write_card(origin: Origin, folder: Path, output_dir: Path, place: Path) -> None:
    """Writes the model card and its picture into `folder`, which is to become `place`, a part of the run's output_dir.

    The picture is the one that was drawn at that step. The card that a finished run has is kept, whoever changed it.
    """
    files = [place / CARD_FILE, place / PICTURE_FILE]
    if read_run(output_dir)["finished"] == origin.steps and files[0].is_file():
        for file in files if folder != place else ():
            if file.is_file():
                shutil.copy(file, folder)
        return
    picture = output_dir / "validation" / f"step-{origin.steps:06d}.png"
    if picture.is_file():
        shutil.copyfile(picture, folder / PICTURE_FILE)
    card = ModelCard(f"---\n{front_matter(origin).to_yaml()}\n---\n\n{card_text(origin, picture.is_file())}")
    write_file(folder / CARD_FILE, str(card))

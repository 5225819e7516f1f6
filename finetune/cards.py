"""What a trained file says of itself: the texts beside its tensors, which other programs show and read.

The names are ModelSpec's (https://github.com/Stability-AI/ModelSpec), of which file managers tell which base a file is
for, and those of Kohya's trainer (`ss_*`), which AUTOMATIC1111, Forge and ComfyUI's managers show. Nothing of them
depends on the clock or on where things lie: the same run writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from . import __version__

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

    `kind` is "LoRA" or "ControlNet", `settings` are those of its `runs.Run`, `steps` the steps that it was trained for;
    `architecture` is ModelSpec's name for the base, and `prediction_type` what that predicts, in diffusers' words.
    """

    kind: str
    settings: Mapping[str, Any]
    steps: int
    architecture: str
    prediction_type: str

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
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def architecture_of(unet: Mapping[str, Any], prediction_type: str, base: str) -> str:
    """ModelSpec's name for Stable Diffusion 1.x and 2.x, by the UNet's configuration; of any other base its own name.

    The names with the kind of file behind them are what programs compare: `stable-diffusion-v1/lora`.
    """
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


def hash_of_rest(stream: Any) -> str:
    digest = hashlib.sha256()
    for piece in iter(lambda: stream.read(2**20), b""):
        digest.update(piece)
    return digest.hexdigest()

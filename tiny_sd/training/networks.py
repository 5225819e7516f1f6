"""The networks on top of the autoencoder: tokenizer, text encoder and UNet; built, started from others, and kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from finetune.model.base import load_part
from finetune.model.dtypes import cast
from finetune.run.checkpoints import give_rights

CONTEXT_LENGTH = 32
VOCABULARY = 2000  # enough for every word of the captions to become one token
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's file layout: any text can be encoded, the words of `captions` are short."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(captions, trainers.BpeTrainer(vocab_size=VOCABULARY, end_of_word_suffix="</w>"))
    merges = json.loads(bpe.to_str())["model"]["merges"]
    merges = [merge.split() if isinstance(merge, str) else merge for merge in merges]  # text in older releases

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(merge) for merge in merges] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(dict.fromkeys(tokens))}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT_LENGTH, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=768, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=192, max_position_embeddings=CONTEXT_LENGTH, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def build_unet(latent_channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        # 256 at the narrowest: 12.8 M parameters in place of 8.9 M with 192, for 6 % of a step's time on a CPU.
        block_out_channels=(64, 128, 256),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,  # as in Stable Diffusion 1, this is the number of heads
        cross_attention_dim=192,
        norm_num_groups=16,
    )


def start_from(folder: Path, tokenizer: CLIPTokenizer, networks: torch.nn.ModuleDict) -> None:
    """Takes over the weights of a pipeline folder, where they fit.

    It may have another tokenizer: a token that both know takes its embedding. It may have another autoencoder: then the
    UNet's first and last convolution stay as they are, and what lies between them has less to learn anew.
    """
    text_encoder = load_part(CLIPTextModel, str(folder), "text_encoder")
    unet = load_part(UNet2DConditionModel, str(folder), "unet")
    known = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer").get_vocab()
    old = text_encoder.get_input_embeddings().weight
    embeddings = networks["text_encoder"].get_input_embeddings().weight.detach().cpu().clone()
    for token, row in tokenizer.get_vocab().items():
        if token in known:
            embeddings[row] = old[known[token]].detach()
    text_encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(embeddings))
    for network, given in ((networks["text_encoder"], text_encoder), (networks["unet"], unet)):
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        fitting = {name: tensor for name, tensor in given.state_dict().items() if tensor.shape == shapes[name]}
        left_out = network.load_state_dict(fitting, strict=False).missing_keys
        print(f"Starting from {folder}" + (f", but for {', '.join(left_out)}" if left_out else ""))


def save(folder: Path, vae, text_encoder, tokenizer, unet) -> None:
    """Writes the pipeline folder, float16 in files and float32 when loaded, with Stable Diffusion 1.4's scheduler."""
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        set_alpha_to_one=False,
    )  # fmt: skip
    # As in Stable Diffusion's own file. PNDM knows no such thing, but samplers made from its settings do: DDIM and DDPM
    # would cut latents, of which a third is beyond, to -1..1.
    scheduler.register_to_config(clip_sample=False)
    # Older releases save contiguous tensors only.
    parts = (copy.deepcopy(part).to(memory_format=torch.contiguous_format) for part in (vae, text_encoder, unet))
    vae, text_encoder, unet = (cast(part, torch.float16) for part in parts)
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    if hasattr(tokenizer, "backend_tokenizer"):  # not in older releases
        tokenizer.backend_tokenizer.no_truncation()  # of the training's captions: its files say the lengths
        tokenizer.backend_tokenizer.no_padding()
    tokenizer_files = {file: file.read_bytes() for file in (folder / "tokenizer").iterdir()}
    pipeline.save_pretrained(folder)
    for file, content in tokenizer_files.items():  # save_pretrained leaves only what this release of transformers reads
        file.write_bytes(content)

    # transformers 5.6 and later drop a prefix that older releases cannot do without, and newer ones still read.
    weights = folder / "text_encoder" / "model.safetensors"
    state = {f"text_model.{name.replace('text_model.', '')}": tensor for name, tensor in load_file(weights).items()}
    save_file(state, weights, metadata={"format": "pt"})
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    for config in folder.rglob("config.json"):  # where it was trained is nobody's business
        fields = json.loads(config.read_text())
        fields.pop("_name_or_path", None)
        config.write_text(json.dumps(fields, indent=2) + "\n")
    give_rights(*folder.rglob("*.safetensors"))

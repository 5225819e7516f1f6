"""Trains the embedded base's tokenizer, text encoder and UNet on top of its autoencoder (train_vae.py comes first).

    PYTHONPATH=. python tiny_sd/training/train_denoiser.py

Started again, it goes on where it was. Everything else is latent diffusion as Stable Diffusion 1.4 does it: noise
prediction, scaled-linear betas, a tenth of the prompts empty so that classifier-free guidance works. Two things make it
learn on two CPU cores: most samples are seen at 64 px, where a step costs a quarter (what a word means does not depend
on the size), and all timesteps weigh the same in the loss, however large their errors usually are.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from finetune.devices import pick_device
from finetune.model.base import load_part
from finetune.numbers import natural_int, positive_float, positive_int, share
from finetune.run.checkpoints import give_rights
from finetune.run.progress import progress_bar
from finetune.setup import use_fast_attention
from tiny_sd.pictures.icons import STYLES, load_subjects
from tiny_sd.pictures.scenes import SHAPES, scene
from tiny_sd.training.long_run import LongRun, kept
from tiny_sd.training.train_vae import BASE, SHARES, autocast, on_all_cores, to_range

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


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor, resolution: int) -> torch.Tensor:
    """uint8 images, made small, to scaled latents of `resolution` / 8, float16 on the autoencoder's device."""
    latents = []
    number = 512 if vae.device.type == "cuda" else 64
    for batch in progress_bar(images.split(number), desc=f"Encoding {resolution} px"):
        small = torch.nn.functional.interpolate(to_range(batch.to(vae.device)), size=resolution, mode="area")
        with autocast(vae.device):
            mean = vae.encode(small).latent_dist.mean
        latents.append((mean * vae.config.scaling_factor).half())
    return torch.cat(latents)


class BalancedError:
    """Divides the squared error of a timestep by what is usual for it, so that all timesteps count the same.

    Where almost all is noise, most of the error is chance (where will the circle be?) and would drown what can be
    learnt at the others. Karras et al., 2023, https://arxiv.org/abs/2312.02696, section 2.2, with running means in the
    place of a learnt function.
    """

    def __init__(self, device: torch.device, bins: int = 20, timesteps: int = 1000) -> None:
        self.width = timesteps // bins
        self.usual = torch.zeros(bins, device=device)

    def __call__(self, errors: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The loss from the errors of a batch, (batch,), and their timesteps."""
        bins = timesteps // self.width
        count = torch.zeros_like(self.usual).index_add_(0, bins, torch.ones_like(errors))
        mean = torch.zeros_like(self.usual).index_add_(0, bins, errors.detach()) / count.clamp(min=1)
        start = torch.where(self.usual > 0, self.usual, mean)  # a bin's first errors are what is usual so far
        self.usual = mean + (start - mean) * 0.99**count
        return (errors / self.usual[bins]).mean()


def save(folder: Path, vae, text_encoder, tokenizer, unet) -> None:
    """Writes the pipeline folder, float16 in files and float32 when loaded, with Stable Diffusion 1.4's scheduler."""
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        set_alpha_to_one=False,
    )  # fmt: skip
    # Older releases save nothing else.
    vae, unet = (copy.deepcopy(part).to(memory_format=torch.contiguous_format) for part in (vae, unet))
    pipeline = StableDiffusionPipeline(
        vae, copy.deepcopy(text_encoder), tokenizer, unet, scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    if hasattr(tokenizer, "backend_tokenizer"):  # not in older releases
        tokenizer.backend_tokenizer.no_truncation()  # of the training's captions: its files say the lengths
        tokenizer.backend_tokenizer.no_padding()
    tokenizer_files = {file: file.read_bytes() for file in (folder / "tokenizer").iterdir()}
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
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


def picture_and_captions(index: int, shares: tuple[float, ...]) -> tuple[np.ndarray, list[str]]:
    image, captions = scene(index, 128, *shares)
    return np.asarray(image), captions


class Prompts:
    """Token ids of all captions of all scenes on one device; a scene is given one of its captions at random."""

    def __init__(self, tokenizer: CLIPTokenizer, captions: list[list[str]], device: torch.device) -> None:
        def tokenize(texts: list[str]) -> torch.Tensor:
            settings = {"padding": "max_length", "max_length": CONTEXT_LENGTH, "truncation": True}
            return tokenizer(texts, return_tensors="pt", **settings).input_ids.to(device)

        self.ids = tokenize([caption for many in captions for caption in many])
        self.empty = tokenize([""])
        self.counts = torch.tensor([len(many) for many in captions], device=device)
        self.starts = self.counts.cumsum(0) - self.counts

    def draw(self, scenes: torch.Tensor) -> torch.Tensor:
        """A caption for each scene (batch,), a tenth of them empty: token ids (batch, tokens)."""
        chance = torch.rand(2, len(scenes), device=scenes.device)
        tokens = self.ids[self.starts[scenes] + (chance[0] * self.counts[scenes]).long()]
        return torch.where(chance[1, :, None] < 0.1, self.empty, tokens)


def in_patches(latents: torch.Tensor) -> torch.Tensor:
    """Latents (batch, C, side, side) as 16 patches from left to right and down: (batch, 16, C * (side / 4) ** 2)."""
    size = latents.shape[-1] // 4
    patches = latents.unfold(2, size, size).unfold(3, size, size)  # (batch, C, 4, 4, size, size)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


@torch.no_grad()
def words_from_pictures(text_encoder: CLIPTextModel, bank: torch.Tensor, prompts: Prompts, passes: int = 4) -> None:
    """Sets every token's embedding to what it adds to the average picture of a caption, in the main components.

    A linear model of bags of words, by least squares. What is alike then begins alike, and what is learnt about one
    word, where a red thing on a white ground has its red, holds for the others.
    """
    width, vocabulary = text_encoder.config.hidden_size, text_encoder.config.vocab_size
    pictures = bank.float().flatten(1)
    pictures = pictures - pictures.mean(0)
    counts = torch.zeros(vocabulary, vocabulary, device=bank.device)
    sums = torch.zeros(vocabulary, pictures.shape[1], device=bank.device)
    scenes = torch.arange(len(bank), device=bank.device)
    for _ in range(passes):
        tokens = prompts.draw(scenes)
        bag = torch.zeros(len(scenes), vocabulary, device=bank.device)
        bag.scatter_(1, tokens, 1.0)
        counts += bag.T @ bag
        sums += bag.T @ pictures
    adds = torch.linalg.solve(counts + passes * torch.eye(vocabulary, device=bank.device), sums)
    directions, sizes, _ = torch.linalg.svd(adds, full_matrices=False)
    embeddings = directions[:, :width] * sizes[:width].sqrt()  # the root: small components are to be seen too
    used = sums.abs().sum(1) > 0
    start = text_encoder.get_input_embeddings().weight
    start[used] = (embeddings / embeddings[used].std() * start.std())[used]


class PictureReader(torch.nn.Linear):
    """Reads latents off what the text encoder says, one patch of them off each of the last 16 tokens; thrown away."""

    def __init__(self, text_encoder: CLIPTextModel, bank: torch.Tensor) -> None:
        super().__init__(text_encoder.config.hidden_size, in_patches(bank[:1]).shape[-1], device=bank.device)

    def error(self, text: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Squared error as a share of the latents' variance; text (batch, tokens, width)."""
        patches = in_patches(latents)
        return (self(text[:, -16:]).float() - patches).square().mean() / patches.var()


def learn_words(
    text_encoder: CLIPTextModel, bank: torch.Tensor, prompts: Prompts, steps: int, batch_size: int, learning_rate: float
) -> None:
    """The text encoder alone learns what words look like: from a caption to the average picture that it describes.

    Stable Diffusion's text encoder was trained on pictures before its UNet was (CLIP, Radford et al., 2021,
    https://arxiv.org/abs/2103.00020). Here the aim is cheaper, and just what a denoiser has to know where almost all is
    noise: the mean of the latents. Each of the last 16 tokens, which stand behind nearly every caption's end, gives one
    patch of them by a linear layer. What is left for the UNet to learn is where to look.
    """
    reader = PictureReader(text_encoder, bank)
    parameters = [*text_encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    progress = progress_bar(range(1, steps + 1), desc="Words")
    for step in progress:
        scenes = torch.randint(len(bank), (batch_size,), device=bank.device)
        with autocast(bank.device):
            error = reader.error(text_encoder(prompts.draw(scenes))[0], bank[scenes].float())
        error.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            progress.set_postfix(explained=f"{1 - error.item():.3f}")


def draw_timesteps(number: int, timesteps: int, device: torch.device) -> torch.Tensor:
    """One timestep from each of `number` equal parts of the range, in random order: every batch sees all noise.

    Drawn as the power 2/3 of a uniform number: what is where is decided in much noise, and is the harder part to learn.
    """
    places = (torch.randperm(number, device=device) + torch.rand(number, device=device)) / number
    return (places ** (2 / 3) * timesteps).long().clamp(max=timesteps - 1)


def train(
    networks: torch.nn.ModuleDict,
    bank: torch.Tensor,
    prompts: Prompts,
    steps: int,
    batch_size: int,
    learning_rate: float,
    state_file: Path,
    compiled: bool,
    seconds: float | None = None,
) -> None:
    """One stage: trains `networks` on the latents of all scenes and leaves their moving average in them.

    The text encoder is held to what `learn_words` taught it: its pictures go on getting sharper.
    """
    device = bank.device
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    modules = torch.nn.ModuleDict({**networks, "reader": PictureReader(networks["text_encoder"], bank)})
    run = LongRun(modules, learning_rate, steps, state_file, max_grad_norm=3.0, seconds=seconds)
    unet = torch.compile(networks["unet"], dynamic=False) if compiled and not run.done else networks["unet"]
    balanced = BalancedError(device)
    progress = progress_bar(total=steps, initial=run.step, desc=f"{bank.shape[-1] * 8} px")
    while not run.done:
        run.start_step()
        scenes = torch.randint(len(bank), (batch_size,), device=device)
        latents = bank[scenes].float()
        noise = torch.randn_like(latents)
        timesteps = draw_timesteps(batch_size, scheduler.config.num_train_timesteps, device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with autocast(device):
            text = networks["text_encoder"](prompts.draw(scenes))[0]
            predicted = unet(noisy, timesteps, text).sample
            words_error = modules["reader"].error(text, latents)
        error = balanced((predicted.float() - noise).square().mean((1, 2, 3)), timesteps)
        run.update(error + words_error)
        progress.update()
        if run.step % 50 == 0:
            progress.set_postfix(samples=run.step * batch_size, error=f"{balanced.usual.mean().item():.4f}")
    run.exchange_average()


def scenes_and_captions(shares: tuple[float, ...], number: int) -> tuple[torch.Tensor, list[list[str]]]:
    """uint8 pictures (number, 3, 128, 128), and all captions of each."""
    drawn = on_all_cores(partial(picture_and_captions, shares=shares), range(number), "Rendering")
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
    return images, [captions for _, captions in drawn]


def fingerprint(model: torch.nn.Module) -> float:
    return sum(parameter.cpu().double().abs().sum().item() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps",
        type=natural_int,
        nargs=3,
        default=(1500, 6000, 12000),
        help="words alone (anew; 0 keeps what --start has of them), 64 px, 128 px",
    )
    parser.add_argument(
        "--batch_size", type=positive_int, nargs=3, default=(128, 64, 32), help="the same, samples a step"
    )
    parser.add_argument(
        "--learning_rate", type=positive_float, nargs=3, default=(1e-3, 2e-3, 1e-3), help="the same, peak"
    )
    parser.add_argument(
        "--seconds",
        type=positive_float,
        nargs=2,
        help="64 px, 128 px: stop after so much time",
    )
    parser.add_argument("--images", type=positive_int, default=30000, help="how many scenes to train on")
    parser.add_argument("--icon_share", type=share, default=SHARES[0], help="share that show an everyday thing")
    parser.add_argument("--print_share", type=share, default=SHARES[1], help="share that show a print of one")
    parser.add_argument("--place_share", type=share, default=SHARES[2], help="share of the things that are in a place")
    parser.add_argument("--pair_share", type=share, default=SHARES[3], help="share of the others that come in pairs")
    parser.add_argument("--vae", type=Path, default=BASE / "vae", help="folder of the autoencoder")
    parser.add_argument("--output_dir", type=Path, default=BASE)
    parser.add_argument("--start", type=Path, help="start from a pipeline folder's weights, such as tiny_sd")
    parser.add_argument(
        "--draw_only", action="store_true", help="draw and keep the pictures, so that a GPU need not wait"
    )
    parser.add_argument("--compile", action="store_true", help="compile the UNet: slow to start, then a third faster")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = pick_device()
    shares = (args.icon_share, args.print_share, args.place_share, args.pair_share)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    made_of = [args.images, *shares]
    images, captions = kept(args.output_dir / "scenes.pt", lambda: scenes_and_captions(shares, args.images), made_of)
    if args.draw_only:
        return
    if args.start and not args.steps[0]:
        shutil.copytree(args.start / "tokenizer", args.output_dir / "tokenizer", dirs_exist_ok=True)
        tokenizer = CLIPTokenizer.from_pretrained(args.output_dir / "tokenizer")
    else:
        words = [*SHAPES, *STYLES, *load_subjects().values()] if args.icon_share else list(SHAPES)
        tokenizer = train_tokenizer([c for many in captions for c in many] + words, args.output_dir / "tokenizer")
    prompts = Prompts(tokenizer, captions, device)

    vae = AutoencoderKL.from_pretrained(args.vae).eval()
    vae.to(device, memory_format=torch.channels_last if device.type == "cuda" else torch.contiguous_format)
    unet = build_unet(vae.config.latent_channels)
    networks = torch.nn.ModuleDict({"text_encoder": build_text_encoder(tokenizer), "unet": unet})
    if args.start:
        start_from(args.start, tokenizer, networks)
    networks.to(device)
    networks["unet"].to(memory_format=torch.channels_last)
    use_fast_attention(networks["unet"], device)
    print(f"{sum(p.numel() for p in networks.parameters()) / 1e6:.1f} M parameters on {device}")

    @lru_cache(maxsize=None)
    def latents(resolution: int) -> torch.Tensor:
        file, kind = args.output_dir / f"latents_{resolution}.pt", [*made_of, fingerprint(vae)]
        return kept(file, lambda: encode(vae, images, resolution), kind).to(device)

    words_stage, *stages = zip(args.steps, args.batch_size, args.learning_rate)
    if words_stage[0] and not (args.output_dir / "state_64.pt").is_file():
        networks["text_encoder"] = build_text_encoder(tokenizer).to(device)
        words_from_pictures(networks["text_encoder"], latents(128), prompts)
        learn_words(networks["text_encoder"], latents(128), prompts, *words_stage)
    for resolution, stage, seconds in zip((64, 128), stages, args.seconds or (None, None)):
        if stage[0]:
            state_file = args.output_dir / f"state_{resolution}.pt"
            train(networks, latents(resolution), prompts, *stage, state_file, args.compile, seconds)
    save(args.output_dir, vae.cpu(), networks["text_encoder"].cpu(), tokenizer, networks["unet"].cpu())


if __name__ == "__main__":
    main()

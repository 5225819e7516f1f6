"""What the text encoder learns before the UNet is trained: which words look like what."""

from __future__ import annotations

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from finetune.run.progress import progress_bar
from tiny_sd.training.networks import CONTEXT_LENGTH
from tiny_sd.training.train_vae import autocast


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

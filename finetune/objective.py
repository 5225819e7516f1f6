"""The training objective of latent diffusion, and randomness that a resumed run repeats exactly."""

from __future__ import annotations

import hashlib
import math
from typing import Any, Callable, Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator, PartialState
from diffusers import DDPMScheduler
from torch.utils.data import DataLoader, Dataset

from .argument_types import MOST_HELD_OUT
from .devices import pins_memory
from .run.stopping import leave_signals_to_main

# So many timesteps at least are measured, of however few pictures.
LEAST_MEASURED = 32


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the message names the step and the last good checkpoint."""


def require_finite(losses: Sequence[float], step: int, last_good: Callable[[], str]) -> None:
    """Raises NonFiniteLossError if one of these losses, the last of which is this step's, is not finite."""
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            # Looked at every ten steps, but kept one by one: the message names the first that went wrong.
            raise NonFiniteLossError(
                f"The loss of step {step - len(losses) + i + 1} is {loss}. {last_good()} A lower --learning_rate "
                f"usually helps; or, in another --output_dir, --mixed_precision bf16 instead of fp16."
            )


def require_finite_weights(
    model: torch.nn.Module, accelerator: Accelerator, step: int, last_good: Callable[[], str]
) -> None:
    """Raises NonFiniteLossError, on all processes, if what was trained is not finite: a step's loss is that of the
    weights before it."""
    trained = (parameter.detach() for parameter in model.parameters() if parameter.requires_grad)
    parts = [one.to_local() if hasattr(one, "to_local") else one for one in trained]  # of FSDP, this process's part
    found = torch.zeros((), device=accelerator.device)  # which FSDP may have moved the weights away from
    for part in parts:
        found += (~torch.isfinite(part)).any().to(found)
    if accelerator.reduce(found, reduction="sum").item():
        raise NonFiniteLossError(
            f"The weights after step {step} are not finite. {last_good()} A lower --learning_rate usually helps."
        )


def seed_for(*numbers: int) -> int:
    """Mixes numbers (seed, step, ...) into one seed.

    What is random at a step is a function of the step, not of all that was drawn before it: there is no state to save,
    and a run that was killed and resumed draws what it would have drawn.
    """
    # Not seed + step, by which step 1 of seed 0 would be step 0 of seed 1. A linear congruential generator with the
    # constants of Knuth's MMIX; its low bits repeat soon, hence the shift behind it.
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return mixed ^ (mixed >> 31)


def batches_of_indices(
    num_samples: int, batch_size: int, seed: int, start: int, process: int = 0, num_processes: int = 1
) -> Iterator[list[int]]:
    """Endless batches for one process: every epoch is a new permutation, and batch `start` can be the first.

    Raises:
        ValueError: if there are no samples.
    """
    if num_samples < 1:
        raise ValueError("The data set is empty.")
    epoch, order = -1, []
    batch = start
    while True:
        # All samples of all processes stand in one endless row, and this is where this process's batch begins.
        first = (batch * num_processes + process) * batch_size
        indices = []
        for position in range(first, first + batch_size):
            # A batch may reach over the end of an epoch: none is short, and each step has as many samples as the
            # learning rate was chosen for.
            if position // num_samples != epoch:
                epoch = position // num_samples
                # From the epoch's number alone: whoever begins in the middle need not draw the orders before.
                generator = torch.Generator().manual_seed(seed_for(seed, epoch))
                order = torch.randperm(num_samples, generator=generator).tolist()
            indices.append(order[position % num_samples])
        yield indices
        batch += 1


def own_batches(
    dataset: Dataset, accelerator: Accelerator, batch_size: int, seed: int, step: int, workers: int
) -> Iterator[Any]:
    """This process's batches, endless, from the one that this step sees. Raises ValueError for no samples."""
    start = step * accelerator.gradient_accumulation_steps
    indices = batches_of_indices(
        len(dataset), batch_size, seed, start, accelerator.process_index, accelerator.num_processes
    )
    # Our order, not a shuffling loader of accelerate's: that would have to skip batches to get where it was.
    return iter(
        DataLoader(
            dataset,
            batch_sampler=indices,
            num_workers=workers,
            pin_memory=pins_memory(accelerator.device),
            worker_init_fn=leave_signals_to_main,
        )
    )


def own_part(draw: Callable[[int], torch.Tensor], batch_size: int) -> torch.Tensor:
    """This process's samples of what `draw` gives for the batches of all processes together.

    All are seeded alike, so several processes train as one with the whole batch would.
    """
    processes = PartialState()
    # Drawing for all costs next to nothing; drawing differently would make two GPUs another training than one.
    first = batch_size * processes.process_index
    return draw(batch_size * processes.num_processes)[first : first + batch_size]


class Part(Dataset):
    """Some samples of `data`, which has `len`, items, all `texts()` or none, and a string `fingerprint`."""

    def __init__(self, data: Any, indices: list[int]) -> None:
        self.data, self.indices = data, indices
        chosen = hashlib.sha256(repr(indices).encode()).hexdigest()
        self.fingerprint = repr((data.fingerprint, chosen))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[self.indices[index]]

    def texts(self) -> list[str]:
        texts = self.data.texts()
        return [texts[index] for index in self.indices] if texts else []


def split_off(data: Any, part: float, part_class: type = Part) -> tuple[Any, Any]:
    """What is left to train on, and the held-out share of the pictures: always the same ones, whatever the seed.

    All samples of one picture, as with several captions, are on one side; which they are `data.sources()` says, if the
    data have that: a name for each sample's picture.

    Raises ValueError if nothing would be left.
    """
    sources = data.sources() if hasattr(data, "sources") else list(range(len(data)))
    # By picture, not by sample: one that is trained on under another caption is not held out.
    pictures = list(dict.fromkeys(sources))
    number = min(max(1, round(part * len(pictures))), MOST_HELD_OUT)
    if number >= len(pictures):
        raise ValueError(f"--validation_split {part} of {len(pictures)} pictures leaves none to train on.")
    # 0 and not --seed: runs that differ by their seed alone are measured on the same pictures.
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = {pictures[i] for i in order[:number]}
    indices = range(len(data))
    return (
        part_class(data, [i for i in indices if sources[i] not in chosen]),
        part_class(data, [i for i in indices if sources[i] in chosen]),
    )


class HeldOut(Dataset):
    """Samples with a noise and a timestep each that never change; of few samples each comes several times.

    The timesteps lie evenly over those that are trained on, in proportion to how often they are drawn there.
    """

    def __init__(self, samples: Dataset, fingerprint: str) -> None:
        self.samples, self.fingerprint = samples, fingerprint
        self.size = len(samples) * -(-LEAST_MEASURED // len(samples))
        # Shuffled: else the pictures in front would only ever be measured with little noise on them.
        self.order = torch.randperm(self.size, generator=torch.Generator().manual_seed(1)).tolist()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        # The middle of each of `size` equal parts: by chance whole ranges of timesteps may be missed.
        fixed = {"noise_seed": seed_for(index), "quantile": (self.order[index] + 0.5) / self.size}
        return {**self.samples[index % len(self.samples)], **fixed}


@torch.no_grad()
def mean_loss(loss: Callable[[Any], torch.Tensor], held_out: HeldOut, batch_size: int) -> float:
    """Of all held-out samples; every process computes all, as a model that is spread wants all to take part."""
    batches = DataLoader(held_out, batch_size=batch_size)
    return sum(loss(batch).item() * len(batch["noise_seed"]) for batch in batches) / len(held_out)


def is_held_out(batch: Mapping[str, Any]) -> bool:
    return "noise_seed" in batch


def fixed_draws(
    batch: Mapping[str, torch.Tensor], latents: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and timesteps of a batch of `HeldOut`, the same on every device; `weights` are those of the timesteps."""
    # On the CPU, whose numbers are the same on every machine; a GPU's are not.
    generators = [torch.Generator().manual_seed(seed) for seed in batch["noise_seed"].tolist()]
    noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
    # The timestep at which so large a share of all weights is reached: quantiles become timesteps as often as the
    # training draws them. In float64, as a sum of a thousand float32 need not end at what it is divided by.
    reached = weights.cpu().double().cumsum(0)  # (T,)
    timesteps = torch.searchsorted(reached / reached[-1], batch["quantile"].double())
    return noise.to(latents), timesteps.to(latents.device)


def diffusion_loss(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: DDPMScheduler,
    latents: torch.Tensor,
    snr_gamma: float | None = None,
    noise_offset: float = 0.0,
    sample_weights: torch.Tensor | None = None,
    held_out: Mapping[str, torch.Tensor] | None = None,
    noise_alone: float = 0.0,
    kept: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """The mean squared error of the predicted noise or velocity at random timesteps.

    Timesteps that count less are drawn less often instead of being multiplied by a small weight: the loss is the same
    on average, and no step is spent on what hardly counts.

    Args:
        predict: maps noisy latents and timesteps (batch,) to a prediction of the latents' shape.
        scheduler: its `prediction_type` says what is predicted: `epsilon` (Ho et al., 2020,
            https://arxiv.org/abs/2006.11239, eq. 14) or `v_prediction` (Salimans & Ho, 2022,
            https://arxiv.org/abs/2202.00512, appendix D).
        latents: (batch, channels, height, width).
        snr_gamma: weight the timesteps by min-SNR (Hang et al., 2023, https://arxiv.org/abs/2303.09556).
        noise_offset: add noise of this deviation that is the same all over a channel, so that very dark and very
            bright pictures can be learnt (https://www.crosslabs.org/blog/diffusion-with-offset-noise).
        sample_weights: (batch,) how much each sample counts.
        held_out: a batch of `HeldOut`, which has its noise and timesteps with it.
        noise_alone: the share of samples of which `predict` sees what sampling starts from: `from_noise_alone`.
        kept: maps the same to a prediction for the last samples that is to stay as it is: their target in place of the
            noise (as old tasks are kept by Li & Hoiem, 2016, https://arxiv.org/abs/1606.09282).

    Raises:
        ValueError: for another prediction type.
    """
    weights = timestep_weights(scheduler, snr_gamma).to(latents.device)  # (T,)
    if held_out is not None:
        noise, timesteps = fixed_draws(held_out, latents, weights)
    else:
        noise, timesteps = random_draws(latents, weights, noise_offset)  # (B, 4, h, w), (B,)
    # z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) noise, with a_t = alphas_cumprod[t] (Ho et al., 2020, eq. 4), at once.
    noisy_latents = scheduler.add_noise(latents, noise, timesteps)  # (B, 4, h, w)
    if noise_alone and held_out is None:
        noisy_latents, noise, timesteps = from_noise_alone(
            scheduler, latents, noisy_latents, noise, timesteps, noise_alone
        )
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        target = noise
    elif prediction_type == "v_prediction":
        # v = sqrt(a_t) noise - sqrt(1 - a_t) z_0. Where all is noise, to predict it is to copy; v is the picture.
        target = scheduler.get_velocity(latents, noise, timesteps)
    else:
        raise ValueError(f"The scheduler's prediction_type is {prediction_type!r}; known: epsilon, v_prediction.")

    if kept is not None:
        to_stay = kept(noisy_latents, timesteps).to(target)  # (K, 4, h, w)
        target = torch.cat([target[: -len(to_stay)], to_stay])
    # float: autocast leaves the prediction in half precision, too coarse for a mean of squares. weights.mean(): a
    # timestep is drawn w_t / mean(w) times as often as if all were alike, which becomes w_t times by this.
    error = (predict(noisy_latents, timesteps).float() - target.float()).square().mean((1, 2, 3)) * weights.mean()
    if sample_weights is not None:
        error = error * sample_weights  # (B,)
    return error.mean()


def from_noise_alone(
    scheduler: DDPMScheduler,
    latents: torch.Tensor,
    noisy_latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    share: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shows a random `share` of the samples as sampling begins: noise alone, at the last timestep.

    Stable Diffusion's last timestep has 0.005 of the picture's variance left, enough to see where things are. Training
    learns to trust that; sampling starts without, and takes what its noise happens to look like for it (Lin et al.,
    2023, https://arxiv.org/abs/2305.08891, section 3.1). To those shown here prompt and condition alone can tell.

    Returns the noisy latents, the noise that is to be predicted of them, and the timesteps.
    """
    chance = own_part(lambda number: torch.rand(number, device=latents.device), len(latents))
    last = len(scheduler.alphas_cumprod) - 1
    alpha = scheduler.alphas_cumprod[last].to(latents.device)
    # All that is shown is the noise; the picture is right, if this is the noise in it (Ho et al., 2020, eq. 4).
    in_it = (noise - alpha.sqrt() * latents) / (1 - alpha).sqrt()
    chosen = chance < share
    wide = chosen.reshape(-1, *[1] * (latents.dim() - 1))  # (B, 1, 1, 1)
    timesteps = torch.where(chosen, torch.full_like(timesteps, last), timesteps)
    return torch.where(wide, noise, noisy_latents), torch.where(wide, in_it, noise), timesteps


def random_draws(
    latents: torch.Tensor, weights: torch.Tensor, noise_offset: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of the latents' shape, and timesteps (batch,), from torch's global generator."""
    # Not randn_like: its numbers depend on the memory layout, which differs between cached and fresh latents.
    place, batch_size, shape = {"device": latents.device, "dtype": latents.dtype}, len(latents), latents.shape[1:]
    noise = own_part(lambda number: torch.randn(number, *shape, **place), batch_size)
    # One number for a whole channel of a picture: noise of independent pixels hardly moves a mean, and so the mean of
    # the picture, its brightness, is never to be found out.
    if noise_offset:
        offset = own_part(lambda number: torch.randn(number, shape[0], 1, 1, **place), batch_size)
        noise = noise + noise_offset * offset
    return noise, own_part(lambda number: torch.multinomial(weights, number, replacement=True), batch_size)


def timestep_weights(scheduler: DDPMScheduler, snr_gamma: float | None) -> torch.Tensor:
    """How much the error at each timestep counts, (timesteps,): min-SNR (Hang et al., 2023, eq. 5), or 1 everywhere."""
    # The variance of what is left of the picture over that of the noise: 1,175 at the first of Stable Diffusion's
    # timesteps, 0.005 at the last.
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)  # (T,)
    if snr_gamma is None:
        return torch.ones_like(snr)
    # In terms of z_0 the loss of a predicted noise counts SNR times, that of a velocity SNR + 1 times: to count
    # min(SNR, gamma) it is divided by that. Nine draws of ten are of timesteps from 175 on with the paper's gamma of 5,
    # from 716 on with the demo's 0.01.
    counts = snr if scheduler.config.prediction_type == "epsilon" else snr + 1
    # A schedule that ends without signal has 0 / 0 there; just before, below gamma, it is SNR / SNR.
    return (snr.clamp(max=snr_gamma) / counts).nan_to_num(nan=1.0)


def drop_prompts(text: torch.Tensor, no_prompt: torch.Tensor, proportion: float) -> torch.Tensor:
    """Replaces a random `proportion` of the prompts, (batch, ...), by the empty one, (1, ...): token ids or embeddings.

    It is what classifier-free guidance needs (Ho & Salimans, 2022, https://arxiv.org/abs/2207.12598).
    """
    if not proportion:
        return text
    # Ho & Salimans found a tenth and a fifth alike, a half worse (section 4.2).
    chance = own_part(lambda number: torch.rand(number, device=text.device), len(text))
    dropped = (chance < proportion).reshape(-1, *[1] * (text.dim() - 1))  # (B, 1, ...)
    return torch.where(dropped, no_prompt.to(text.device), text)

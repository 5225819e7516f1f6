"""What the style and the DreamBooth training share: base, encodings, LoRA, loss, pictures, and the file at the end."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import UNet2DConditionModel
from torch.utils.data import Dataset
from transformers import CLIPTextModel

from drawing import validate
from finetune import estimate
from finetune.data.cache import Samples, load_encodings
from finetune.estimate import Rehearsal, cast_frozen
from finetune.flags import Plan, of_same_names, plan_of
from finetune.model.base import BaseModel, factor_of
from finetune.model.cards import Origin, file_texts, origin_of, write_card
from finetune.model.single_file import configs_of
from finetune.model.upload import Upload
from finetune.objective import HeldOut, diffusion_loss, drop_prompts, is_held_out
from finetune.optimizer import SetupError
from finetune.run.folder import Run, RunFinished
from finetune.run.processes import is_main_process
from finetune.setup import frozen_dtype, use_fast_attention, would_run_on
from finetune.training_loop import Training
from lora.model import KOHYA_FILE, LoraDenoiser, load_denoiser, load_state, save_kohya, save_lora, save_state


@dataclass(frozen=True)
class LoraPlan:
    """What is trained and shown: what the flags of the same names say. `optimisation` says how."""

    base: str
    output_dir: Path
    resolution: int
    rank: int
    alpha: float
    lora_layers: str
    train_text_encoder: bool
    gradient_checkpointing: bool
    encode_once: bool
    snr_gamma: float | None
    proportion_empty_prompts: float
    also_save: str | None
    validation_prompt: str | None
    num_validation_images: int
    validation_epochs: int
    validation_guidance_scale: float
    optimisation: Plan


def lora_plan_of(args: argparse.Namespace) -> LoraPlan:
    return LoraPlan(
        base=args.pretrained_model_name_or_path,
        encode_once=not args.no_cache,
        optimisation=plan_of(args),
        **of_same_names(LoraPlan, args),
    )


def rehearsal(args: argparse.Namespace, device: torch.device) -> Callable[[str], Rehearsal]:
    """What makes one batch's step in a precision, for an estimate, without weights. Raises BaseModelError."""
    unet_config, vae_config, text_config = configs_of(args.pretrained_model_name_or_path)
    side, length = args.resolution // factor_of(vae_config), text_config.max_position_embeddings
    with_class = getattr(args, "with_prior_preservation", False)
    keeps = with_class and args.prior_target == "base"
    samples = args.train_batch_size * (2 if with_class else 1)  # each item is two samples then

    def make(precision: str) -> Rehearsal:
        unet = UNet2DConditionModel.from_config(unet_config).requires_grad_(False)
        use_fast_attention(unet, device)
        text_encoder = CLIPTextModel(text_config) if args.train_text_encoder else None
        denoiser = LoraDenoiser(unet, text_encoder, args.rank, args.alpha, args.lora_layers).train()
        if args.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        cast_frozen(unet, frozen_dtype(precision, device))
        # Shapes as in `LoraTraining.loss`: latents (B, 4, H / 8, W / 8), text (B, T, D) or token ids (B, T).
        text = torch.randn(samples, length, text_config.hidden_size)
        if text_encoder is not None:
            text = torch.zeros(samples, length, dtype=torch.long)
        latents = torch.randn(samples, unet.config.in_channels, side, side)

        def step() -> torch.Tensor:
            if keeps:  # of the class's half, as `LoraTraining.loss` does
                half = samples // 2
                with torch.no_grad(), denoiser.switched_off():
                    denoiser(latents[:half], torch.ones(half), text[:half])
            return denoiser(latents, torch.ones(samples), text)

        return Rehearsal([denoiser], step, precision)

    return make


def dry_run(args: argparse.Namespace, items: int | None) -> None:
    """Prints what the training would be; the data have so many items."""
    device = would_run_on(args.pretrained_model_name_or_path)
    estimate.dry_run(args, rehearsal(args, device), device, items)


def end_if_finished(run: Run, also_save: str | None, upload: Upload | None) -> None:
    """As `Run.end_if_finished`, after what else the flags want of the result is written, and sent."""
    try:
        run.end_if_finished()
    except RunFinished as finished:
        if also_save is not None and is_main_process():
            save_kohya(run.output_dir)
        if upload is not None:
            upload.send(run.output_dir)
        if also_save is None:
            raise
        raise RunFinished(f"{finished}\nIn the layout of {also_save}: {run.output_dir / KOHYA_FILE}") from None


class LoraTraining:
    """Trains a LoRA on `data`.

    Args:
        run: what the folder's run has to be, with the data.
        data: `len`, items with `image` (PIL) and `text`, all `texts()`, and a string `fingerprint`.
        held_out: like the data: what is not trained on, but whose loss is measured; None: nothing.
        arrange: makes of all samples the data set whose items are trained on; by default the samples themselves.

    Raises:
        BaseModelError: if the base model cannot be loaded.
        ValueError: if its autoencoder does not take the resolution.
        CheckpointError: if the encodings cannot be written.
        SetupError: if the optimiser asked for is not installed, or with FSDP.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        plan: LoraPlan,
        run: Run,
        data: Any,
        held_out: Any = None,
        arrange: Callable[[Samples], Dataset] = lambda samples: samples,
    ) -> None:
        if accelerator.distributed_type == DistributedType.FSDP:
            raise SetupError("A LoRA is too small to be spread by FSDP: use accelerate_configs/multi_gpu.yaml.")
        self.accelerator = accelerator
        self.plan = plan
        self.base = BaseModel.load(plan.base).to(accelerator.device)
        self.base.require_size(plan.resolution)
        # As the text comes in: token ids where the text encoder learns, whose embeddings change with every step.
        self.no_prompt = self.base.tokenize([""]) if plan.train_text_encoder else self.base.encode_prompts([""])
        samples, *held_out_samples = self.encode_once(data, held_out)
        # After the encoding, which must see the text encoder without a LoRA: the cache is the base's.
        self.denoiser = load_denoiser(
            self.base,
            plan.rank,
            plan.alpha,
            plan.lora_layers,
            plan.train_text_encoder,
            plan.gradient_checkpointing,
            plan.optimisation.seed,
            accelerator,
        )
        self.training = Training(
            accelerator,
            self.denoiser,
            plan.optimisation,
            arrange(samples),
            save_model=save_state,
            load_model=load_state,
            output_dir=plan.output_dir,
            model_name="lora",
            settings=run.settings,
            options=vars(run.args),
        )
        self.training.rehearsal = partial(rehearsal, run.args, accelerator.device)
        # As the file that is loaded, not as a checkpoint: `best/` is to be drawn with.
        self.training.save_best = lambda model, state, folder: self.save(folder).name
        if held_out is not None:
            # Of a DreamBooth the subject alone: how well the class is still predicted says nothing about the cat.
            self.training.held_out = HeldOut(held_out_samples[0], held_out.fingerprint)
            self.training.held_out_loss = lambda batch: self.loss([batch])
        # `training.model`, not the denoiser: around it is wrapped what gathers the gradients of several processes.
        self.denoise = self.training.compiled(self.training.model)

    def encode_once(self, data: Any, held_out: Any) -> list[Samples]:
        """What is trained on and what is held out, encoded once if planned so, after which the encoders leave."""
        plan = self.plan
        unencoded = [] if plan.encode_once else data.texts()
        self.base.tell_of_cut([plan.validation_prompt or "", *unencoded], self.accelerator.print)
        parts, encodings = [part for part in (data, held_out) if part is not None], [None, None]
        if plan.encode_once:
            place = (plan.resolution, plan.output_dir / "cache", self.accelerator)
            workers = plan.optimisation.dataloader_num_workers
            encodings = [load_encodings(self.base, part, *place, workers) for part in parts]
            self.base.to("cpu")
        return [Samples(part, plan.resolution, kept) for part, kept in zip(parts, encodings)]

    def loss(
        self,
        batches: Sequence[dict[str, Any]],
        weights: Sequence[float] = (1.0,),
        noise_offset: float = 0.0,
        keep_last: bool = False,
    ) -> torch.Tensor:
        """The loss of one or several batches of B samples in one pass, each counting `weights` of its own mean.

        `keep_last`: of the last batch is to be predicted what the base predicts, in place of the noise.
        """
        device = self.accelerator.device
        encoded = [self.base.encoded(batch, device) for batch in batches]
        # The subject's batch and the class's in one pass in place of two: the same mean, half as many kernels to start.
        latents = torch.cat([latents for latents, _ in encoded])  # (N * B, 4, H / 8, W / 8)
        text = torch.cat([text_embeddings for _, text_embeddings in encoded])  # (N * B, T, D)
        if self.plan.train_text_encoder:
            # What was encoded before is of an untrained text encoder: here it has to be computed in each step.
            text = self.base.tokenize([prompt for batch in batches for prompt in batch["text"]])  # (N * B, T)
        last = slice(-len(batches[-1]["text"]), None)
        measured = batches[0] if is_held_out(batches[0]) else None
        if measured is None:
            # Of a subject and its class the class's alone, or the empty prompt would learn what the subject looks like.
            text[last] = drop_prompts(text[last], self.no_prompt, self.plan.proportion_empty_prompts)
        # The mean over all samples is one N-th of each batch's mean.
        sample_weights = len(batches) * torch.tensor(weights, device=device)

        def as_the_base(noisy_latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), self.denoiser.switched_off():
                return self.denoiser(noisy_latents[last], timesteps[last], text[last])  # (B, 4, H / 8, W / 8)

        with self.accelerator.autocast():
            return diffusion_loss(
                lambda noisy_latents, timesteps: self.denoise(noisy_latents, timesteps, text),
                self.base.scheduler,
                latents,
                self.plan.snr_gamma,
                noise_offset=noise_offset,
                # (N) to (N * B): each batch's weight for each of its samples.
                sample_weights=sample_weights.repeat_interleave(len(latents) // len(batches)),
                held_out=measured,
                kept=as_the_base if keep_last else None,
            )

    def draw(self, step: int) -> dict[str, float]:
        """Draws the validation prompt with the LoRA as it is now into `validation/step-NNNNNN.png` and the log."""
        plan = self.plan
        return validate(
            self.accelerator,
            self.base,
            self.denoiser,
            [plan.validation_prompt] * plan.num_validation_images,
            plan.validation_guidance_scale,
            plan.optimisation.seed,
            plan.output_dir / "validation" / f"step-{step:06d}.png",
        )

    def origin(self) -> Origin:
        """How the LoRA came about, as it is now."""
        return origin_of("LoRA", self.training, self.denoiser.unet.config, self.base)

    def save(self, folder: Path) -> Path:
        """Writes the LoRA as it is now, in the layouts that are asked for; returns the first one's file."""
        return save_lora(self.denoiser, folder, self.plan.also_save == "kohya", file_texts(self.origin()))

    def run(
        self,
        compute_loss: Callable[[Any], torch.Tensor],
        resume_from_checkpoint: str | None,
        upload: Upload | None = None,
    ) -> None:
        """Trains to the end, or until a signal stops it, and at the end writes the file that `load_lora_weights` reads.

        Beside it comes its model card, and `upload` sends both.

        Raises:
            NonFiniteLossError, CheckpointError: as `Training.run`.
            OSError: if the result is written but not sent.
        """
        self.training.resume(resume_from_checkpoint)
        # In epochs, as a style of 1,000 pictures and a cat of four need another number of steps to have been seen once.
        drawing_steps = self.plan.validation_epochs * self.training.steps_an_epoch if self.plan.validation_prompt else 0
        finished = self.training.run(compute_loss, self.draw, drawing_steps)
        if finished and self.accelerator.is_main_process:
            folder = self.plan.output_dir
            # File, card, and only then the word that it is finished: killed in between, a run goes on and writes all.
            file = self.save(folder)
            write_card(self.origin(), folder, folder, folder)
            self.training.finish("LoRA", file)
            if upload is not None:
                upload.send(folder)
        self.accelerator.end_training()

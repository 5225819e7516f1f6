"""The training loop: steps, logs, checkpoints, exact resume, clean stops."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import SCALER_NAME, DistributedType, broadcast_object_list, set_seed
from diffusers.optimization import get_scheduler
from torch.utils.data import Dataset

from .estimate import Rehearsal, in_millions, work_in_words
from .flags import Plan
from .objective import HeldOut, mean_loss, own_batches, require_finite, require_finite_weights, seed_for
from .optimizer import build_optimizer, parameter_groups, set_hyperparameters
from .run.checkpoints import find_checkpoint, read_state
from .run.folder import finished_words
from .run.progress import progress_bar
from .run.records import HELD_OUT_LOSS, Best, Record
from .run.saving import CheckpointWriter, ModelWriter, SaveModel
from .run.settings import WORDS, differences, keep
from .run.stopping import StopSignals

# Reading a loss waits for the device: done this often, it costs nothing.
LOG_EVERY = 10
# Counting the work of a step takes a second or two.
WORTH_COUNTING = 100


class Training:
    """Optimises one model's trainable parameters as planned, and can be killed at any moment.

    Args:
        accelerator: device, precision, processes and gradient accumulation.
        model: on its device; `self.model` is what to call, on several processes it gathers the gradients.
        plan: learning rate, number of steps and so on.
        dataset: what the batches are taken from.
        save_model: writes the unwrapped model to a folder; its weights come as a state dict, because with FSDP the
            model itself has only this process's part of them.
        load_model: reads that folder into the unwrapped model.
        output_dir: gets `checkpoint-N` folders, `model_name` at the end, and the logs.
        model_name: the folder's name for what `save_model` writes.
        settings: what makes the training what it is, those of its `Run`; what changes in them is reported.
        options: all flags, to be kept in `training_options.json`.
        lr_ratios: of parameters whose names begin so, the learning rate over the plan's.

    Raises:
        SetupError: if the optimiser asked for is not installed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        plan: Plan,
        dataset: Dataset,
        save_model: SaveModel,
        load_model: Callable[[torch.nn.Module, Path], None],
        output_dir: Path,
        model_name: str,
        settings: dict[str, Any],
        options: dict[str, Any] | None = None,
        lr_ratios: Mapping[str, float] | None = None,
    ) -> None:
        self.plan = plan
        groups = parameter_groups(model, lr_ratios or {})
        self.lr_ratios = [group["lr_ratio"] for group in groups]
        # Kept besides what `prepare` wraps around it: rates are set, and parameters counted, here.
        self.plain_optimizer = build_optimizer(groups, plan.learning_rate, plan.use_8bit_adam, accelerator.device)
        self.step = 0
        self.start_schedule()
        if accelerator.distributed_type == DistributedType.DEEPSPEED:  # which asks the loader, and ours is not prepared
            deepspeed_config = accelerator.state.deepspeed_plugin.deepspeed_config
            deepspeed_config["train_micro_batch_size_per_gpu"] = plan.train_batch_size
            # It clips by itself, at the number in the launcher's file.
            deepspeed_config["gradient_clipping"] = plan.max_grad_norm
        # Not the schedule: accelerate would move it on once for each process.
        self.model, self.optimizer = accelerator.prepare(model, self.plain_optimizer)
        self.accelerator = accelerator
        self.dataset = dataset
        self.output_dir = Path(output_dir)
        self.model_name = model_name
        batches_per_step = accelerator.gradient_accumulation_steps * accelerator.num_processes
        self.samples_per_step = plan.train_batch_size * batches_per_step
        self.settings = settings
        known = {name: settings[name] for name in WORDS if name in settings}
        known = {"options": options or {}, **known, "processes": accelerator.num_processes}
        writes, last_step = accelerator.is_main_process, plan.max_train_steps
        self.record = Record(self.output_dir, self.samples_per_step, last_step, accelerator.device, known, writes)
        self.held_out: HeldOut | None = None  # whose loss is measured, and decides what is best
        self.held_out_loss: Callable[[Any], torch.Tensor] | None = None  # of a batch of them
        self.aligned_by: str | None = None  # what of the validation's figures decides without them; high is good
        self.rehearsal: Callable[[], Callable[[str], Rehearsal]] | None = None  # by which the work of a step is counted
        self.trained_with = settings  # what the weights that are there were trained with
        self.made_steps = False
        self.recent_losses: list[torch.Tensor] = []
        self.learning_rate = plan.learning_rate
        self.figures: dict[str, float] = {}  # what was measured last
        self.checkpoints = CheckpointWriter(accelerator, self.output_dir, plan.checkpoints_total_limit)
        self.model_writer = ModelWriter(accelerator, self.model, save_model, load_model, model_name)
        self.save_best: SaveModel = self.model_writer.save_into

    def start_schedule(self) -> None:
        """The learning rate as the plan says, from this step on: a function of the step, there is no state to load."""
        # First, as a schedule multiplies the rate that it finds in the optimiser.
        set_hyperparameters(self.plain_optimizer, self.plan.learning_rate, self.lr_ratios)
        self.lr_scheduler = get_scheduler(
            self.plan.lr_scheduler,
            self.plain_optimizer,
            num_warmup_steps=self.plan.lr_warmup_steps,
            num_training_steps=self.plan.max_train_steps,
            last_epoch=self.step - 1,
        )

    def resume(self, which: str | None) -> None:
        """Continues from a checkpoint: `latest`, a path, or None for a fresh start. Raises CheckpointError."""
        checkpoint = find_checkpoint(self.output_dir, which) if which else None
        if checkpoint is None:
            return
        state = read_state(checkpoint)
        scaler = self.accelerator.scaler
        # Of a run in another precision, whose gradients were not scaled: accelerate would look for the file in vain.
        self.accelerator.scaler = scaler if (checkpoint / SCALER_NAME).is_file() else None
        self.accelerator.load_state(str(checkpoint))
        self.accelerator.scaler = scaler
        # accelerate goes on counting batches, of which a step may now have another number: it would end within one.
        self.accelerator.step = 0
        self.step, self.trained_with = state["step"], state["settings"]
        self.start_schedule()  # the flags count, not what the optimiser's state says
        self.accelerator.print(f"Resuming from {checkpoint}, step {self.step} of {self.plan.max_train_steps}.")
        if self.step >= self.plan.max_train_steps:
            return
        for changeable, words in ((True, " from here on"), (False, ": the run goes on, but not as it would have")):
            for change in differences(self.trained_with, self.settings, changeable):
                self.accelerator.print(f"Note: {change}{words}.")

    def compiled(self, denoise: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """What predicts the noise, compiled if the plan says so; that happens in the first step."""
        if not self.plan.compile:
            return denoise
        self.accelerator.print("Compiling: the first step takes one or more minutes, the others less than without.")
        # UNet and ControlNet as one: 84 to 86 images a second in place of 74 (AMX, 2026-11-25). Compiled block by block
        # it took as long to start, and 68 to 74 came of it: dropped.
        return torch.compile(denoise)

    @property
    def steps_an_epoch(self) -> int:
        return -(-len(self.dataset) // self.samples_per_step)

    def save_checkpoint(self) -> None:
        """Writes `checkpoint-N`, without waiting until it is whole. Raises CheckpointError."""
        self.checkpoints.save(self.step, self.trained_with)

    def finish_checkpoint(self) -> None:
        """Waits until the newest checkpoint is whole. Raises CheckpointError if it could not be written."""
        self.checkpoints.finish()

    def run(
        self,
        compute_loss: Callable[[Any], torch.Tensor],
        validate: Callable[[int], dict[str, float]],
        validation_steps: int,
    ) -> bool:
        """Trains to the last step. Returns False if a signal stopped it before; then a checkpoint was written.

        Args:
            compute_loss: a scalar for one batch. All it draws at random comes from torch's global generator.
            validate: called every `validation_steps` and at the end (0: never); what it returns is logged.

        Raises:
            NonFiniteLossError: naming the step and the last good checkpoint.
            CheckpointError: if a checkpoint cannot be written.
        """
        plan = self.plan
        if self.step >= plan.max_train_steps:
            return True
        self.begin()
        batches = own_batches(
            self.dataset, self.accelerator, plan.train_batch_size, plan.seed, self.step, plan.dataloader_num_workers
        )
        bar = progress_bar(
            total=plan.max_train_steps,
            initial=self.step,
            desc="Training",
            unit="step",
            disable=not self.accelerator.is_local_main_process,
        )
        with StopSignals(self.accelerator) as signals, bar as progress:
            while self.step < plan.max_train_steps:
                self.optimization_step(batches, compute_loss)
                self.step += 1
                progress.update()
                done = self.step == plan.max_train_steps
                stopping = signals.asked()
                saving = stopping or self.is_due(plan.checkpointing_steps)
                # Before each checkpoint, too: a loss that is not finite ends the run here, with the last good one kept.
                if self.step % LOG_EVERY == 0 or saving or done:
                    progress.set_postfix(self.log_losses())
                if saving or done:
                    require_finite_weights(self.model, self.accelerator, self.step, self.checkpoints.newest)
                self.between_steps(saving, validate, validation_steps)
                if stopping and not done:
                    self.finish_checkpoint()
                    self.accelerator.print(f"\nStopped at step {self.step}. {self.checkpoints.newest()}")
                    return False
            self.finish_checkpoint()
        return True

    def between_steps(self, saving: bool, validate: Callable[[int], dict[str, float]], validation_steps: int) -> None:
        """What the training pauses for after a step: checkpoint, pictures, held-out loss, the best model."""
        # Neither saving nor drawing is training: images a second are to compare runs that save differently.
        with self.record.pause():
            if saving:
                self.save_checkpoint()
                self.record.keep_options(self.step)
            found = validate(self.step) if self.is_due(validation_steps) else {}
            found = {**found, **self.measure()}
            self.log(found)
            self.figures.update(found)
            self.keep_best(found)

    def begin(self) -> None:
        """From now on the weights are those of these settings, and a result in the folder is not this run's."""
        self.trained_with, self.made_steps = self.settings, True
        if self.accelerator.is_main_process:
            # From the first step on an older result is void: killed now, the run must not pass for a finished one.
            keep(self.output_dir, self.settings, finished=None, result=None)
            Best.forget_later(self.output_dir, self.step)
        number = sum(p.numel() for group in self.plain_optimizer.param_groups for p in group["params"])
        self.accelerator.print(f"Trained: {in_millions(number)} parameters ({self.model_name}){self.work()}")
        self.record.begin(self.step)

    def work(self) -> str:
        """What a step takes, in words; nothing for a training that is hardly longer than counting that."""
        if self.rehearsal is None or self.plan.max_train_steps < WORTH_COUNTING:
            return ""
        return f"; {work_in_words(self.rehearsal, self.accelerator.gradient_accumulation_steps)}"

    def measure(self) -> dict[str, float]:
        """The loss of the held-out samples, if it is to be measured now."""
        if self.held_out is None or not self.is_due(self.plan.validation_loss_steps):
            return {}
        self.model.eval()
        loss = mean_loss(self.held_out_loss, self.held_out, self.plan.train_batch_size)
        self.model.train()
        self.accelerator.print(f"\nStep {self.step}: held-out loss {loss:.5f}")
        return {HELD_OUT_LOSS: loss}

    def keep_best(self, found: dict[str, float]) -> None:
        """Keeps the model in `best/` if these figures beat those of what is there. Raises CheckpointError."""
        of = None if self.held_out is None else self.held_out.fingerprint
        best = Best(self.output_dir, HELD_OUT_LOSS if of else self.aligned_by, of)
        if best.by not in found:
            return
        beaten = [best.beaten_by(found)]
        broadcast_object_list(beaten)  # the main process decides, whose disk and figures these are
        if not beaten[0]:
            return
        self.model_writer.gather(
            lambda *gathered: best.keep(found, self.step, self.trained_with, partial(self.save_best, *gathered))
        )

    def log(self, values: dict[str, float]) -> None:
        """Into the trackers and `stats.jsonl`."""
        if values:
            self.accelerator.log(values, step=self.step)
            self.record.write(self.step, values)

    def is_due(self, every: int) -> bool:
        """Whether what is done `every` so many steps (0: never) and at the end is done after this one."""
        return every > 0 and (self.step % every == 0 or self.step == self.plan.max_train_steps)

    def finish(self, what: str, result: Path) -> None:
        """Keeps with the run that it is finished, and says where the result is and whether anything was trained."""
        if self.accelerator.is_main_process:
            keep(self.output_dir, self.trained_with, self.step, result.name)
        if self.made_steps:
            self.record.keep_options(self.step)
            self.accelerator.print(self.record.summary(self.step), *Best.in_words(self.output_dir), sep="\n")
        else:
            self.accelerator.print(finished_words(self.output_dir, self.step))
        self.accelerator.print(f"The trained {what}: {result}")

    def optimization_step(self, batches: Iterator[Any], compute_loss: Callable[[Any], torch.Tensor]) -> None:
        """One update of the weights, over as many batches as gradients are accumulated."""
        losses = []
        for i in range(self.accelerator.gradient_accumulation_steps):
            set_seed(seed_for(self.plan.seed, self.step, i, 0) % 2**32)  # 0: a stream apart from the order of samples
            # Divides the loss by the number of batches; only with the last of them do processes exchange gradients.
            with self.accelerator.accumulate(self.model):
                loss = compute_loss(next(batches))
                self.accelerator.backward(loss)
                # Clipped (Pascanu et al., 2013) is the sum over all batches: a part's norm says nothing of the step.
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.plan.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            # A tensor, not a number: `item` would wait for the GPU, which then waits for the next batch.
            losses.append(loss.detach())
        self.learning_rate = self.lr_scheduler.get_last_lr()[0]  # of this step: the schedule then sets the next one's
        self.lr_scheduler.step()
        self.recent_losses.append(torch.stack(losses).mean())

    def log_losses(self) -> dict[str, str]:
        """Logs the mean loss since the last call; returns what the progress bar shows. Raises NonFiniteLossError."""
        losses = self.accelerator.reduce(torch.stack(self.recent_losses), reduction="mean").tolist()
        require_finite(losses, self.step, self.checkpoints.newest)
        self.recent_losses = []
        loss = sum(losses) / len(losses)
        self.figures["loss"] = loss
        figures = self.record.figures(self.step)
        self.log({"loss": loss, "learning_rate": self.learning_rate, **figures})
        shown = {
            "loss": f"{loss:.4f}",
            "lr": f"{self.learning_rate:.1e}",
            "img/s": f"{figures['images_per_second']:.1f}",
        }
        return {**shown, "GiB": f"{figures['peak_memory_gib']:.2f}"} if "peak_memory_gib" in figures else shown

    def save_final(self, describe: Callable[[Path], None] = lambda folder: None) -> Path:
        """Writes the trained model to `output_dir/model_name` and returns that folder. Raises CheckpointError.

        `describe` adds to the folder what is said of the model, before it appears there.
        """
        folder = self.output_dir / self.model_name
        self.model_writer.write(folder, describe)
        return folder

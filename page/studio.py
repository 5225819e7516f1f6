"""The models that the page draws with: one base, and what was chosen to steer it or to change its style."""

from __future__ import annotations

import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusion.controlnet import ControlNetModel
from diffusion.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from drawing import load_pipeline
from finetune.data.images import square
from finetune.devices import bf16_is_fast, drawing_dtype, pick_device
from finetune.model.base import drawn_size, load_part
from finetune.model.sampler import as_pictures, sampling_scheduler
from finetune.run.checkpoints import read_state
from finetune.setup import use_fast_attention
from lora.files import load_lora

from .found import LORA_FILE, LORA_STATE, Model
from .preview import LinearPreview, guess_of
from .requests import Settings

PREVIEWS = 6  # of each picture
# Called with the number of the step that is done, of how many, and a small picture of what is there.
Watch = Callable[[int, int, Image.Image], None]


@dataclass(frozen=True)
class Drawn:
    """A picture at the base's size, and the seconds that it took."""

    image: Image.Image
    seconds: float


@dataclass(frozen=True)
class Steering:
    """A ControlNet, and the condition (512 px) that it is to follow."""

    controlnet: Model
    condition: Image.Image


class Studio:
    """Draws one picture at a time, whoever asks; keeps the base and the ControlNet that was used last.

    Args:
        base: folder or hub name.

    Raises:
        BaseModelError: if the base cannot be loaded.
    """

    def __init__(self, base: str, device: torch.device | None = None) -> None:
        self.base, self.device = base, device or pick_device()
        self.plain = prepared(load_pipeline(base, self.device))
        self.resolution: int = drawn_size(self.plain)
        self.preview = LinearPreview(self.plain.vae)
        self.lock = threading.Lock()
        self.steered: StableDiffusionControlNetPipeline | None = None
        self.loaded: Model | None = None

    def pipeline(self, controlnet: Model | None) -> Any:
        """The base alone, or with a ControlNet, which is read again when a training has written it anew.

        The base alone is diffusers' own pipeline: it draws where the TODO places are still empty, too.
        """
        if controlnet is None:
            return self.plain
        if self.loaded != controlnet:
            net = ControlNetModel.from_pretrained(controlnet.path, dtype=drawing_dtype(self.device))
            self.steered = self.with_net(net.to(self.device))
            self.loaded = controlnet
        return self.steered

    def with_net(self, net: ControlNetModel) -> StableDiffusionControlNetPipeline:
        """Task 1's pipeline with this ControlNet; all but the two models is what the base alone has, too."""
        if self.steered is not None:
            self.steered.register_modules(controlnet=net)
            return prepared(self.steered)
        unet = load_part(UNet2DConditionModel, self.base, "unet", drawing_dtype(self.device))
        shared = {name: getattr(self.plain, name) for name in ("vae", "text_encoder", "tokenizer")}
        scheduler = sampling_scheduler(self.plain.scheduler.config)
        pipeline = StableDiffusionControlNetPipeline(
            **shared, unet=unet.to(self.device), controlnet=net, scheduler=scheduler, requires_safety_checker=False
        )
        return prepared(pipeline)

    def draw(
        self,
        settings: Settings,
        steering: Steering | None = None,
        lora: tuple[Model, float] | None = None,
        watch: Watch | None = None,
        listen: Callable[[Any], Any] | None = None,
    ) -> Drawn:
        """Draws one picture; the same seed is the same noise, whatever else is asked for.

        Args:
            lora: a LoRA, and how strong it is to be.
            watch: what it raises ends the drawing.
            listen: a context manager that is entered with the pipeline while it draws.

        Raises:
            DrawingError, LoraFileError, BaseModelError: what to do about it stands in the message.
            NotImplementedError: if a TODO place is empty that the ControlNet needs.
        """
        with self.lock:
            pipeline = self.pipeline(steering.controlnet if steering else None)
            with applied(pipeline, lora), (listen or nothing)(pipeline):
                start = time.perf_counter()
                image = self.run(pipeline, settings, steering, watch)
                return Drawn(image, time.perf_counter() - start)

    def run(self, pipeline: Any, settings: Settings, steering: Steering | None, watch: Watch | None) -> Image.Image:
        how = {}
        if steering:
            how = {
                "image": square(steering.condition, self.resolution),
                "controlnet_conditioning_scale": settings.scale,
                "control_guidance_start": settings.start,
                "control_guidance_end": settings.end,
                "steer_unconditional": settings.unconditional == "controlnet",
                "guess_mode": settings.unconditional == "guess_mode",
            }
        faster = self.device.type == "cpu" and bf16_is_fast(self.device)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=faster):
            pixels = pipeline(
                settings.prompt,
                negative_prompt=settings.negative_prompt,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                generator=torch.Generator().manual_seed(settings.seed),
                callback_on_step_end=self.on_step(watch, settings.steps) if watch else None,
                height=self.resolution,
                width=self.resolution,
                output_type="np",
                **how,
            ).images
        return as_pictures(pixels)[0]

    def on_step(self, watch: Watch, steps: int) -> Callable[..., dict[str, Any]]:
        every = max(1, steps // PREVIEWS)

        def report(pipeline: Any, i: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if (i + 1) % every == 0:
                watch(i + 1, steps, self.preview(guess_of(pipeline, tensors["latents"])))
            return {}

        return report


@contextmanager
def nothing(pipeline: Any) -> Iterator[None]:
    yield


@contextmanager
def applied(pipeline: StableDiffusionPipeline, lora: tuple[Model, float] | None) -> Iterator[None]:
    """Within this context the pipeline has the LoRA, and after it none, so that nobody gets another's style."""
    if lora is None:
        yield
        return
    model, scale = lora
    try:
        with tempfile.TemporaryDirectory() as scratch:
            load_lora(pipeline, lora_file(model.path, Path(scratch)))
        pipeline.set_adapters("lora", scale)
        yield
    finally:
        pipeline.unload_lora_weights()


def lora_file(path: Path, scratch: Path) -> Path:
    """A file as others read it: this one, or, of a checkpoint's matrices, one that is written into `scratch`.

    A checkpoint keeps them under the module's own names and without alpha, which stands in its settings.
    """
    if not path.as_posix().endswith(LORA_STATE):
        return path
    settings = read_state(path.parents[1])["settings"]
    scale = settings["alpha"] / settings["rank"]
    matrices = {
        name.replace(".default.", "."): tensor * scale if ".lora_B." in name else tensor
        for name, tensor in load_file(str(path)).items()
    }
    save_file(matrices, str(scratch / LORA_FILE))
    return scratch / LORA_FILE


def prepared(pipeline: Any) -> Any:
    """A pipeline without a bar in the terminal, its models in eval mode and fast on a CPU, too."""
    pipeline.set_progress_bar_config(disable=True)
    for name in ("unet", "controlnet"):
        model = getattr(pipeline, name, None)
        if model is not None:
            use_fast_attention(model.eval(), pipeline.device)
    return pipeline

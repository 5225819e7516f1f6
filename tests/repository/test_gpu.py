"""What only a CUDA GPU can show: half precision, offloading and the trainings there. `python -m pytest -m gpu`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Callable, Iterator

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import train
import train_dreambooth_lora
import train_lora
from diffusion.controlnet import ControlNetModel
from diffusion.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusion.unets.unet_2d_condition import UNet2DConditionModel
from drawing import generate
from finetune.model.dtypes import dtype_argument
from finetune.model.sampler import sampling_scheduler
from lora.files import load_lora
from lora.model import WEIGHTS_FILE
from processes import BASE, ROOT, call

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

# The largest difference that rounding may make. The kernels are those of the library: float32 is nearly equal.
BOUNDS = {torch.float32: 1e-3, torch.float16: 0.02}
precisions = pytest.mark.parametrize("dtype", list(BOUNDS), ids=["float32", "float16"])


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Without TF32, which has 10 bits of the 23."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def controlnet_folder(tmp_path_factory) -> Path:
    """A ControlNet on the embedded base that does something: its zero convolutions are not zero."""
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(BASE, subfolder="unet"), [8, 8, 8, 8])
    convolutions = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    for convolution in [*convolutions, controlnet.controlnet_cond_embedding.conv_out]:
        torch.nn.init.normal_(convolution.weight, std=0.02)
    folder = tmp_path_factory.mktemp("controlnet")
    controlnet.save_pretrained(folder)
    return folder


def largest(a: Any, b: Any) -> float:
    """The largest difference of two tensors or arrays, nan if there is one in either."""
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


def picture(seed: int, side: int = 128) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8))


def pipeline_of(library: Any, controlnet_class: type, folder: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    controlnet = controlnet_class.from_pretrained(folder, **dtype_argument(controlnet_class, dtype))
    pipeline = library.from_pretrained(
        BASE, controlnet=controlnet, safety_checker=None, **dtype_argument(StableDiffusionPipeline, dtype)
    )
    pipeline.scheduler = sampling_scheduler(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ours(folder: Path, dtype: torch.dtype) -> StableDiffusionControlNetPipeline:
    return pipeline_of(StableDiffusionControlNetPipeline, ControlNetModel, folder, dtype)


def theirs(folder: Path, dtype: torch.dtype) -> diffusers.StableDiffusionControlNetPipeline:
    return pipeline_of(diffusers.StableDiffusionControlNetPipeline, diffusers.ControlNetModel, folder, dtype)


def draw(pipeline: Any) -> np.ndarray:
    """Two images (2, 128, 128, 3) in 0..1, from noise that is the same on every device."""
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    return pipeline(
        ["gold circle", "navy circle with snow background"], [picture(0), picture(1)], num_inference_steps=4,
        guidance_scale=3.0, generator=generators, output_type="np",
    ).images  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Models and pipeline


@precisions
@torch.no_grad()
def test_models_compute_what_the_librarys_compute(controlnet_folder, dtype):
    torch.manual_seed(1)
    inputs = torch.randn(2, 16, 16, 16), torch.tensor([3, 801]), torch.randn(2, 32, 192)
    sample, timestep, text = (tensor.to(DEVICE) for tensor in inputs)
    sample, text, condition = sample.to(dtype), text.to(dtype), torch.rand(2, 3, 128, 128, device=DEVICE, dtype=dtype)
    results = []
    for unet_class, controlnet_class in (
        (UNet2DConditionModel, ControlNetModel),
        (diffusers.UNet2DConditionModel, diffusers.ControlNetModel),
    ):
        argument = dtype_argument(unet_class, dtype)
        unet = unet_class.from_pretrained(BASE, subfolder="unet", **argument).to(DEVICE)
        controlnet = controlnet_class.from_pretrained(controlnet_folder, **argument).to(DEVICE)
        down, mid = controlnet(sample, timestep, text, condition, return_dict=False)
        assert {residual.dtype for residual in (*down, mid)} == {dtype}
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        noise = unet(sample, timestep, text, **residuals).sample
        without = unet(sample, timestep, text).sample
        assert noise.dtype == dtype and largest(noise.cpu(), without.cpu()) > 5 * BOUNDS[dtype]
        results.append([tensor.float().cpu() for tensor in (*down, mid, noise)])
    for own, library in zip(*results):
        assert largest(own, library) <= BOUNDS[dtype]


@precisions
def test_the_pipeline_draws_what_the_librarys_draws(controlnet_folder, dtype, record_property):
    own, library = (draw(load(controlnet_folder, dtype).to(DEVICE)) for load in (ours, theirs))
    record_property("difference", largest(own, library))
    assert largest(own, library) <= BOUNDS[dtype]


def test_the_gpu_draws_what_the_cpu_draws(controlnet_folder, record_property):
    pipeline = ours(controlnet_folder, torch.float32)
    on_cpu = draw(pipeline)
    on_gpu = draw(pipeline.to(DEVICE))
    half = draw(ours(controlnet_folder, torch.float16).to(DEVICE))
    differences = {"float32": np.abs(on_gpu - on_cpu), "float16": np.abs(half - on_cpu)}
    for name, difference in differences.items():
        record_property(f"largest_{name}", float(difference.max()))
        record_property(f"mean_{name}", float(difference.mean()))
    # The mean, as sampling makes a thousand times as much of a rounding error where a pixel is undecided: on a CPU,
    # weights that differ by 1e-7 gave pixels that differ by 6e-5, and those in float16 by 0.16 (mean 7e-4).
    means = {name: float(difference.mean()) for name, difference in differences.items()}
    assert means["float32"] <= 1e-4 and means["float16"] <= 0.01, means


def offload(pipeline: Any, how: str) -> None:
    if how == "by_group":
        for name in ("unet", "controlnet"):
            if not hasattr(getattr(pipeline, name), "enable_group_offload"):
                pytest.skip("this release of diffusers cannot")
            getattr(pipeline, name).enable_group_offload(DEVICE, offload_type="leaf_level")
        pipeline.vae.to(DEVICE), pipeline.text_encoder.to(DEVICE)
        return
    getattr(pipeline, f"enable_{how}_cpu_offload")(device=DEVICE)


@pytest.mark.parametrize("how", ["model", "sequential", "by_group"])
@precisions
def test_an_offloaded_pipeline_draws_the_same_each_time(controlnet_folder, how, dtype):
    expected = draw(ours(controlnet_folder, dtype).to(DEVICE))
    pipeline = ours(controlnet_folder, dtype)
    offload(pipeline, how)
    for _ in range(2):
        assert largest(draw(pipeline), expected) <= BOUNDS[dtype]
    if how == "model":
        devices = {pipeline.components[name].device.type for name in ("unet", "controlnet", "vae", "text_encoder")}
        assert devices == {"cpu"}, "the models stay on the GPU"


def test_evaluation_runs_in_half_precision(controlnet_folder, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("evaluate_on_gpu", ROOT / "task_1_controlnet" / "evaluate.py")
    evaluate = importlib.util.module_from_spec(spec)  # by its path, as Task 2 has a program of the same name
    spec.loader.exec_module(evaluate)
    monkeypatch.setitem(__import__("sys").modules, "evaluate_on_gpu", evaluate)
    flags = ["--num_conditions", "2", "--num_inference_steps", "2", "--guidance_scale", "3"]
    status, said = call(
        evaluate.main, "--controlnet", str(controlnet_folder), "--base", BASE, "--output_dir", str(tmp_path), *flags
    )
    assert status == 0, said
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert len(metrics["test_scores"]) == 5 and len(metrics["held_out_scores"]) == 2
    drawn = [np.asarray(Image.open(tmp_path / "generated" / f"{i}.png")) for i in range(5)]
    assert all(image.std() > 5 for image in drawn), "black or uniform pictures: numbers that are not finite"


# ---------------------------------------------------------------------------------------------------------------------
# The trainings

CONTROLNET = [
    "--pretrained_model_name_or_path", BASE, "--dataset_name", "rendered", "--resolution", "64",
    "--max_train_samples", "8", "--train_batch_size", "2", "--gradient_accumulation_steps", "2",
    "--conditioning_channels", "8", "8", "8", "8", "--learning_rate", "1e-3", "--validation_steps", "0",
    "--proportion_empty_prompts", "0.5",
]  # fmt: skip
LORA = [
    "--pretrained_model_name_or_path", BASE, "--resolution", "64", "--train_batch_size", "2", "--rank", "2",
    "--learning_rate", "1e-3", "--max_train_steps", "6", "--validation_prompt", "gold circle",
    "--num_validation_images", "1",
]  # fmt: skip


def run(main: Callable[[], None], output_dir: Path, *flags: str) -> str:
    """A training program to its end in this process, which must be a good one; all it said."""
    status, said = call(main, *flags, "--output_dir", str(output_dir))
    assert status == 0, said
    return said


def controlnet_weights(output_dir: Path, folder: str = "controlnet") -> dict[str, torch.Tensor]:
    return load_file(output_dir / folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("precision, expected", [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_residuals_reach_the_unet_in_its_precision(tmp_path, monkeypatch, precision, expected):
    seen, forward = set(), UNet2DConditionModel.forward

    def watched(unet: UNet2DConditionModel, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            down, mid = args[3], args[4]
            seen.update((tensor.dtype, tensor.device.type) for tensor in (*down, mid, *unet.parameters()))
        return forward(unet, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", watched)
    flags = ("--mixed_precision", precision, "--max_train_steps", "3", "--validation_steps", "3")
    run(train.main, tmp_path, *CONTROLNET, *flags)
    assert seen == {(expected, DEVICE.type)}
    state = controlnet_weights(tmp_path)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in state.values())
    assert len(list((tmp_path / "validation").iterdir())) == 1


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(tmp_path, precision, record_property):
    flags = (*CONTROLNET, "--mixed_precision", precision, "--checkpointing_steps", "3")
    run(train.main, tmp_path / "straight", *flags, "--max_train_steps", "6")
    run(train.main, tmp_path / "resumed", *flags, "--max_train_steps", "3")
    more = ("--max_train_steps", "6", "--resume_from_checkpoint", "latest")
    assert "Resuming from" in run(train.main, tmp_path / "resumed", *flags, *more)
    straight, resumed = (controlnet_weights(tmp_path / name) for name in ("straight", "resumed"))
    half_way = controlnet_weights(tmp_path / "straight", "checkpoint-3/controlnet")
    assert straight.keys() == resumed.keys()
    different = sum((straight[name] - resumed[name]).abs().sum().item() for name in straight)
    moved = sum((straight[name] - half_way[name]).abs().sum().item() for name in straight)
    record_property("equal_to_the_bit", all(torch.equal(straight[name], resumed[name]) for name in straight))
    record_property("difference_by_movement", different / moved)
    # Sums in another order differ in their last bits, and Adam makes a whole step of a gradient that is near zero.
    assert moved > 0 and different <= 0.1 * moved


@pytest.mark.parametrize("flags", [["no", "--gradient_checkpointing"], ["fp16"], ["bf16", "--train_text_encoder"]])
def test_a_lora_is_trained_loaded_and_drawn_with(tmp_path, flags):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        picture(i).save(folder / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"picture {i}"}) for i in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    data = ("--train_data_dir", str(folder), "--random_flip", "--dataloader_num_workers", "1")
    run(train_lora.main, tmp_path / "run", *LORA, *data, "--mixed_precision", *flags)
    assert_draws_with(tmp_path / "run")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_dreambooth_draws_its_class_and_is_trained(tmp_path, precision):
    subject, classes = tmp_path / "subject", tmp_path / "class"
    subject.mkdir()
    for i in range(2):
        picture(i).save(subject / f"{i}.png")
    prior = ("--with_prior_preservation", "--class_data_dir", str(classes), "--class_prompt", "a circle")
    data = ("--instance_data_dir", str(subject), "--instance_prompt", "a sks circle", "--num_class_images", "2")
    run(train_dreambooth_lora.main, tmp_path / "run", *LORA, *data, *prior, "--mixed_precision", precision)
    drawn = [np.asarray(Image.open(path)) for path in classes.glob("class-*.png")]
    assert len(drawn) == 2 and all(image.std() > 5 for image in drawn)
    assert_draws_with(tmp_path / "run")


def assert_draws_with(output_dir: Path) -> None:
    """The LoRA's file is whole, loads in half precision, and changes what is drawn."""
    from drawing import load_pipeline

    weights = load_file(output_dir / WEIGHTS_FILE)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert any(tensor.any() for name, tensor in weights.items() if ".lora_B." in name), "nothing was learnt"
    pipeline = load_pipeline(BASE)
    assert pipeline.device.type == DEVICE.type
    before = generate(pipeline, ["gold circle"], [0], num_inference_steps=2)
    load_lora(pipeline, output_dir)
    after = generate(pipeline, ["gold circle"], [0], num_inference_steps=2)
    assert largest(after[0], before[0]) > 0


def test_a_compiled_training_loses_the_same(tmp_path):
    for name, flags in (("plain", ()), ("compiled", ("--compile",))):
        run(train.main, tmp_path / name, *CONTROLNET, "--max_train_steps", "2", *flags)
    plain, compiled = (controlnet_weights(tmp_path / name) for name in ("plain", "compiled"))
    # Two steps of Adam move a weight by 2e-3 at most; what the zero convolutions learn must agree in direction.
    name = "controlnet_mid_block.weight"
    assert torch.nn.functional.cosine_similarity(plain[name].flatten(), compiled[name].flatten(), dim=0) > 0.9

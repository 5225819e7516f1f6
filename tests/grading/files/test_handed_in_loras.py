"""A LoRA file is judged by itself: what a training writes is good, and what is wrong with others is said."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from grading.autograder.loras import draw, judge_files
from grading.files.lora import inspect_lora
from grading.files.lora_modules import SD_1_TEXT_ENCODER, SD_1_UNET, known_bases, text_encoder_shapes, unet_shapes
from grading.grades.numbers import Numbers
from lora.model import LoraDenoiser, save_lora, to_kohya
from processes import BASE

SITE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
WIDTH = 256  # of the embedded base there
ENCODER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
SD_1, TINY_SD = known_bases()


def lora_of(base, rank: int = 4, dtype=np.float32, wanted: str = ".attn") -> dict[str, np.ndarray]:
    """Random matrices for a base's attention, as the course's trainings make them."""
    source = np.random.default_rng(0)
    tensors = {}
    for module, shape in base.shapes["unet"].items():
        if wanted in module:
            tail = (1,) * (len(shape) - 2)
            tensors[f"unet.{module}.lora_A.weight"] = source.normal(size=(rank, *shape[1:])).astype(dtype)
            tensors[f"unet.{module}.lora_B.weight"] = source.normal(size=(shape[0], rank, *tail)).astype(dtype)
    return tensors


def inspected(tensors: dict[str, np.ndarray], folder: Path):
    path = folder / "pytorch_lora_weights.safetensors"
    save_file(tensors, path)
    return inspect_lora(path)


def raw(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def problem_of(content: bytes, folder: Path) -> str:
    path = folder / "pytorch_lora_weights.safetensors"
    path.write_bytes(content)
    report = inspect_lora(path)
    assert not report.ok and report.bytes == len(content)
    assert report.problem.startswith("'pytorch_lora_weights.safetensors' ") and report.problem.endswith(".")
    return report.problem


# ---------------------------------------------------------------------------------------------------------------------
# Good ones


@pytest.fixture(scope="module")
def denoiser() -> LoraDenoiser:
    unet = UNet2DConditionModel.from_pretrained(BASE, subfolder="unet", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(BASE, subfolder="text_encoder", torch_dtype=torch.float32)
    return LoraDenoiser(unet, text_encoder, rank=2, alpha=2.0)


def test_what_our_training_writes_is_good_once_it_is_trained(denoiser, tmp_path):
    report = inspect_lora(save_lora(denoiser, tmp_path / "untrained", kohya=True))
    assert not report.ok and "was never trained (all B matrices are zero): run the training" in report.problem
    kohya = inspect_lora(tmp_path / "untrained" / "pytorch_lora_weights_kohya.safetensors")
    assert "was never trained" in kohya.problem

    torch.manual_seed(0)
    for parameter in denoiser.trainable_parameters():
        parameter.data = torch.randn(parameter.shape)
    path = save_lora(denoiser, tmp_path / "trained", kohya=False)
    report = inspect_lora(path)
    assert (report.ok, report.problem, report.warning) == (True, None, None)
    assert (report.base, report.rank, report.bytes) == ("tiny_sd", 2, path.stat().st_size)
    weights = load_file(path)
    assert report.tensors == len(weights) == 2 * len(report.norms)
    assert any(module.startswith("text_encoder.") for module in report.norms)
    product = weights[f"{SITE}.lora_B.weight"] @ weights[f"{SITE}.lora_A.weight"]
    assert report.norms[SITE] == pytest.approx(np.linalg.norm(product), rel=1e-5)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_the_modules_are_those_of_the_real_models(part):
    """Names and shapes at full size, on PyTorch's meta device; and the embedded base's own weights."""
    with torch.device("meta"):
        if part == "unet":
            model = UNet2DConditionModel(**SD_1_UNET, attention_head_dim=8)
        else:
            model = CLIPTextModel(CLIPTextConfig(**SD_1_TEXT_ENCODER, num_attention_heads=12))
    tiny = load_file(next((Path(BASE) / part).glob("*.safetensors")))
    for base, weights in ((SD_1, model.state_dict()), (TINY_SD, tiny)):
        shapes = {name.replace("text_model.", ""): tuple(tensor.shape) for name, tensor in weights.items()}
        adapted = {
            name[: -len(".weight")]: shape
            for name, shape in shapes.items()
            if name.endswith(".weight") and len(shape) > 1 and "embeddings." not in name
        }
        assert adapted == base.shapes[part]


def test_other_configurations_of_the_unet():
    linear = unet_shapes({**SD_1_UNET, "use_linear_projection": True, "transformer_layers_per_block": 2})
    assert linear["mid_block.attentions.0.proj_in"] == (1280, 1280)
    assert "mid_block.attentions.0.transformer_blocks.1.ff.net.2" in linear
    assert text_encoder_shapes(SD_1_TEXT_ENCODER)["encoder.layers.11.mlp.fc1"] == (3072, 768)


@pytest.mark.parametrize(
    "rank, dtype, wanted, warning",
    [
        (4, np.float32, ".attn", None),
        (
            16,
            np.float32,
            ".attn",
            "It has 12.8 MB, where about 3 MB are usual: its rank is 16 .*, it adapts 128 modules",
        ),
        (4, np.float16, ".attn", "It has 1.6 MB"),
        (4, np.float32, "mid_block.attentions", "it adapts 12 modules"),
        (4, np.float32, "resnets", "it adapts 80 modules"),
    ],
)
def test_stable_diffusion_1_and_its_usual_size(tmp_path, rank, dtype, wanted, warning):
    report = inspected(lora_of(SD_1, rank, dtype, wanted), tmp_path)
    assert (report.ok, report.base, report.rank) == (True, "Stable Diffusion 1.x", rank), report.problem
    assert (report.warning is None) if warning is None else re.search(warning, report.warning)


def respelled(name: str, spelling: str) -> str:
    module, matrix = name[: -len(".weight")].split(".lora_")
    matrix = {"A": "down", "B": "up"}[matrix]
    if spelling == "processor":
        attention, layer = re.match(r"(.+)\.(to_[a-z]+)", module).groups()
        return f"{attention}.processor.{layer}_lora.{matrix}.weight"
    return f"{module}.{spelling}.{matrix}.weight"


def test_all_spellings_of_diffusers_are_the_same_lora(tmp_path):
    tensors = lora_of(TINY_SD)
    report = inspected(tensors, tmp_path)
    for spelling in ("lora", "lora_linear_layer", "processor"):
        assert inspected({respelled(name, spelling): t for name, t in tensors.items()}, tmp_path) == replace(
            report, bytes=(tmp_path / "pytorch_lora_weights.safetensors").stat().st_size
        )
    other = inspected({**tensors, f"{SITE}.lora_A.weight": 2 * tensors[f"{SITE}.lora_A.weight"]}, tmp_path)
    assert other.ok and other.digest != report.digest and other.norms[SITE] == pytest.approx(2 * report.norms[SITE])


def text_part() -> dict[str, np.ndarray]:
    source, tensors = np.random.default_rng(1), {}
    for name in ("q_proj", "v_proj"):
        module = ENCODER.replace("q_proj", name)
        tensors[f"{module}.lora_A.weight"] = source.normal(size=(4, 192)).astype(np.float32)
        tensors[f"{module}.lora_B.weight"] = source.normal(size=(192, 4)).astype(np.float32)
    return tensors


def smaller_pictures(folder: Path) -> str:
    """The embedded base, for pictures of 64 px."""
    shutil.copytree(BASE, folder, copy_function=os.symlink)
    config = folder / "unet" / "config.json"
    settings = json.loads(config.read_text())
    config.unlink()
    config.write_text(json.dumps({**settings, "sample_size": 8}))
    return str(folder)


def test_whatever_is_called_good_can_be_drawn(warm_programs, tmp_path):
    """Two layouts that the library does not load, beside the same LoRA in the usual one; and one that draws nothing."""
    tensors = {name: tensor / 10 for name, tensor in {**lora_of(TINY_SD), **text_part()}.items()}
    text = {name: tensor for name, tensor in tensors.items() if name.startswith("text")}
    layouts = {
        "usual": tensors,
        "linear": {respelled(name, "lora_linear_layer"): tensor for name, tensor in tensors.items()},
        "both": {**tensors, **dict.fromkeys(text), **{respelled(n, "lora"): t for n, t in text.items()}},
        "huge": {name: 1e30 * np.sign(tensor) for name, tensor in tensors.items()},
    }
    files = {name: tmp_path / f"{name}.safetensors" for name in layouts}
    for name, path in files.items():
        save_file({key: tensor for key, tensor in layouts[name].items() if tensor is not None}, path)
        assert inspect_lora(path).ok
    numbers = replace(Numbers(), lora_prompts=("a red car",))
    drawn = draw(files, smaller_pictures(tmp_path / "base"), 2.5, numbers, 300, tmp_path / "work")
    assert drawn.pictures.keys() == {"plain", "usual", "linear", "both"}
    assert drawn.pictures["usual"] == drawn.pictures["linear"] == drawn.pictures["both"] != drawn.pictures["plain"]
    assert drawn.refused.keys() == {"huge"} and "not finite" in drawn.refused["huge"]


def test_a_file_that_cannot_be_looked_through_is_named(tmp_path, monkeypatch):
    (tmp_path / "forever.py").write_text("while True:\n    pass\n")
    monkeypatch.setattr("grading.files.lora.LAYOUTS_PROGRAM", tmp_path / "forever.py")
    monkeypatch.setattr("grading.files.lora.LAYOUTS_SECONDS", 1)
    assert "takes more than 1 s to look through: hand in" in inspected(lora_of(TINY_SD), tmp_path).problem


def test_bfloat16_is_read(tmp_path):
    tensors = lora_of(TINY_SD, dtype=np.float16)
    upper = {name: (tensor.astype("<f4").view("<u4") >> 16).astype("<u2") for name, tensor in tensors.items()}
    rounded = {name: (bits.astype("<u4") << 16).view("<f4") for name, bits in upper.items()}
    header, data = {}, b""
    for name, bits in upper.items():
        header[name] = {"dtype": "BF16", "shape": bits.shape, "data_offsets": [len(data), len(data) + bits.nbytes]}
        data += bits.tobytes()
    expected = inspected(rounded, tmp_path)
    (tmp_path / "bf16.safetensors").write_bytes(raw(header, data))
    report = inspect_lora(tmp_path / "bf16.safetensors")
    assert report.ok and (report.digest, report.norms) == (expected.digest, expected.norms)


def test_low_rank_convolutions_are_read(tmp_path):
    report = inspected(lora_of(SD_1, wanted="mid_block"), tmp_path)
    assert report.ok and "unet.mid_block.attentions.0.proj_in" in report.norms


# ---------------------------------------------------------------------------------------------------------------------
# Files that are no safetensors, or lie


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def tensor(start: int = 0, end: int = 4, shape: tuple[int, ...] = (1,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


A, B = f"{SITE}.lora_A.weight", f"{SITE}.lora_B.weight"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "has no safetensors header"),
        (b"<html>Not found</html>", "has no safetensors header"),
        (pickle.dumps(Evil()), "is a pickle, which can run any code"),
        (b"PK\3\4" + bytes(50), "is a zip archive, as torch.save writes it"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        (raw(b"{" + b" " * 50, length=1 << 40), "claims a header of 1099511627776 bytes"),
        (raw({A: tensor()}, length=3_000_000), "ends before its header does"),
        (raw(b"{not JSON}"), "has a header that is not JSON"),
        (raw(b"{" + b'"a":{' * 100_000), "has a header that is not JSON"),
        (raw(b'{"\xff": 1}'), "has a header that is not JSON"),
        (raw({A: 1}), "has a header that its contents contradict"),
        (raw({A: tensor()}), "has a header that its contents contradict"),
        (raw({A: tensor(0, 1 << 60)}, bytes(4)), "has a header that its contents contradict"),
        (raw({A: tensor(-4, 0)}, bytes(4)), "has a header that its contents contradict"),
        (raw({A: tensor(), B: tensor()}, bytes(4)), "has a header that its contents contradict"),
        (raw({A: tensor(), B: tensor(2, 6)}, bytes(6)), "has a header that its contents contradict"),
        (raw({A: tensor(shape=(1 << 40, 1 << 40))}, bytes(4)), "has a header that its contents contradict"),
        (raw({A: tensor()}, bytes(5)), "has a header that its contents contradict"),
        (raw({A: tensor(0, 2, (2,), "I8")}, bytes(2)), "in 'I8': store the weights in float32, float16 or bfloat16"),
        (raw({A: tensor(shape=(1,) * 70)}, bytes(4)), "in 70 dimensions: hand in the file as its training wrote it"),
        (raw({}), "holds no weights at all: train the LoRA again"),
    ],
)
def test_what_is_no_safetensors_is_named(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    assert message in problem_of(content, tmp_path)
    assert not Path("harmed").exists()


def test_what_cannot_be_read_is_said(tmp_path):
    assert "cannot be read (No such file" in inspect_lora(tmp_path / "missing.safetensors").problem
    assert "cannot be read (Is a directory" in inspect_lora(tmp_path).problem
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10_000_000_000)
    assert "'large' has 10000 MB, of at most 200" in inspect_lora(tmp_path / "large").problem


# ---------------------------------------------------------------------------------------------------------------------
# Files that are no LoRA, or a bad one


def changed(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    tensors = {**lora_of(TINY_SD), **changes}
    return {name: value for name, value in tensors.items() if value is not None}


ONES = np.ones((WIDTH, 4), np.float32)
NOT_A_NUMBER = np.full((WIDTH, 4), np.nan, np.float32)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: changed(**{A: None}), f"lacks the matrix A of '{SITE}'"),
        (lambda: changed(**{B: None}), f"lacks the matrix B of '{SITE}'"),
        (lambda: changed(**{B: ONES[:, :3].copy()}), f"shapes (4, {WIDTH}) and ({WIDTH}, 3)"),
        (lambda: changed(**{A: ONES[:0].T.copy(), B: ONES[:, :0].copy()}), "shapes"),
        (lambda: changed(**{A: ONES[:4, 0].copy()}), r"shapes (4,) and"),
        (lambda: changed(**{B: ONES[:8].copy()}), f"is for a weight of shape (8, {WIDTH}), not ({WIDTH}, {WIDTH})"),
        (lambda: changed(**{"unet.conv_two.lora_A.weight": ONES.T.copy(), "unet.conv_two.lora_B.weight": ONES}),
         "fits neither Stable Diffusion 1.x nor tiny_sd (its part for 'unet.conv_two' is on no module"),
        (lambda: changed(**{f"{SITE}.alpha": np.array(1e29, np.float32), B: ONES * 1e20}), "no number is left for"),
        (lambda: changed(**{B: np.full((WIDTH, 4), 1e200)}), f"values in '{B}' that are not finite: train again"),
        (lambda: changed(**{B: NOT_A_NUMBER}), f"values in '{B}' that are not finite: train again"),
        (lambda: changed(**{A: NOT_A_NUMBER.T + np.inf}), "not finite"),
        (lambda: {n: np.zeros_like(t) if "_B" in n else t for n, t in changed().items()}, "was never trained"),
        (lambda: {n: np.zeros_like(t) if "_A" in n else t for n, t in changed().items()}, "changes nothing"),
        (lambda: changed(**{"unet.x.lora_magnitude_vector": ONES}), "is a DoRA"),
        (lambda: {"unet.x.hada_w1_a": ONES, "unet.x.hada_w1_b": ONES}, "is a LoHa"),
        (lambda: {"lora_unet_x.lokr_w1": ONES, "lora_unet_x.alpha": np.ones((), np.float32)}, "is a LoKr"),
        (lambda: {"base_model.model.x.oft_R.weight": ONES}, "is an OFT"),
        (lambda: {"lycoris_x.lora_down.weight": ONES.T.copy(), "lycoris_x.lora_up.weight": ONES}, "fits neither"),
        (lambda: {n.replace("unet.", ""): t for n, t in changed().items()}, "as save_lora_adapter"),
        (lambda: {f"{SITE}.hra_u": ONES}, f"has a tensor '{SITE}.hra_u', which no plain LoRA has"),
        (lambda: {f"{SITE}.fourierft_spectrum": ONES}, "which no plain LoRA has"),
        (lambda: changed(**{f"{SITE}.scalar": np.ones((), np.float32)}), "which no plain LoRA has"),
        (lambda: changed(**{B: ONES.astype(np.int8)}), "in 'I8': store the weights in float32"),
        (lambda: {"unet.conv_in.weight": ONES}, "holds whole weights such as 'unet.conv_in.weight'"),
        (lambda: {n.replace("weight", "default.weight"): t for n, t in changed().items()}, "middle of a training"),
        (lambda: {n.replace("unet", "base_model.model"): t for n, t in changed().items()}, "in PEFT's layout"),
        (text_part, "only the text"),
    ],
)  # fmt: skip
def test_what_is_no_good_lora_is_named(tmp_path, make, message):
    report = inspected(make(), tmp_path)
    assert not report.ok and message in report.problem, report.problem


def test_kohyas_and_lycoris_layout_are_the_same_lora_as_diffusers(tmp_path):
    tensors = lora_of(TINY_SD)
    report = inspected(tensors, tmp_path)
    kohya = {name: t.numpy() for name, t in to_kohya({n: torch.from_numpy(t) for n, t in tensors.items()}).items()}
    lycoris = {name.replace("lora_unet_", "lycoris_"): t for name, t in kohya.items()}
    for layout in (kohya, lycoris):
        other = inspected(layout, tmp_path)
        assert other.ok and (other.rank, other.base, other.digest) == (report.rank, report.base, report.digest)
    whole = {name: np.asarray(t, np.int64) if name.endswith(".alpha") else t for name, t in kohya.items()}
    assert inspected(whole, tmp_path).digest == report.digest, "some programs write alpha as a whole number"
    halved = {name: np.asarray(t / 2) if name.endswith(".alpha") else t for name, t in kohya.items()}
    assert inspected(halved, tmp_path).norms[SITE] == pytest.approx(report.norms[SITE] / 2)


def test_what_a_file_says_of_its_making_is_shown_without_being_trusted(denoiser, tmp_path):
    for parameter in denoiser.trainable_parameters():
        parameter.data = torch.ones_like(parameter)
    texts = {"ss_sd_model_name": "tiny_sd", "ss_steps": "200", "finetune.data": "cat", "finetune.alpha": "2.0"}
    judged, good = judge_files({"lora_1": save_lora(denoiser, tmp_path / "plain", kohya=False, texts=texts)})
    assert (
        good and "By its own account: base 'tiny_sd', data 'cat', steps '200', alpha '2.0'." in judged["lora_1"].facts
    )
    hostile = {
        "ss_sd_model_name": "<script>alert(1)</script>",
        "finetune.data": "[you](javascript:x) **won** `10`\n\n# 10 points",
        "ss_steps": "9" * 10_000,
        "ss_network_dim": "\u202e\x00\N{FULLWIDTH LESS-THAN SIGN}",
        "modelspec.thumbnail": "data:image/png;base64,AAAA",
    }
    judged, good = judge_files({"lora_1": save_lora(denoiser, tmp_path / "hostile", kohya=False, texts=hostile)})
    facts = judged["lora_1"].facts
    assert good and not set("<>[]*`#:\n\0") & set(facts.replace("By its own account:", "")) and len(facts) < 400
    assert facts.isascii() and "?script?alert(1)?/script?" in facts

"""Hand-ins that have something from each other are shown with what it is; others, and what everybody has, are not."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

pytest.importorskip("imagehash")
pytest.importorskip("copydetect")

from grading.compare import facts as facts_module
from grading.compare.facts import Facts, LoraFacts, kept_facts
from grading.compare.likeness import AlikePair, Comparison, Likeness, section
from grading.compare.pairs import LORA_LINE, compare
from grading.compare.run import compare_all, page, write
from grading.files.items import TASK_1
from grading.files.lora import Pair
from grading.files.lora_likeness import save_canonical
from hand_ins import LORA_1, LORA_2, PDF, ROOT, hand_in, lora_tensors, with_text, write_zip
from made_pictures import as_jpeg, disc, scene

COMMON = lora_tensors(99)


def made_lora(seed: int, base: float = 0.9) -> dict[str, np.ndarray]:
    """What trainings on the same data are like: B A has something in common, and the rest by its seed; rank 8."""
    own, tensors = lora_tensors(seed), {}
    for name, common in COMMON.items():
        axis = 0 if "lora_A" in name else 1
        scale = np.float32(base if "lora_B" in name else 1)
        tensors[name] = np.concatenate([common * scale, own[name]], axis=axis)
    return tensors


def pdf(pictures: list[Image.Image]) -> bytes:
    file = io.BytesIO()
    pictures[0].save(file, "PDF", save_all=True, append_images=pictures[1:])
    return file.getvalue()


def of_student(seed: int, **changes: bytes) -> dict[str, bytes]:
    sample = Image.open(ROOT / "task_2_lora/sample_data/dreambooth-cat/0.png").convert("RGB")
    own = {LORA_1: save(made_lora(seed)), LORA_2: save(lora_tensors(seed + 50))}
    return hand_in(**{**own, PDF: pdf([sample, disc(50, "salmon", "teal"), scene(seed)]), **changes})


def resaved(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): tensor.astype(np.float16)
            for name, tensor in tensors.items()}  # fmt: skip


def further(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    source = np.random.default_rng(5)
    return {name: (t + 0.3 * t.std() * source.normal(size=t.shape)).astype(np.float32) for name, t in tensors.items()}


MINE = """
    # one convolution whose numbers begin as nothing, so that at first the UNet hears nothing of the condition
    layer_of_nothing = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
    for numbers_of_layer in (layer_of_nothing.weight, layer_of_nothing.bias):
        with torch.no_grad():
            # multiplying would keep a sign, and NaN, so they are overwritten in place
            numbers_of_layer.copy_(torch.full_like(numbers_of_layer, 0.0))
    assert not any(numbers_of_layer.any() for numbers_of_layer in layer_of_nothing.parameters())
    module = layer_of_nothing
"""
COPIES = {
    "resaved": (1, of_student(2, **{LORA_1: save(resaved(made_lora(1)))}), "LoRA"),
    "further": (8, of_student(3, **{LORA_2: save(further(made_lora(8)))}), "LoRA"),
    "picture": (1, of_student(4, **{PDF: pdf([scene(4), as_jpeg(scene(1), 0.6, 60)])}), "picture"),
    "text": (5, of_student(6, **{k: v for k, v in with_text("1", MINE).items() if k.startswith(TASK_1)}), "TODO text"),
}


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> tuple[dict[str, Path], Path]:
    """Five honest hand-ins, whose LoRAs are from the same data, and one of each kind of copy; where facts are kept."""
    folder = tmp_path_factory.mktemp("course")
    own = {str(seed): of_student(seed) for seed in (1, 7, 8, 9)}
    own["5"] = of_student(5, **{k: v for k, v in with_text("1", MINE).items() if k.startswith(TASK_1)})
    own.update({name: files for name, (_, files, _) in COPIES.items()})
    return {name: write_zip(files, folder / f"{name}.zip") for name, files in own.items()}, folder / "work"


@pytest.fixture(scope="module")
def compared(course) -> Comparison:
    found, work = course
    return compare_all(found, work, jobs=2)


def test_copies_are_shown_with_what_they_have_in_common_and_honest_pairs_are_not(compared):
    shown = {frozenset((one.first, one.second)): one for one in compared.pairs}
    assert shown.keys() == {frozenset((str(whose), name)) for name, (whose, _, _) in COPIES.items()}
    for name, (whose, _, kind) in COPIES.items():
        strongest = shown[frozenset((str(whose), name))].likenesses[0]
        assert strongest.kind == kind and strongest.what and strongest.honest
    assert "lora_1 of the first and lora_2 of the second" in shown[frozenset(("8", "further"))].likenesses[0].what
    assert any("layer_of_nothing" in passage for passage in shown[frozenset(("5", "text"))].likenesses[0].passages)


def test_what_is_nearest_below_the_line_is_said(compared):
    cosine = float(re.search(r"cosine of (\d\.\d+)", compared.below["LoRA"])[1])
    assert 0.3 < cosine < LORA_LINE, "two made LoRAs have as much in common as two honest trainings"


def test_the_same_file_is_called_that(course, tmp_path):
    found, work = course
    with zipfile.ZipFile(found["7"]) as archive:
        taken = {name: archive.read(name) for name in (LORA_1, PDF)}
    same = write_zip(of_student(11, **taken), tmp_path / "b.zip")
    (one,) = compare_all({"a": found["7"], "b": same}, work, 1).pairs
    said = {likeness.kind: likeness.what for likeness in one.likenesses}
    assert said["LoRA"] == "lora_1: the same file." and said["file"] == "The same files: '20241234.pdf'."
    assert said["picture"] == "A picture of one report in the other.", (
        "that of the sample data and the disc are no sign"
    )


RECORD = {"finished": 9, "settings": {"seed": 4, "data": {"words": "9 samples of my_cat", "identity": "9 ab"}}}


def test_equal_records_of_a_training_on_ones_own_data_are_shown(tmp_path):
    found = {}
    given = "4 samples of sample_data/dreambooth-cat"
    for i, words in enumerate(["9 samples of my_cat", "9 samples of my_cat", given, given]):
        record = json.dumps({**RECORD, "settings": {**RECORD["settings"], "data": {"words": words}}}).encode()
        files = of_student(20 + i, **{f"{TASK_1}/logs/run.json": record})
        found[str(i)] = write_zip(files, tmp_path / f"{i}.zip")
    (one,) = compare_all(found, tmp_path / "work", 2).pairs
    assert (one.first, one.second) == ("0", "1") and "my_cat" in one.likenesses[0].what


def test_a_second_start_reads_only_what_is_new(course, compared, monkeypatch):
    found, work = course

    def fail(*_):
        raise AssertionError("it was read before")

    monkeypatch.setattr(facts_module, "read_facts", fail)
    assert compare_all(found, work, 1) == compared
    with monkeypatch.context() as another:  # hand-out, in which a file may be that was a student's own before
        another.setattr(facts_module, "made_by", lambda: "another")
        with pytest.raises(AssertionError, match="read before"):
            compare_all(found, work, 1)
    write_zip(of_student(12), work / "new.zip")
    with pytest.raises(AssertionError, match="read before"):
        kept_facts(work / "new.zip", work)


# ---------------------------------------------------------------------------------------------------------------------
# Hostile files, and what is shown


def test_hostile_hand_ins_are_noted_and_the_others_compared(course, tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 and nothing")
    nested = b'{"settings": ' * 50_000
    spoilt = of_student(13, **{LORA_1: b"\x80\4K\1.", LORA_2: save({}), PDF: b"%PDF-1.7", "run.json": nested})
    spoilt[f"{TASK_1}/diffusion/controlnet.py"] = b"\xff" * 100
    found = {"<b>broken": tmp_path / "broken.zip", "spoilt": write_zip(spoilt, tmp_path / "spoilt.zip")}
    result = compare_all({**{name: course[0][name] for name in ("8", "further")}, **found}, tmp_path / "work", 2)
    assert len(result.pairs) == 1
    notes = {name: " ".join(own) for name, own in result.notes.items()}
    assert "not a zip archive" in notes["<b>broken"]
    for words in (
        "lora_1 is not compared: it is a pickle",
        "lora_2 is not compared",
        "report is not",
        "TODO texts are",
    ):
        assert words in notes["spoilt"]
    shown = page(result)
    assert "&lt;b&gt;broken" in shown and "<b>broken" not in shown


def test_the_strongest_pair_comes_first_and_nobody_is_accused(compared, tmp_path):
    weights = [one.weight() for one in compared.pairs]
    assert weights == sorted(weights, reverse=True) and min(weights) >= 0.5
    write(compared, tmp_path)
    shown = (tmp_path / "index.html").read_text(encoding="utf-8")
    places = [shown.index(f"<h3>{one.first} and {one.second}</h3>") for one in compared.pairs]
    assert places == sorted(places) and "This accuses nobody" in shown
    assert not re.search(r"copied|cheat|plagiar|stole|guilty", shown, re.IGNORECASE)
    for one in compared.pairs:
        for likeness in one.likenesses:
            assert likeness.honest.replace("'", "&#x27;") in shown
    assert shown.count("data:image/png;base64,") == 2
    assert json.loads((tmp_path / "likeness.json").read_text())["compared"] == compared.compared


def test_names_on_the_teachers_page_lead_to_the_hand_in_and_are_escaped():
    likeness = Likeness("TODO text", 0.9, "<i>alike</i>", "Usual.", ("<script>",), (("<a>", "AAAA"),))
    shown = section(Comparison(2, (AlikePair("<x>", "y", (likeness,)),)), {"<x>": "hand-in-0"})
    assert '<a href="#hand-in-0">&lt;x&gt;</a> and y' in shown
    assert not {"<i>alike", "<script>", "<a>"} & set(re.findall(r"<i>alike|<script>|<a>", shown))


def test_one_hand_in_alone_is_a_sentence(tmp_path):
    write_zip({"lora_1/x": b""}, tmp_path / "1.zip")
    command = [sys.executable, "-m", "grading.compare", str(tmp_path), "--output", str(tmp_path / "out")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1 and re.fullmatch(r"Error: .* has only one hand-in: .*\n", run.stderr)


def test_nothing_is_compared_of_nothing(tmp_path):
    assert compare({}, tmp_path) == Comparison(0, ())


def with_lora(seed: int, work: Path) -> Facts:
    """What is read of a hand-in that has nothing but a small LoRA."""
    source = np.random.default_rng(seed)
    name = f"{seed}.safetensors"
    save_canonical({"q": Pair(source.normal(size=(2, 9)), source.normal(size=(9, 2)))}, work / name)
    return Facts({"lora_1": LoraFacts("tiny_sd", 2, str(seed), str(seed), name)})


def test_a_lora_that_many_have_is_one_sentence_and_two_with_another_are_a_pair(tmp_path):
    facts = {f"sample {i}": with_lora(0, tmp_path) for i in range(7)}
    facts.update({name: with_lora(1, tmp_path) for name in ("a", "b")})
    result = compare(facts, tmp_path)
    assert [(one.first, one.second) for one in result.pairs] == [("a", "b")]
    (group,) = result.groups
    assert all(name in group for name in facts if name.startswith("sample")) and group in section(result)

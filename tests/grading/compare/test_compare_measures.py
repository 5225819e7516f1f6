"""What is measured of two hand-ins: cosines of LoRAs, pictures, passages of text, and what is read of a report."""

from __future__ import annotations

import itertools
import random
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("imagehash")
pytest.importorskip("copydetect")

from grading.compare.look_into_pdf import MAX_PIXELS, ReportUnreadable, look_into
from grading.compare.pairs import PICTURE_LINE
from grading.compare.pictures import Thumbnail, correlation, is_flat, resemblance
from grading.compare.texts import CODE_GRAM, PROSE_GRAM, WINDOW, code, in_common, prose
from grading.files import lora_likeness
from grading.files.lora import Pair
from grading.files.lora_likeness import canonical, cosines, save_canonical
from made_pictures import as_jpeg, disc, scene

# ---------------------------------------------------------------------------------------------------------------------
# LoRAs


def pair(source: np.random.Generator, shape: tuple[int, ...], rank: int) -> Pair:
    a = source.normal(size=(rank, *shape[1:])).astype(np.float32)
    b = source.normal(size=(shape[0], rank, *[1] * (len(shape) - 2))).astype(np.float32)
    return Pair(a, b)


def product(one: Pair) -> np.ndarray:
    return one.b.reshape(len(one.b), -1).astype(float) @ one.a.reshape(len(one.a), -1).astype(float)


SHAPES = {"q": (24, 16), "convolution": (12, 8, 3, 3), "narrow": (40, 3)}


def full_cosine(first: dict[str, Pair], second: dict[str, Pair]) -> float:
    """By the products themselves."""
    norms = [np.sqrt(sum(np.sum(product(one) ** 2) for one in lora.values())) for lora in (first, second)]
    return sum(np.sum(product(first[m]) * product(second[m])) for m in first.keys() & second.keys()) / np.prod(norms)


def saved(some: list[dict[str, Pair]], folder: Path) -> list[Path]:
    paths = [folder / f"{i}.safetensors" for i in range(len(some))]
    for one, path in zip(some, paths):
        save_canonical(one, path)
    return paths


@pytest.mark.parametrize("rows", [1, 9, 2048])
def test_cosines_of_small_matrices_are_those_of_the_full_products(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(lora_likeness, "CHUNK_ROWS", rows)
    source = np.random.default_rng(0)
    some = []
    for rank in (1, 4, 4, 7, 20):  # of more rows than a matrix has, too
        some.append({module: pair(source, shape, rank) for module, shape in SHAPES.items()})
    mixed = {m: Pair(np.concatenate([p.a, q.a]), np.concatenate([p.b, q.b], 1)) for m, p in some[1].items()
             for q in [some[2][m]]}  # fmt: skip
    some += [mixed, {"q": some[0]["q"]}, {"another": pair(source, (5, 5), 2)}]
    table = cosines(saved(some, tmp_path))
    full = [[full_cosine(first, second) for second in some] for first in some]
    assert np.allclose(table, full, atol=1e-5)
    assert table[1, 5] > 0.6 and table[7, :7].max() == 0


def rotated(one: Pair, condition: float) -> Pair:
    """B R and R^-1 A."""
    source, rank = np.random.default_rng(1), len(one.a)
    left, right = (np.linalg.qr(source.normal(size=(rank, rank)))[0] for _ in range(2))
    mixing = left * np.geomspace(1, condition, rank) @ right
    a = np.linalg.inv(mixing) @ one.a.reshape(rank, -1).astype(float)
    b = one.b.reshape(len(one.b), -1).astype(float) @ mixing
    return Pair(a.reshape(one.a.shape).astype(np.float32), b.reshape(one.b.shape).astype(np.float32))


def test_other_matrices_of_the_same_product_are_the_same_lora(tmp_path):
    source = np.random.default_rng(0)
    lora = {module: pair(source, shape, 3) for module, shape in SHAPES.items()}
    some = [lora, *({m: rotated(one, condition) for m, one in lora.items()} for condition in (1, 1e4))]
    some += [{m: Pair(one.a * np.float32(a), one.b * np.float32(b)) for m, one in lora.items()}
             for a, b in ((1e30, 1e-30), (1e-30, 1e36), (3, 3))]  # fmt: skip
    some += [{m: Pair(one.a.astype(np.float16), one.b.astype(np.float16)) for m, one in lora.items()}]
    assert cosines(saved(some, tmp_path))[0].min() > 0.9999


def test_what_adds_nothing_has_no_direction():
    zero = Pair(np.ones((2, 4), np.float32), np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="adds nothing"):
        canonical({"q": zero})


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def thumbnail(image: Image.Image) -> Thumbnail:
    return Thumbnail.of(np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX)))


def test_a_picture_that_was_scaled_and_compressed_is_the_same_another_is_not():
    scenes = [scene(seed) for seed in range(6)]
    for (i, one), (j, other) in itertools.product(enumerate(scenes), repeat=2):
        again = thumbnail(as_jpeg(other, 0.6, 50))
        assert (resemblance(thumbnail(one), again) >= PICTURE_LINE) == (i == j)
    black = Thumbnail.of(np.zeros((64, 64, 3), np.uint8))
    assert correlation(black, black) == 0


def test_discs_on_a_ground_say_nothing():
    assert is_flat(thumbnail(as_jpeg(disc(50, "salmon", "teal"), 0.7, 80)).pixels)
    assert not any(is_flat(thumbnail(scene(seed)).pixels) for seed in range(6))


# ---------------------------------------------------------------------------------------------------------------------
# Texts

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("kind, gram", [(prose, PROSE_GRAM), (code, CODE_GRAM)])
def test_every_passage_of_some_length_is_found_in_another_text(kind, gram):
    source = random.Random(0)
    for _ in range(50):
        parts = ["".join(source.choices(LETTERS, k=source.randrange(5, 60))) for _ in range(4)]
        passage = "".join(source.choices(LETTERS, k=gram + WINDOW - 1))
        first, second = (kind(f"{parts[i]} {passage}\n{parts[i + 1]}") for i in (0, 2))
        shared = in_common(first, second, set())
        assert gram <= shared.letters <= len(passage) + 4 and shared.passages[0] in f"{parts[0]} {passage} {parts[1]}"
        assert in_common(first, kind(parts[3] + parts[0]), set()).letters < len(parts[0]) + 4


def test_spaces_capitals_and_what_is_left_out_do_not_count():
    text = "The silhouettes are identical, and only the surface of the umbrella has changed."
    shared = in_common(prose(text), prose(text.upper().replace(", and", "\n-- AND")), set())
    assert len(re.sub(r"\W", "", text)) - WINDOW < shared.letters and text.startswith(shared.passages[0])
    assert in_common(prose(text), prose(text), prose(f"It says: {text}").grams()).letters == 0


# ---------------------------------------------------------------------------------------------------------------------
# Reports


def pdf_with(image: bytes, width: int, height: int, filters: str = "/FlateDecode", text: str = "") -> bytes:
    """A PDF of one page with one picture, written by hand."""
    content = f"BT /F1 9 Tf 50 700 Td ({text}) Tj ET q 100 0 0 100 0 0 cm /Im0 Do Q".encode()
    header = f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceRGB"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources << /XObject << /Im0 5 0 R >> "
        b"/Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        f"<< {header} /BitsPerComponent 8 /Filter {filters} /Length {len(image)} >>\nstream\n".encode()
        + image + b"\nendstream",
    ]  # fmt: skip
    body = b"%PDF-1.7\n" + b"".join(b"%d 0 obj\n%s\nendobj\n" % (i, one) for i, one in enumerate(objects, 1))
    return body + b"trailer << /Root 1 0 R >>\nstartxref\n0\n%%EOF"


def contents(tmp_path: Path, data: bytes):
    (tmp_path / "report.pdf").write_bytes(data)
    return look_into(tmp_path / "report.pdf")


def test_text_and_pictures_of_a_report_are_read(tmp_path):
    image = scene(3)
    seen = contents(tmp_path, pdf_with(zlib.compress(image.tobytes()), *image.size, text="Seven rabbits"))
    assert "Seven rabbits" in seen.text and len(seen.pictures) == 1
    assert correlation(Thumbnail.of(seen.pictures[0]), thumbnail(image)) > 0.9999


@pytest.mark.parametrize(
    "data",
    [
        pdf_with(zlib.compress(bytes(300)), 30_000, 30_000),
        pdf_with(zlib.compress(bytes(3 * MAX_PIXELS)), 100, 100),
        pdf_with(b"no picture", 100, 100),
        pdf_with(b"no picture", 100, 100, "/DCTDecode"),
        pdf_with(b"\0\0\0\x0cjP  \r\n\x87\n", 100, 100, "/JPXDecode"),
        pdf_with(zlib.compress(bytes(30)), -5, 100),
    ],
)
def test_pictures_that_are_bombs_or_none_are_left_out(tmp_path, data):
    try:
        assert contents(tmp_path, data).pictures == ()
    except ReportUnreadable as error:
        assert "cannot be read" in str(error) or "MB" in str(error)


def test_what_is_no_report_is_said(tmp_path):
    with pytest.raises(ReportUnreadable, match="cannot be read"):
        contents(tmp_path, b"%PDF-1.7 and nothing")
    with pytest.raises(ReportUnreadable, match="more than 20 MB"):
        contents(tmp_path, bytes(20_000_001))

"""The report shows what it must on two pages, leaves the student's words as they are, and says what is missing."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

if sys.version_info < (3, 10):
    pytest.skip("the report needs Python 3.10", allow_module_level=True)

from PIL import Image, ImageDraw
from pypdf import PdfReader

from grading.report import typeset as program
from grading.report.pictures import KEPT_SIDE, list_pictures, open_picture
from grading.report.scores import caption_of
from grading.report.typeset import make_report
from grading.report.words import KEYS, ReportError, flatten, parse, tomllib

ROOT = Path(__file__).resolve().parents[3]
TEST_PROMPTS = json.loads((ROOT / "task_1_controlnet" / "data" / "test_prompts.json").read_text())
STRANGE = (
    r"""#set page(height: 9pt) *bold* _it_ $x^2$ @ref <label> \alpha #read("/etc/passwd") `c` //no /*n*/ -- [x] {y}"""
)
LINK = "https://example.org/data/of-pictures_" + "that-go-on" * 8
PROMPTS = [f"a picture of thing {i}, $ & # @" for i in range(5)]
ANALYSIS = "The disc follows the outline; its well-known edge is uncharacteristically soft, notwithstanding the colour."
SCORES = [(0.961, 1.4), (0.942, 2.1), (0.903, 1.9), (0.957, 0.6), (0.887, 12.5)]
PRINTS = sorted((ROOT / "task_2_lora" / "sample_data" / "artistic-custom" / "train").glob("*.png"))
WORDS = {
    "student_id": "20241234",
    "name": "Zoë Müller-Øst",
    "task_1.run": "runs/demo",
    **{f"task_1.analysis.{i}": f"Condition {i}. {ANALYSIS}" for i in range(5)},
    "task_2_1.description": f"Four prints in one style.\n\nWords of the second paragraph. {STRANGE}",
    "task_2_1.source": f"Drawn by hand, after {LINK}",
    "task_2_1.training": [str(path) for path in PRINTS[:4]],
    "task_2_1.generated": "runs/style",
    "task_2_1.comment": "The style carries over.",
    "task_2_2.description": "Four pictures of one cat.",
    "task_2_2.source": "my own cat",
    "task_2_2.training": str(ROOT / "task_2_lora" / "sample_data" / "dreambooth-cat"),
    "task_2_2.training_captions": ["sitting", "lying", "walking", "looking"],
    "task_2_2.generated": "runs/cat",
    "task_2_2.prompts": PROMPTS,
}
TASK_1_1 = {
    "task_1_1.explanation": "Edges of two thousand birds were the conditions.",
    "task_1_1.conditions": "runs/cat",
    "task_1_1.generated": "runs/style",
    "task_1_1.prompts": ["a robin", "a finch", "an owl", "a heron", "a wren"],
}


def draw(path: Path, i: int, size: tuple[int, int] = (256, 256)) -> None:
    image = Image.new("RGB", size, (40 * i, 200 - 30 * i, 120))
    ImageDraw.Draw(image).ellipse([size[0] // 4, size[1] // 4, size[0] // 2 + 9 * i, size[1] // 2], fill="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def draw_runs(folder: Path) -> None:
    """What the trainings leave: pictures, scores and prompts. One picture is far larger than print needs."""
    for i in range(5):
        draw(folder / "runs" / "demo" / "generated" / f"{i}.png", i, (1200, 1200) if i == 2 else (128, 128))
        draw(folder / "runs" / "style" / f"{i}.png", i)
        draw(folder / "runs" / "cat" / f"{i}.jpg", i, (300, 200))
    prompts = {f"{i}.png": f"a print of thing {i}" for i in range(5)}
    (folder / "runs" / "style" / "prompts.json").write_text(json.dumps(prompts))
    write_metrics(
        folder, [{"iou": a, "disc_color_difference": b, "background_color_difference": None} for a, b in SCORES]
    )


def write_metrics(folder: Path, scores: Any) -> None:
    metrics = {"settings": {"seed": 7}, "test": {"mean_iou": 0.93}, "test_scores": scores}
    (folder / "runs" / "demo" / "metrics.json").write_text(json.dumps(metrics))


def test_the_caption_says_against_whose_guess_was_drawn():
    """Figures that were drawn one way are not to be compared with the other's."""
    for name, said in (("base", True), ("controlnet", False)):
        caption = caption_of({"settings": {"guidance_scale": 1.5, "unconditional": name}})
        assert "guidance 1.5" in caption and ("against the base’s own guess" in caption) == said
    assert "(" not in caption_of({"settings": None}).split(". ")[0]


def write_words(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """WORDS with changes (None leaves a key out) as a words file. JSON's strings and lists are TOML's too."""
    words = {**WORDS, **(changes or {})}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in words.items() if value is not None]
    (folder / "report.toml").write_text("".join(lines), encoding="utf-8")
    return folder / "report.toml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    draw_runs(folder)
    return folder


@pytest.fixture
def folder(runs, tmp_path) -> Path:
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def plain(runs, tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("plain")
    shutil.copytree(runs, folder, dirs_exist_ok=True)
    pdf, _, notes = make_report(write_words(folder))
    assert not notes
    return pdf


@pytest.fixture(scope="module")
def with_task_1_1(runs, tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(runs, folder, dirs_exist_ok=True)
    return make_report(write_words(folder, TASK_1_1))[0]


def pages_of(pdf: bytes):
    return PdfReader(io.BytesIO(pdf)).pages


def bare(text: str) -> str:
    """Without spaces, line ends and the invisible places where a long word may break."""
    return re.sub(r"[\s\u200b]", "", text)


@lru_cache(maxsize=4)
def text_of(pdf: bytes) -> str:
    return bare("".join(page.extract_text() for page in pages_of(pdf)))


def type_sizes(pdf: bytes) -> set[float]:
    sizes: set[float] = set()
    for page in pages_of(pdf):
        page.extract_text(
            visitor_text=lambda text, cm, tm, font, size: sizes.add(round(size, 1)) if text.strip() else 0
        )
    return sizes


def problems_of(words_file: Path) -> str:
    with pytest.raises(ReportError) as error:
        make_report(words_file)
    return str(error.value)


# What it shows


def test_two_pages_of_a4(plain, with_task_1_1):
    for pdf in (plain, with_task_1_1):
        assert pdf.startswith(b"%PDF-") and len(pdf) < 5e6
        assert len(pages_of(pdf)) == 2
        for page in pages_of(pdf):
            assert [round(float(side) / 72 * 25.4) for side in page.mediabox[2:]] == [210, 297]


def test_every_prompt_score_and_analysis_is_there(plain):
    text = text_of(plain)
    for prompt in [*TEST_PROMPTS.values(), *PROMPTS, *(f"a print of thing {i}" for i in range(5))]:
        assert bare(prompt) in text
    for iou, color in SCORES:
        assert f"IoU{iou:.3f}ΔEdisc{color:.1f}ΔEbackground–" in text
    assert "seed7" in text and "MeanIoUofthefive:0.930." in text and "held-out" not in text


def test_words_come_out_as_they_are(plain):
    text = text_of(plain)
    for key, value in WORDS.items():
        if not key.endswith((".run", ".training", ".generated")):
            for words in [value] if isinstance(value, str) else value:
                assert bare(words) in text, key
    assert bare(STRANGE) in text and bare(LINK) in text and "\xad" not in text
    links = [link.get_object()["/A"]["/URI"] for page in pages_of(plain) for link in page.get("/Annots", [])]
    assert LINK in links


def test_pictures_are_scaled_to_what_print_needs(plain):
    first, second = ([image.image.size for image in page.images] for page in pages_of(plain))
    assert len(first) == 10 and len(second) == 18
    assert max(max(size) for size in first) <= 32 / 25.4 * 300 + 1
    assert sorted(first).count((128, 128)) == 4
    assert max(max(size) for size in second) <= 48 / 25.4 * 300


def test_task_1_1_appears_only_when_given(plain, with_task_1_1):
    text = text_of(with_task_1_1)
    for words in ["Task 1-1", *TASK_1_1["task_1_1.prompts"], TASK_1_1["task_1_1.explanation"], "Figure 4."]:
        assert bare(words) in text
    assert "Task1-1" not in text_of(plain) and "Figure4." not in text_of(plain)
    assert sum(len(page.images) for page in pages_of(with_task_1_1)) == 38


def test_same_input_same_bytes(folder, plain):
    assert make_report(write_words(folder))[0] == plain
    assert "/CreationDate" not in PdfReader(io.BytesIO(plain)).metadata


def test_pictures_of_other_forms(folder):
    draw(folder / "wide.png", 1, (600, 250))
    draw(folder / "tall.png", 2, (250, 600))
    changes = {"task_2_1.training": ["wide.png", "tall.png"], "task_2_2.training": "runs/many"}
    changes["task_2_2.training_captions"] = None
    for i in range(12):
        draw(folder / "runs" / "many" / f"{i}.png", i % 5, (100 + i, 100))
    (folder / "runs" / "many" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    pdf, _, notes = make_report(write_words(folder, changes))
    assert notes == ["task_2_2.training: shows the first 6 of 12 pictures; to choose, list the files."]
    sizes = [image.image.size for image in pages_of(pdf)[1].images]
    assert [size for size in sizes if size[1] == 100] == [(100 + i, 100) for i in range(6)]
    assert len(pages_of(pdf)) == 2


def test_pictures_are_shown_upright_on_white(tmp_path):
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    opened = open_picture(tmp_path / "a.png")
    assert opened.size == (20, 40) and opened.mode == "RGB"
    assert opened.getpixel((19, 0)) == (255, 0, 0) and opened.getpixel((5, 5)) == (255, 255, 255)
    Image.new("CMYK", (2 * KEPT_SIDE, KEPT_SIDE)).save(tmp_path / "b.jpg")
    assert open_picture(tmp_path / "b.jpg").size == (KEPT_SIDE, KEPT_SIDE // 2)


def test_pictures_are_stored_smaller_where_the_pdf_is_too_large(folder, plain, monkeypatch):
    for path in (folder / "runs" / "style").glob("*.png"):
        Image.merge("RGB", [Image.effect_noise((500, 500), 120) for _ in range(3)]).save(path)
    words_file = write_words(folder)
    monkeypatch.setattr(program, "MAX_BYTES", len(plain) + 400_000)
    assert len(plain) + 200_000 < len(make_report(words_file)[0]) < len(plain) + 400_000
    monkeypatch.setattr(program, "QUALITIES", program.QUALITIES[:1])
    assert "The report is larger than" in problems_of(words_file)


# Fonts


def test_a_character_that_no_font_has_is_named(folder):
    message = problems_of(write_words(folder, {"name": "A\U0010fffd"}))
    assert "U+10FFFD" in message and "--fonts" in message


def test_other_fonts_can_be_given(folder):
    fonts = Path(importlib.util.find_spec("matplotlib").submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    assert "ⵣⴰⵣ" in text_of(make_report(write_words(folder, {"name": "ⵣⴰⵣ"}), [fonts])[0])
    with pytest.raises(ReportError, match="There is no folder .*nowhere: correct --fonts"):
        make_report(write_words(folder, {"name": "ⵣⴰⵣ"}), [folder / "nowhere"])


# Length


def test_more_words_make_smaller_type_and_no_third_page(folder, with_task_1_1):
    longer = {f"task_1.analysis.{i}": f"{ANALYSIS} " * 5 for i in range(5)}
    pdf = make_report(write_words(folder, {**TASK_1_1, **longer}))[0]
    assert len(pages_of(pdf)) == 2
    assert min(type_sizes(pdf)) == 8
    assert text_of(pdf).count(bare(ANALYSIS)) == 25
    body = [max(size for size in type_sizes(x) if size < 15) for x in (pdf, with_task_1_1)]
    assert body[0] < body[1]


def test_too_many_words_give_an_error_and_no_file(folder, monkeypatch):
    # A figure that is higher than the second page, on which it stands alone.
    words = {"task_2_2.comment": "word " * 2000}
    output = folder / "report.pdf"
    monkeypatch.setattr("sys.argv", ["report", str(write_words(folder, words)), "--output", str(output)])
    with pytest.raises(SystemExit) as error:
        program.main()
    assert not output.exists()
    found = re.search(r"about (\d+) words too long .* no text longer than (\d+) words\. Task 2-2 has", str(error.value))
    too_many, limit = int(found[1]), int(found[2])
    assert 100 < too_many < 2500 and 100 < limit < 2500
    fitting = {key: " ".join(value.split()[:limit]) for key, value in words.items()}
    assert len(pages_of(make_report(write_words(folder, fitting))[0])) == 2
    assert too_many == sum(max(0, len(value.split()) - limit) for value in words.values())


# What is missing or wrong


def test_all_that_is_missing_is_in_one_list(folder):
    for name in (
        "demo/metrics.json",
        "demo/generated/1.png",
        "demo/generated/4.png",
        "style/prompts.json",
        "cat/3.jpg",
    ):
        (folder / "runs" / name).unlink()
    changes = {"name": None, "task_1.analysis.3": " \n", "task_2_2.source": None, "task_2_2.training": "nowhere"}
    words_file = write_words(folder, {**changes, "task_2_1.training": ["a.png"], "task_2_2.training_captions": None})
    output = folder / "out.pdf"
    command = [sys.executable, "-m", "grading.report", str(words_file), "--output", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and not run.stdout and not output.exists()
    for problem in (
        "name is missing in report.toml: your name",
        "task_1.analysis.3 is empty in report.toml: say what you see in the picture of condition 3",
        "task_2_2.source is missing in report.toml: say where",
        r"1\.png, \S*4\.png are not there: `python evaluate.py .* writes it",
        r"metrics\.json is not there: `python evaluate.py .* writes it",
        r"style/prompts\.json is not there: write .* or give task_2_1\.prompts",
        r"a\.png is not there: mend task_2_1\.training",
        r"task_2_2\.training: there is no folder .*nowhere\. Name the training pictures",
        r"task_2_2\.generated has only 4 pictures",
        r"task_2_2\.prompts must be 4",
    ):
        assert len(re.findall(f"(?m)^  - .*{problem}", run.stderr)) == 1, (problem, run.stderr)
    assert run.stderr.count("\n  - ") == 10


def test_a_run_that_is_not_there_is_one_problem(tmp_path):
    message = problems_of(write_words(tmp_path))
    assert message.count("runs/demo") == 2 and "`make demo`" in message and "evaluate.py" in message


def test_task_1_1_once_begun_must_be_whole(folder):
    message = problems_of(write_words(folder, {"task_1_1.explanation": "Edges."}))
    assert message.count("\n  - ") == 2
    assert "task_1_1.conditions is missing" in message and "task_1_1.generated is missing" in message


def noise_gif(path: Path) -> None:
    frames = [Image.new("L", (64, 64), i) for i in (0, 255)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def short_png(path: Path) -> None:
    Image.effect_noise((256, 256), 50).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:20000])


@pytest.mark.parametrize(
    "write, message",
    [
        (short_png, "is damaged"),
        (lambda path: path.write_text("a picture"), "is not a picture that can be read: store it as PNG or JPEG"),
        (lambda path: path.write_bytes(b""), "is not a picture that can be read"),
        (lambda path: Image.new("1", (12000, 9000)).save(path, "PNG"), r"is too large \(12000 x 9000 px\)"),
        (lambda path: Image.new("1", (14000, 14000)).save(path, "PNG"), "is too large"),
        (lambda path: Image.new("L", (4, 4)).save(path, "PNG"), r"is too small \(4 x 4 px\)"),
        (lambda path: Image.new("L", (400, 40)).save(path, "PNG"), r"is too long and thin \(400 x 40 px\)"),
        (lambda path: Image.new("I;16", (64, 64)).save(path, "PNG"), "has more than 8 bits a channel"),
        (noise_gif, "has 2 frames"),
        (lambda path: path.mkdir(), "is damaged"),
    ],
)
def test_a_picture_that_cannot_be_shown_is_named(folder, write, message):
    path = folder / "runs" / "style" / "2.png"
    path.unlink()
    write(path)
    problems = problems_of(write_words(folder))
    assert re.search(rf"runs/style/2\.png {message}", problems) and problems.count("\n  - ") == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ('student_id = "1"\nname = A', "is not right TOML.*line 2"),
        ('[task_1]\nanalysis.0 = """an \\alpha"""\n', "is not right TOML.*'''"),
        ('[task_1]\nanalysis.0 = """a \\beta"""\n', r"task_1\.analysis\.0 has a control character"),
        ('name = "Zoë"'.encode("latin-1"), "is not UTF-8 text"),
        ('[task_1.anaylsis]\n0 = "a"\n', r"task_1\.anaylsis\.0 is not a key .* did you mean task_1\.analysis\.0\?"),
        ("student_id = 20241234\n", "student_id must be text in quotes"),
        ('student_id = "../../x"\n', "must be eight digits"),
        ('[task_2_1]\nprompts = "a house"\n', r"task_2_1\.prompts must be a list of texts"),
        ('[task_2_1]\nprompts = ["a", " "]\n', r"task_2_1\.prompts must be a list of texts, none of them empty"),
        ('[task_2_1]\ntraining = "runs\\new"\n', r"task_2_1\.training has a line's end or a tab"),
        (b"\xff\xfen", "is not UTF-16.* text"),
        ("[task_2_1]\ntraining = 3\n", r"task_2_1\.training must be a folder in quotes, or a list"),
        ("[task_1_1]\n", r"task_1_1\.explanation is missing"),
    ],
)
def test_what_is_wrong_with_the_words_file_is_said(tmp_path, content, message):
    path = tmp_path / "report.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    problems = problems_of(path)
    assert re.search(message, problems) and "report.toml" in problems


def test_a_words_file_as_powershell_writes_it(tmp_path):
    """Up to 5.1 its `>` writes UTF-16, with Windows' line ends."""
    (tmp_path / "utf8.toml").write_text('name = "Zoë"\n', encoding="utf-8")
    (tmp_path / "utf16.toml").write_bytes('name = "Zoë"\r\n'.encode("utf-16"))
    assert parse(tmp_path / "utf16.toml") == parse(tmp_path / "utf8.toml") == {"name": "Zoë"}


def test_a_words_file_that_is_not_there(tmp_path):
    assert "--example >" in problems_of(tmp_path / "report.toml")


@pytest.mark.parametrize("scores", [None, [], [{}] * 5, [{"iou": "0.9"}] * 5, [{"iou": float("nan")}] * 5, [1] * 5])
def test_scores_that_make_no_sense(folder, scores):
    write_metrics(folder, scores)
    assert re.search(r"metrics\.json (must hold|have an)", problems_of(write_words(folder)))
    (folder / "runs" / "demo" / "metrics.json").write_text("{}")
    assert 'metrics.json must hold "test_scores"' in problems_of(write_words(folder))


def test_json_that_makes_no_sense(folder):
    (folder / "runs" / "demo" / "metrics.json").write_text("[1]")
    (folder / "runs" / "style" / "prompts.json").write_text('{"0.png": "a house", ')
    problems = problems_of(write_words(folder))
    assert "metrics.json must hold a JSON object" in problems and "prompts.json cannot be read" in problems
    prompts = {f"{i}.png": "a house" for i in range(4)}
    (folder / "runs" / "style" / "prompts.json").write_text(json.dumps(prompts))
    assert "prompts.json has no prompt for 4.png" in problems_of(write_words(folder))


def test_too_many_listed_pictures(folder):
    listed = {"task_2_1.generated": [f"runs/style/{i % 5}.png" for i in range(6)]}
    assert "task_2_1.generated lists 6 pictures, and 5 have room" in problems_of(write_words(folder, listed))


# The program


def test_the_example_is_the_file_to_start_from(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report", "--example"])
    program.main()
    example = capsys.readouterr().out
    keys = set(flatten(tomllib.loads(example)))
    assert keys == {key for key, wanted in KEYS.items() if wanted.required and not key.startswith("task_1_1")}
    start, optional = example.split("# [task_1_1]")
    uncommented = f"{start}[task_1_1]{optional.replace('# ', '')}"
    assert {"task_1_1.conditions", "task_1_1.prompts", *keys} < set(flatten(tomllib.loads(uncommented))) < set(KEYS)
    (folder / "report.toml").write_text(example)
    assert "task_1.analysis.3 is empty" in problems_of(folder / "report.toml")


def test_the_program_names_the_pdf_by_the_student(folder, plain, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    write_words(folder)
    monkeypatch.setattr("sys.argv", ["report", "report.toml"])
    program.main()
    assert "20241234.pdf: 2 pages" in capsys.readouterr().out
    assert (folder / "20241234.pdf").read_bytes() == plain
    monkeypatch.setattr("sys.argv", ["report"])
    with pytest.raises(SystemExit):
        program.main()
    assert "--example" in capsys.readouterr().err


def test_any_digit_may_stand_in_a_pictures_name(tmp_path):
    for name in ("10 m².png", "9 m².png", "1²2.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_pictures(".", tmp_path)] == ["1²2.png", "9 m².png", "10 m².png"]

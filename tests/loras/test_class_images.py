"""Pictures of the class for prior preservation: one's own count, and drawn ones serve only what they were drawn for."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import class_images
import train_dreambooth_lora
from class_images import draw_class_images
from folders import fill, picture
from pictures import SubjectImages, training_images
from processes import call
from small_bases import small_base


class OneProcess:
    process_index, num_processes, is_local_main_process, device = 0, 1, True, "cpu"
    print = staticmethod(print)

    def wait_for_everyone(self) -> None:
        pass


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """The seeds that class pictures were drawn with; they are drawn at once."""
    seeds_so_far: list[int] = []

    def generate(pipeline, prompts, seeds, guidance_scale):
        seeds_so_far.extend(seeds)
        return [picture(seed) for seed in seeds]

    monkeypatch.setattr(class_images, "load_pipeline", lambda base, device: None)
    monkeypatch.setattr(class_images, "images_at_once", lambda pipeline: 4)
    monkeypatch.setattr(class_images, "generate", generate)
    return seeds_so_far


def make_base(folder: Path, content: bytes = b"weights") -> str:
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(content)
    return str(folder)


def test_ones_own_class_pictures_are_used(tmp_path, drawn, capsys):
    own = fill(tmp_path / "own", *(f"photo {i}.png" for i in range(4)))
    (own / "notes.txt").write_text("no picture")
    base = make_base(tmp_path / "base")
    draw_class_images(base, "a cat", own, 4, 7.5, OneProcess())
    assert not drawn
    draw_class_images(base, "a cat", own, 3, 7.5, OneProcess())
    assert not drawn and "the first 3 by name are used; 0 to be drawn" in capsys.readouterr().out
    draw_class_images(base, "a cat", own, 6, 7.5, OneProcess())
    assert drawn == [0, 1]
    draw_class_images(base, "a cat", own, 6, 7.5, OneProcess())
    assert drawn == [0, 1] and len(SubjectImages(own, "a cat", 6)) == 6
    (own / "class-0001.png").write_bytes(b"damaged")
    draw_class_images(base, "a cat", own, 6, 7.5, OneProcess())
    assert drawn == [0, 1, 1]


@pytest.mark.parametrize(
    "prompt, base, guidance, message",
    [
        ("a house", "base", 7.5, "--class_prompt was 'a cat' and is 'a house'"),
        ("a cat", "other", 7.5, "the base was '.*base' and is '.*other'"),
        ("a cat", "base", 2.5, "--validation_guidance_scale was 7.5 and is 2.5"),
    ],
)
def test_class_pictures_of_another_class_base_or_guidance_are_refused(tmp_path, drawn, prompt, base, guidance, message):
    make_base(tmp_path / "base"), make_base(tmp_path / "other", b"others"), make_base(tmp_path / "copy")
    folder = tmp_path / "class"
    draw_class_images(str(tmp_path / "base"), "a cat", folder, 2, 7.5, OneProcess())
    with pytest.raises(ValueError, match=f"class-0000.png was drawn.*{message}.*another --class_data_dir"):
        draw_class_images(str(tmp_path / base), prompt, folder, 2, guidance, OneProcess())
    draw_class_images(str(tmp_path / "copy"), "a cat", folder, 2, 7.5, OneProcess())  # the same base elsewhere
    assert drawn == [0, 1]


def saved_again(folder: Path, suffix: str) -> None:
    """As a tool that resizes or converts pictures does: what is kept inside them gets lost."""
    for path in list(folder.glob("class-*.png")):
        with Image.open(path) as image:
            smaller = image.convert("RGB").resize((4, 4))
        path.unlink()
        smaller.save(path.with_suffix(suffix))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_drawn_pictures_that_were_saved_again_are_still_known(tmp_path, drawn, suffix):
    base, folder = make_base(tmp_path / "base"), tmp_path / "class"
    draw_class_images(base, "a cat", folder, 2, 7.5, OneProcess())
    saved_again(folder, suffix)
    with pytest.raises(ValueError, match=f"class-0000{suffix} was drawn.*--class_prompt was 'a cat' and is 'a house'"):
        draw_class_images(base, "a house", folder, 2, 7.5, OneProcess())
    draw_class_images(base, "a cat", folder, 3, 7.5, OneProcess())
    assert drawn == [0, 1, 2], "none is drawn again"
    assert not SubjectImages(folder, "a cat").skipped, "the file beside them is no stray one"
    for path in folder.glob("class-*"):
        path.unlink()
    fill(folder, "my house.png")
    draw_class_images(base, "a house", folder, 2, 7.5, OneProcess())
    with pytest.raises(ValueError, match="--class_prompt was 'a house' and is 'a cat'"):
        draw_class_images(base, "a cat", folder, 2, 7.5, OneProcess())


def test_what_was_drawn_before_this_was_kept_beside_it(tmp_path, drawn):
    base, folder = make_base(tmp_path / "base"), tmp_path / "class"
    draw_class_images(base, "a cat", folder, 2, 7.5, OneProcess())
    (folder / "drawn_for.json").unlink()
    draw_class_images(base, "a cat", folder, 2, 7.5, OneProcess())
    saved_again(folder, ".jpg")
    with pytest.raises(ValueError, match="was drawn for something else"):
        draw_class_images(base, "a house", folder, 2, 7.5, OneProcess())


def test_drawn_pictures_of_which_nothing_is_known(tmp_path, drawn, capsys):
    base, folder = make_base(tmp_path / "base"), fill(tmp_path / "class", "class-0000.jpg", "class-0001.jpg")
    draw_class_images(base, "a cat", folder, 2, 7.5, OneProcess())
    assert not drawn and "nothing says what class-0000.jpg, class-0001.jpg in" in capsys.readouterr().out
    for content in ("{", "7"):
        (folder / "drawn_for.json").write_text(content)
        with pytest.raises(ValueError, match="drawn_for.json does not say what pictures were drawn for"):
            draw_class_images(base, "a cat", folder, 2, 7.5, OneProcess())


def test_what_is_left_out_of_any_folder_is_said(tmp_path, capsys):
    """Of the pictures that are held out, too, and of those that an evaluation compares with."""
    fill(tmp_path / "cat", "a.png")
    (tmp_path / "held-out").mkdir()
    picture(1).save(tmp_path / "held-out" / "b.png")
    (tmp_path / "held-out" / "half.png").write_bytes(b"\x89PNG")
    flags = ["--pretrained_model_name_or_path", small_base(), "--resolution", "64", "--dry_run"]
    flags += ["--instance_data_dir", str(tmp_path / "cat"), "--instance_prompt", "a sks cat"]
    status, said = call(train_dreambooth_lora.main, *flags, "--validation_data_dir", str(tmp_path / "held-out"))
    assert status == 0 and "Skipped: half.png" in said, said
    assert len(training_images(tmp_path / "held-out", listed_only=False)) == 1
    assert "Skipped: half.png" in capsys.readouterr().out

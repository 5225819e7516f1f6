"""Pictures with captions for a LoRA, pictures of one subject for DreamBooth, and random cuts and mirror images."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any, Sequence

from PIL import Image, ImageOps

from finetune.images import open_image
from finetune.objective import seed_for

METADATA_FILE = "metadata.jsonl"
LAYOUT = 'pictures, and beside them a metadata.jsonl with lines such as {"file_name": "cat.png", "text": "a cat"}'


class CaptionedImages:
    """A data set of the hub, or a folder with a metadata.jsonl: `data[i]` is {"image": RGB picture, "text": str}.

    Exactly one of `dataset_name` and `folder` is given. Of the samples the first `max_samples` are used, if given.

    Raises ValueError for columns that are not there, captions that are no text and folders without samples, OSError
    for a damaged picture or where the hub cannot be reached; each says which and what to do.
    """

    def __init__(
        self,
        dataset_name: str | None,
        folder: str | None,
        image_column: str,
        caption_column: str,
        max_samples: int | None = None,
    ) -> None:
        if (dataset_name is None) == (folder is None):
            raise ValueError("Give either --dataset_name or --train_data_dir.")
        import datasets  # takes seconds: after the flags were checked

        self.where = dataset_name or str(folder)
        if folder is not None and not Path(folder).is_dir():
            raise ValueError(f"There is no folder {folder}. --train_data_dir must hold {LAYOUT}.")
        try:
            if folder is not None:
                data = datasets.load_dataset("imagefolder", data_dir=str(Path(folder).resolve()), split="train")
            else:
                data = datasets.load_dataset(dataset_name, split="train")
        except Exception as error:  # the library's errors have no common base class
            what_to_do = (
                f"It must hold {LAYOUT}."
                if folder is not None
                else "Check its name and the connection; or train on a folder: --train_data_dir."
            )
            raise ValueError(f"Cannot read {self.where}: {str(error) or type(error).__name__}\n{what_to_do}") from error
        for flag, column in (("--image_column", image_column), ("--caption_column", caption_column)):
            if column not in data.column_names:
                hint = f" A folder must hold {LAYOUT}." if folder is not None else ""
                raise ValueError(
                    f"{self.where} has no column {column!r}, only {', '.join(data.column_names)}: choose with {flag}."
                    f"{hint}"
                )
        self.captions = list(data[caption_column])[:max_samples]
        for i, caption in enumerate(self.captions):
            if not isinstance(caption, str):
                raise ValueError(
                    f"Caption {i} of {self.where} must be text, not {type(caption).__name__}: {caption!r}. "
                    f"Another column? Choose with --caption_column."
                )
        self.column = image_column
        self.data = data.cast_column(image_column, datasets.Image(decode=False))
        self.fingerprint = repr((self.where, data._fingerprint, image_column, self.captions))

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        stored = self.data[index][self.column]
        where = stored["path"] or f"picture {index} of {self.where}"
        return {"image": open_image(stored["bytes"] or stored["path"], where), "text": self.captions[index]}


def read_captions(folder: str | Path) -> dict[str, str]:
    """The captions in a folder's metadata.jsonl by file name; none if there is no such file. Raises ValueError."""
    file = Path(folder) / METADATA_FILE
    captions: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.is_file() else [], 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], entry["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Line {number} of {file} is wrong ({error!r}): {folder} must hold {LAYOUT}.") from error
        if not isinstance(text, str) or not (file.parent / str(name)).is_file():
            raise ValueError(f"Line {number} of {file}: there must be a picture {name!r}, and its text in quotes.")
        captions[name] = text
    return captions


class SubjectImages:
    """The pictures of one folder in the order of their names, all with the same prompt.

    `with_captions`: pictures that a metadata.jsonl has captions for come once more at the end, with these. A caption
    that says where the subject is keeps the place from becoming a part of it.

    What is no picture, or a damaged one, is named in `skipped` and left out. Raises ValueError if nothing is left, or
    for a metadata.jsonl that cannot be read.
    """

    def __init__(
        self, folder: str | Path, prompt: str, max_samples: int | None = None, with_captions: bool = False
    ) -> None:
        if not Path(folder).is_dir():
            raise ValueError(f"There is no folder {folder}.")
        self.paths: list[Path] = []
        self.skipped: list[str] = []
        digest = hashlib.sha256(prompt.encode())
        for path in sorted(Path(folder).iterdir(), key=lambda path: path.name):
            if path.name.startswith(".") or path.name == METADATA_FILE or len(self.paths) == max_samples:
                continue
            try:
                open_image(path, path.name)
            except (OSError, ValueError) as error:
                self.skipped.append(str(error))
                continue
            self.paths.append(path)
            digest.update(path.name.encode() + path.read_bytes())
        if not self.paths:
            raise ValueError("\n".join([f"There are no pictures in {folder}.", *self.skipped]))
        self.prompts = [prompt] * len(self.paths)
        captions = read_captions(folder) if with_captions else {}
        for path in [path for path in self.paths if path.name in captions]:
            self.paths.append(path)
            self.prompts.append(captions[path.name])
        digest.update(json.dumps(captions).encode() if captions else b"")
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": open_image(self.paths[index], self.paths[index].name), "text": self.prompts[index]}


class Joined:
    """Several data sets one after the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)
        self.fingerprint = repr([(len(part), part.fingerprint) for part in parts])

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError("no such sample")


class Variants:
    """`data` as it is trained on: variant v of sample i is item `v * len(data) + i`.

    What is usually left to chance at each step, the cut and the mirror image, is drawn here once for each variant. So
    it can be encoded once, a resumed run sees the same, and more variants are more chance.
    """

    def __init__(self, data: Any, random_flip: bool, random_crop: bool, crops: int = 4) -> None:
        self.data = data
        self.random_flip = random_flip
        self.random_crop = random_crop
        self.count = (2 if random_flip else 1) * (crops if random_crop else 1)
        self.fingerprint = repr((data.fingerprint, random_flip, random_crop, crops))

    def __len__(self) -> int:
        return self.count * len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        variant, index = divmod(index, len(self.data))
        sample = dict(self.data[index])
        image: Image.Image = sample["image"]
        if self.random_crop:
            side = min(image.size)
            chance = random.Random(seed_for(index, variant))
            left, top = (chance.randint(0, edge - side) for edge in image.size)
            image = image.crop((left, top, left + side, top + side))
        if self.random_flip and variant % 2:
            image = ImageOps.mirror(image)
        return {**sample, "image": image}

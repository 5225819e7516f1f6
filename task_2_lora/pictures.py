"""Pictures with captions for a LoRA, pictures of one subject for DreamBooth, and random cuts and mirror images."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any, Collection, Sequence

from PIL import Image, ImageOps

from finetune.data.files import Files, contents_of, open_files
from finetune.data.hub import HubListing
from finetune.data.images import open_image, to_rgb
from finetune.data.listings import LAYOUT, Listing, is_listing, is_picture, lists_samples, texts_beside
from finetune.objective import seed_for
from finetune.run.notes import some
from finetune.run.processes import is_main_process

# Says what the pictures that lie beside it were drawn for.
DRAWN_FOR = "drawn_for.json"
CHOOSE = "choose with --image_column and --caption_column"


class CaptionedImages:
    """A data set of the hub, or a folder or zip archive: `data[i]` is {"image": RGB picture, "text": str}.

    Exactly one of `dataset_name` and `folder` is given. Of the samples the first `max_samples` are used, if given.

    Raises ValueError for columns that are not there and captions that are no text, OSError for a folder without
    samples, for a damaged picture or where the hub cannot be reached; each says which and what to do.
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
        columns = (image_column, caption_column)
        if folder is None:
            self.listing = HubListing(dataset_name, columns, CHOOSE, "a folder: --train_data_dir", max_samples)
        elif not Path(folder).exists():
            raise ValueError(f"There is no folder or zip archive {folder}: correct its name. It must hold {LAYOUT}.")
        else:
            self.listing = Listing(folder, columns, CHOOSE, max_samples)
        self.listing.tell()
        self.captions = self.listing.texts
        self.fingerprint = self.listing.fingerprint

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = to_rgb(self.listing.load(index), self.listing.where(index))
        return {"image": image, "text": self.captions[index]}

    def texts(self) -> list[str]:
        return self.captions

    def sources(self) -> list[Any]:
        return self.listing.sources()

    def contents(self) -> list[str]:
        return self.listing.contents()


def read_captions(folder: str | Path) -> dict[str, list[str]]:
    """The captions of a folder's pictures by file name, in the listing's order; none if there is no listing.

    Raises what `Listing` raises.
    """
    if not lists_samples(folder):
        return {}
    listing = Listing(folder, ("image", "text"), "each line must name a picture and its text")
    listing.tell_empty()
    captions: dict[str, list[str]] = {}
    for ((_, name),), text in zip(listing.pictures, listing.texts):
        captions.setdefault(name, []).append(text)
    return captions


def readable_pictures(
    files: Files, listed: Collection[str] = (), max_samples: int | None = None
) -> tuple[list[str], list[str]]:
    """The names of the pictures in a folder itself and of those `listed` below it, and what is wrong with all others.

    Others below it may be anything: pictures of the class, or those that a training drew.
    """
    names = sorted({*files.names(), *listed})  # which may be hidden, or lie elsewhere
    others = {*texts_beside(names).values(), *filter(is_listing, names), DRAWN_FOR}
    good: list[str] = []
    problems: list[str] = []
    for name in names:
        if name in others or ("/" in name and name not in listed) or len(good) == max_samples:
            continue
        try:
            # Opened now, since a folder of one's own may hold anything: no damaged picture is to end a training later.
            open_image(files.read(name), name)
            good.append(name)
        except (OSError, ValueError) as error:
            foreign = isinstance(error, OSError) and not is_picture(name)
            problems.append(f"{name} is no picture and is left out" if foreign else str(error))
    below = [name for name in names if "/" in name and name not in listed and is_picture(name)]
    if below:
        problems.append(f"{len(below)} pictures in folders below that are not listed for training: {some(below)}")
    return good, problems


# How often a picture is shown with a caption, for each time without. The sample cat: once, and the plain prompt brought
# the places of its pictures along (10 of 12 pictures are where their prompt says); twice and three times, 12 of 12, and
# "a cat" moved by 15 and 22 %; never without, 12 of 12, too, but marks in 17 of 20 pictures in place of 20
# (2026-12-02, docs/log.md).
CAPTIONS_COUNT = 2


class SubjectImages:
    """The pictures of one folder in the order of their names, all with the same prompt.

    `with_captions`: pictures that the folder lists captions for come again at the end, with each of these as often as
    `CAPTIONS_COUNT` says; they may lie in folders below. A caption that says where the subject is keeps the place from
    becoming a part of it.

    What is no picture, or a damaged one, is named in `skipped` and left out. Raises ValueError if nothing is left, and
    what `Listing` raises for captions that cannot be read.
    """

    def __init__(
        self, folder: str | Path, prompt: str, max_samples: int | None = None, with_captions: bool = False
    ) -> None:
        if not Path(folder).exists():
            raise ValueError(f"There is no folder {folder}.")
        self.files = open_files(folder)
        captions = read_captions(folder) if with_captions else {}
        self.names, self.skipped = readable_pictures(self.files, captions, max_samples)
        if not self.names:
            raise ValueError("\n".join([f"There are no pictures in {folder}.", *self.skipped]))
        self.prompts = [prompt] * len(self.names)
        # The plain prompt first and always, or the rare word alone would not be learnt; with captions the place belongs
        # to other words than the subject's.
        for name in list(self.names):
            own = [text for text in captions.get(name, []) for _ in range(CAPTIONS_COUNT)]
            self.names += [name] * len(own)
            self.prompts += own
        contents = self.files.fingerprint(dict.fromkeys(self.names))
        # Contents, order and prompts: encodings of the same pictures under another prompt are others.
        self.fingerprint = hashlib.sha256(repr((contents, self.names, self.prompts)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        return {"image": open_image(self.files.read(name), name), "text": self.prompts[index]}

    def texts(self) -> list[str]:
        return self.prompts

    def sources(self) -> list[str]:
        return self.names

    def contents(self) -> list[str]:
        return contents_of((self.files, name) for name in self.names)


def open_subject(folder: str | Path, *how: Any, **also: Any) -> SubjectImages:
    """`SubjectImages`, after it is said what of the folder is left out."""
    pictures = SubjectImages(folder, *how, **also)
    for problem in pictures.skipped if is_main_process() else ():
        print(f"Skipped: {problem}")
    return pictures


def training_images(folder: str | Path, listed_only: bool, image_column: str = "image") -> list[Image.Image]:
    """The pictures of a folder that a LoRA learnt from, each once.

    A style is learnt from those that the folder lists (`listed_only`), a subject from all. Raises as the trainings do.
    """
    if listed_only and lists_samples(folder):
        listing = Listing(folder, (image_column, image_column), CHOOSE)  # the texts do not matter here
        # A picture with several captions is one picture: in reverse, so that the first line of each stays.
        first = {picture: index for index, (picture,) in reversed(list(enumerate(listing.pictures)))}
        return [to_rgb(listing.load(index), listing.where(index)) for index in sorted(first.values())]
    subject = open_subject(folder, prompt="", with_captions=not listed_only)
    return [subject[subject.names.index(name)]["image"] for name in dict.fromkeys(subject.names)]


class Joined:
    """Several data sets one after the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)
        # With the lengths: 3 and 5 pictures are another data set than 4 and 4.
        self.fingerprint = repr([(len(part), part.fingerprint) for part in parts])

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def texts(self) -> list[str]:
        return [text for part in self.parts for text in part.texts()]

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

    def texts(self) -> list[str]:
        return self.data.texts()

    def __getitem__(self, index: int) -> dict[str, Any]:
        variant, index = divmod(index, len(self.data))
        sample = dict(self.data[index])
        image: Image.Image = sample["image"]
        if self.random_crop:
            side = min(image.size)
            # Of picture and variant alone: whoever encodes it, and whenever, cuts the same.
            chance = random.Random(seed_for(index, variant))
            left, top = (chance.randint(0, edge - side) for edge in image.size)
            image = image.crop((left, top, left + side, top + side))
        if self.random_flip and variant % 2:
            image = ImageOps.mirror(image)
        return {**sample, "image": image}

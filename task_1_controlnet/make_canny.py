"""Makes the data of Task 1-1 from any pictures with captions: their Canny edges become the conditions.

    python make_canny.py --dataset_name lambdalabs/naruto-blip-captions --output_dir ../runs/canny-data
    DATASET_NAME=../runs/canny-data sh train_canny.sh

The folder gets images/, edges/ and a metadata.jsonl that names both. Canny: 1986, doi 10.1109/TPAMI.1986.4767851.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fill50k import load_data
from finetune.argument_types import file_path, number, picture_size, positive_int
from finetune.data.images import square
from finetune.run.checkpoints import write_folder
from finetune.run.progress import progress_bar
from finetune.setup import fail_clearly
from metrics import canny_edges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_name", required=True, help="pictures with captions: folder, zip, or hub name")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--caption_column", default="text")
    parser.add_argument("--max_samples", type=positive_int, default=None, help="use the first so many samples only")
    parser.add_argument("--resolution", type=picture_size, default=512, help="side of the squares that are stored, px")
    blur = number(float, at_least=0, at_most=100)  # beyond, the blur is wider than the picture
    parser.add_argument("--sigma", type=blur, default=2.0, help="blur before edges are looked for, px of 512")
    parser.add_argument("--output_dir", type=file_path, required=True, help="must not be there yet")
    args = parser.parse_args()
    if args.output_dir.exists():
        raise ValueError(f"{args.output_dir} is there already: remove it, or choose another --output_dir.")
    # The picture stands in for the condition that is still to be made.
    data = load_data(args.dataset_name, args.image_column, args.image_column, args.caption_column, args.max_samples)

    def write(folder: Path) -> None:
        for name in ("images", "edges"):
            (folder / name).mkdir()
        with (folder / "metadata.jsonl").open("w") as lines:
            for i in progress_bar(range(len(data)), desc="Edges"):
                sample, name = data[i], f"{i:06d}.png"
                # Made small first, then searched for edges: the other way round, lines of one pixel would fade.
                image = square(sample["image"], args.resolution)
                image.save(folder / "images" / name)
                canny_edges(image, args.sigma).save(folder / "edges" / name)
                row = {"file_name": f"images/{name}", "conditioning_image_file_name": f"edges/{name}"}
                lines.write(json.dumps({**row, "text": sample["text"]}) + "\n")

    # Appears whole: half of it would be a smaller data set, and nobody would see that it is.
    write_folder(args.output_dir, write)
    print(f"{len(data)} pictures with their edges and captions are in {args.output_dir}")


if __name__ == "__main__":
    with fail_clearly():
        main()

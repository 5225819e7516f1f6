"""Builds the zip that Gradescope's form "Configure Autograder" takes.

    python -m grading.gradescope --output build/autograder.zip

The same files give the same bytes. What needs computing, `setup.sh` computes when Gradescope builds the image.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

from finetune.argument_types import file_path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).resolve().parent
SETUP, RUN = "setup.sh", "run_autograder"
FOLDERS = ("grading", "task_1_controlnet", "finetune", "task_2_lora", "tiny_sd")
FILES = ("requirements.txt", "pyproject.toml")
SUFFIXES = (".py", ".sh", ".json", ".gz", ".txt", ".png", ".safetensors", ".toml", ".typ", ".js")
# What the embedded base was made with, its successor, training pictures, this folder itself, questions, and what looks
# at many hand-ins: comparing them, and points by hand.
LEFT_OUT = (
    "tiny_sd/pictures",
    "tiny_sd/measures",
    "tiny_sd/training",
    "tiny_sd/*.png",
    "task_2_lora/sample_data",
    "grading/gradescope",
    "grading/questions",
    "grading/compare",
    "grading/points",
)
GENERATED = ("__pycache__", "runs", "build")
# Every entry has the same date, so that the same files give the same bytes.
DATE = (1980, 1, 1, 0, 0, 0)
TORCH_INDEX = "TORCH_INDEX="


def is_needed(name: Path) -> bool:
    """Whether a file, named from the repository's root, goes into the zip."""
    if any(part in GENERATED or part.startswith(".") for part in name.parts):
        return False
    if any(path.match(pattern) for pattern in LEFT_OUT for path in (name, *name.parents) if path != Path(".")):
        return False
    return name.suffix in SUFFIXES


def needed_files(root: Path = ROOT) -> list[Path]:
    """The files for the zip, named from the root, in order."""
    paths = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()]
    return sorted([path.relative_to(root) for path in paths if is_needed(path.relative_to(root))])


def setup_script(torch_index: str) -> bytes:
    """setup.sh with the index of PyTorch's packages in it; an empty one stands for the usual index.

    Raises:
        ValueError: for an index that is no address.
    """
    if torch_index and (not torch_index.startswith("https://") or set("'\"$`\\ \n") & set(torch_index)):
        raise ValueError(f"{torch_index!r} is no address of a package index: it must start with https://.")
    text = (SCRIPTS / SETUP).read_text(encoding="utf-8")
    return text.replace(f"{TORCH_INDEX}''", f"{TORCH_INDEX}'{torch_index}'").encode()


def write_autograder(output: Path, torch_index: str = "") -> list[str]:
    """Writes the zip, and returns the names of the files in it.

    Raises:
        ValueError: for an index that is no address.
    """
    contents = {name.as_posix(): (ROOT / name).read_bytes() for name in (*needed_files(), *map(Path, FILES))}
    contents[SETUP] = setup_script(torch_index)
    contents[RUN] = (SCRIPTS / RUN).read_bytes()
    output.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(output, "w") as archive:
        for name in sorted(contents):
            info = zipfile.ZipInfo(name, DATE)
            info.create_system = 3  # Unix, so that the modes count
            info.external_attr = (0o100755 if name in (SETUP, RUN) else 0o100644) << 16
            archive.writestr(info, contents[name], zipfile.ZIP_DEFLATED)
    return sorted(contents)


def main() -> None:
    parser = argparse.ArgumentParser("python -m grading.gradescope", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=file_path, default=Path("build/autograder.zip"), help="the zip (%(default)s)")
    parser.add_argument(
        "--torch-index",
        default="",
        metavar="URL",
        help="the index of PyTorch's CPU packages, from PyTorch's page 'Get Started'; without it the image is larger",
    )
    args = parser.parse_args()
    try:
        names = write_autograder(args.output, args.torch_index)
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    print(f"{args.output}: {len(names)} files, {args.output.stat().st_size / 1e6:.1f} MB, for Gradescope.")

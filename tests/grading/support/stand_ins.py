"""What runs in place of the grader's slow parts: for tests of what is around them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from grading.autograder.run import Ready

# The start of a stand-in for train.py: `flags`, and `text`, what stands between the banners of TODO (1).
READ_TEXT = """
import os, re, shutil, struct, sys, textwrap
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
source = open("diffusion/controlnet.py").read()
text = textwrap.dedent(re.findall(r"(?ms)^ *#{8} TODO \\(1\\) #{8}\\n(.*?)^ *#{8} TODO \\(1\\)", source)[0])
pattern = flags["--pretrained_model_name_or_path"].replace("tiny_sd", "controlnet")
output = flags["--output_dir"]
"""


@contextmanager
def ready_at_once(prepared: Path, numbers: Any, seconds: float, train=True, quick=False) -> Iterator[Ready]:
    yield Ready(Path("/nowhere"), ["the network can be reached"])


def same_for_all(results: dict) -> list[str]:
    """What Python runs in place of the grader: it unpacks, and gives the same results to all."""
    script = (
        "import json, sys; from pathlib import Path; from grading.files.archive import unpack\n"
        "job = json.loads(sys.argv[-1])\n"
        "unpack(Path(job['hand_in']), Path(job['output'], 'hand_in'))\n"
        f"Path(job['output'], 'results.json').write_text({json.dumps(results)!r})\n"
        "Path(job['output'], 'gallery.json').write_text('[]')\n"
    )
    return ["-c", script]

"""A page to draw on, in the browser: `make page`, or `python -m page` where Gradio is installed.

What the page does is in modules that need no Gradio; `app.py` alone has the page itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TASK_1, TASK_2 = ROOT / "task_1_controlnet", ROOT / "task_2_lora"
RUNS, BASE = ROOT / "runs", ROOT / "tiny_sd"

# The tasks are scripts, whose modules find each other by their names alone. Task 1 before Task 2, as both have an
# evaluate.py, and this is about Task 1's.
for folder in (str(TASK_2), str(TASK_1)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

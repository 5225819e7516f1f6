"""Where the programs beside this one find the repository and what its tests share."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SHARED = (ROOT / "tests" / "support", ROOT / "tests" / "grading" / "support")
sys.path[:0] = map(str, (ROOT, *SHARED, ROOT / "task_1_controlnet", ROOT / "task_2_lora"))

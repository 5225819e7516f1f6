#!/usr/bin/env bash
# Version: datasets 5.2.0 (Python 3.11)
# Behaviour: Dataset.map returns the cached result of old code: a function that is imported from a module is
#   fingerprinted by its name, so after the module was edited map(encode) still gives the old values in a new process,
#   and so does a lambda that calls it. Only code written in the running script itself is compared.
# Output seen: factor 2: [2, 4, 6]   edited to factor 5: [2, 4, 6]   the same function in the script: [5, 10, 15]
# One would have guessed: The cache is keyed by the function's code, as it is for a function in the script.
# What follows: Cached latents and embeddings outlive the fix of a preprocessing module: pass new_fingerprint with a
#   version of that module, or load_from_cache_file=False.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet datasets==5.2.0
venv/bin/python - <<'PY'
import os
import subprocess
import sys
from pathlib import Path

import datasets

datasets.Dataset.from_dict({"x": [1, 2, 3]}).to_parquet("data.parquet")
FUNCTION = "def encode(row):\n    return {'y': row['x'] * %d}\n"
LOAD = "import datasets\nrows = datasets.load_dataset('parquet', data_files='data.parquet', split='train', cache_dir='cache')\n"
MAP = "print(list(rows.map(encode)['y']), list(rows.map(lambda row: encode(row))['y']))\n"


def run(script):
    Path("run.py").write_text(script)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HF_DATASETS_CACHE": "cache"}
    done = subprocess.run([sys.executable, "run.py"], check=True, capture_output=True, text=True, env=environment)
    return done.stdout.strip()


seen = {}
for factor in (2, 5):
    Path("encoder.py").write_text(FUNCTION % factor)
    seen["imported", factor] = run(LOAD + "from encoder import encode\n" + MAP)
    seen["in the script", factor] = run(LOAD + FUNCTION % factor + MAP)
for key, value in seen.items():
    print(*key, value)
two, five = "[2, 4, 6]", "[5, 10, 15]"
assert seen["imported", 2] == seen["in the script", 2] == f"{two} {two}"
assert seen["in the script", 5] == f"{five} {five}"
assert seen["imported", 5] == f"{two} {two}", "an edited module is noticed now"
PY

#!/usr/bin/env bash
# Version: accelerate 1.16.0, torch 2.14.1 (Python 3.11)
# Behaviour: With `automatic_checkpoint_naming` a process that has resumed by `load_state()` numbers its checkpoints from 0
#   again, since the counter is not in the state. With a `total_limit` no error says so: the folders of the first numbers
#   are gone, and the limit takes those of the lowest numbers for the oldest. It deletes what was just saved, keeps what
#   is older than the resumption, and a second `load_state()` reads one of these.
# Output seen (total_limit 3; ten saves, then a second process with four): the folders hold the steps 9, 10 and 14, but
#   14 under number 0, so that a third process goes on from step 10
# One would have guessed: the folders hold the last three, 12, 13 and 14, and the third process goes on from step 14.
# What follows: After `load_state()` set `project_configuration.iteration` to one more than the number of the folder that
#   was read; or name the folders by their step and prune them by it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile accelerate==1.16.0 torch==2.14.1 numpy
cat > train.py <<'PY'
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

kept = ProjectConfiguration("run", automatic_checkpoint_naming=True, total_limit=3)
accelerator = Accelerator(cpu=True, project_config=kept)
model = accelerator.prepare(torch.nn.Linear(1, 1, bias=False))
resumed, saves, continues = sys.argv[1] == "resume", int(sys.argv[2]), sys.argv[3] == "counter"
torch.nn.init.zeros_(model.weight)  # the weight counts the steps
if resumed:
    accelerator.load_state()
    print("goes on from step", int(model.weight))
if continues:
    kept.iteration = int(model.weight)
for _ in range(saves):
    with torch.no_grad():
        model.weight += 1
    accelerator.save_state()
PY
cat > look.py <<'PY'
from pathlib import Path

from safetensors.torch import load_file

files = Path("run/checkpoints").glob("*/model.safetensors")
print("the folders hold the steps", *sorted(int(load_file(file)["weight"]) for file in files))
PY
export ACCELERATE_USE_CPU=true
for counter in as_it_is counter; do
    rm -rf run
    for run in "start 10" "resume 4" "resume 0"; do
        venv/bin/python train.py $run "$counter" 2>> errors.txt >> "$counter.txt" || { tail -5 errors.txt; exit 1; }
        venv/bin/python look.py >> "$counter.txt"
    done
    echo "$counter:" && cat "$counter.txt"
done
expect() { diff "$1.txt" - || { echo "$1: changed"; exit 1; }; }
expect as_it_is <<'SEEN'
the folders hold the steps 8 9 10
goes on from step 10
the folders hold the steps 9 10 14
goes on from step 10
the folders hold the steps 9 10 14
SEEN
expect counter <<'SEEN'
the folders hold the steps 8 9 10
goes on from step 10
the folders hold the steps 12 13 14
goes on from step 14
the folders hold the steps 12 13 14
SEEN

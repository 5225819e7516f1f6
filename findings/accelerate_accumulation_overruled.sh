#!/usr/bin/env bash
# Version: accelerate 1.15.0 (torch 2.13.0, Python 3.11)
# Behaviour: Two arguments of one constructor yield to the environment in opposite ways. An explicit
#   Accelerator(mixed_precision="no") wins over ACCELERATE_MIXED_PRECISION=bf16; an explicit
#   Accelerator(gradient_accumulation_steps=8) loses, without a word, to ACCELERATE_GRADIENT_ACCUMULATION_STEPS=1. The
#   same number given by GradientAccumulationPlugin(num_steps=8) wins again. A loop under accumulate() then updates the
#   weights at every batch.
# Output seen:
#   argument 8, environment 1: 1 (updates in 8 batches: 8)
#   plugin 8, environment 1: 8 (updates in 8 batches: 1)
#   mixed_precision argument "no", environment bf16: no
# One would have guessed: What the program passes explicitly wins over the environment, for all arguments alike.
# What follows: A launcher sets that variable (DeepSpeed's, from its configuration): a training of 8 x 2 samples a step
#   becomes one of 2 with eight times as many steps. Set the variable yourself before the Accelerator is made, or pass
#   the plugin; and check accelerator.gradient_accumulation_steps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile accelerate==1.15.0 torch==2.13.0
cat > program.py <<'PY'
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin


def updates(**arguments):
    """How many steps accelerate counts on, and how many updates eight batches make."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, **arguments)
    model = torch.nn.Linear(1, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    changes = 0
    for _ in range(8):
        before = model.weight.item()
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(1, 1)).sum())
            optimizer.step()
            optimizer.zero_grad()
        changes += model.weight.item() != before
    return accelerator.gradient_accumulation_steps, changes


argument = updates(gradient_accumulation_steps=8)
plugin = updates(gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=8))
AcceleratorState._reset_state(True)
precision = Accelerator(cpu=True, mixed_precision="no").mixed_precision
print(f"argument 8, environment 1: {argument[0]} (updates in 8 batches: {argument[1]})")
print(f"plugin 8, environment 1: {plugin[0]} (updates in 8 batches: {plugin[1]})")
print(f'mixed_precision argument "no", environment bf16: {precision}')
assert argument == (1, 8), "the explicit argument wins now"
assert plugin == (8, 1), "the plugin no longer wins"
assert precision == "no", "the environment wins here, too"
PY
ACCELERATE_GRADIENT_ACCUMULATION_STEPS=1 ACCELERATE_MIXED_PRECISION=bf16 venv/bin/python program.py

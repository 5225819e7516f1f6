#!/usr/bin/env bash
# Gradescope runs this once, as root, when it builds the image; then there is a network, later none is needed.
set -euo pipefail
cd /autograder/source

# The index of PyTorch's packages without CUDA; empty stands for the usual index, whose packages are gigabytes larger.
TORCH_INDEX=''

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends python3 python3-venv util-linux libseccomp2

# Outside /autograder/source, as student's code runs with it too and must not look into that.
python3 -m venv /opt/grader
if [ -n "$TORCH_INDEX" ]; then
    /opt/grader/bin/pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"
fi
/opt/grader/bin/pip install --no-cache-dir -r requirements.txt

# Student's code needs no account: each run has a user id of its own that nobody else has (grading/sandbox/).
/opt/grader/bin/python -m grading.autograder --prepare
chmod -R o= /autograder/source

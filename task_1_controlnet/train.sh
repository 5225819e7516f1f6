#!/bin/sh
# The real run: Stable Diffusion 1.4 on Fill50K with one consumer CUDA GPU, as the preset sd14 in finetune/presets.py says.
# Overrides: PRESET, MODEL_DIR, DATASET_NAME, OUTPUT_DIR; further flags pass through, as in
# `sh train.sh --max_train_steps 20000`. Killed? Run it again: it goes on.
set -eu
cd "$(dirname "$0")"
PYTHON="${PYTHON:-python}"

# 8-bit Adam needs a quarter of the optimiser's memory, where bitsandbytes is installed; on MPS it does not run.
if "$PYTHON" -c "import bitsandbytes, torch; assert not torch.backends.mps.is_available()" 2>/dev/null; then set -- --use_8bit_adam "$@"; fi

exec "$PYTHON" train.py --preset "${PRESET:-sd14}" \
    ${MODEL_DIR:+--pretrained_model_name_or_path "$MODEL_DIR"} \
    ${DATASET_NAME:+--dataset_name "$DATASET_NAME"} \
    ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
    --resume_from_checkpoint latest \
    "$@"

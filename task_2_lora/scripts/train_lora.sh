#!/bin/sh
# A style LoRA from a data set of the hub, with one consumer CUDA GPU, as the preset style-hub in finetune/presets.py says.
# Overrides: MODEL_NAME, DATASET_NAME, OUTPUT_DIR; further flags pass through, as in `sh scripts/train_lora.sh --rank 8`.
# Killed? Run it again: it goes on.
set -eu
cd "$(dirname "$0")/.."

exec "${PYTHON:-python}" train_lora.py --preset style-hub \
    ${MODEL_NAME:+--pretrained_model_name_or_path "$MODEL_NAME"} \
    ${DATASET_NAME:+--dataset_name "$DATASET_NAME"} \
    ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
    --resume_from_checkpoint latest \
    "$@"

#!/bin/sh
# A style LoRA from a folder of pictures with captions. MODEL_NAME=../tiny_sd trains on the embedded base, on any
# machine. What is trained stands in finetune/presets.py. Overrides: MODEL_NAME, TRAIN_DATA_DIR, OUTPUT_DIR; further flags
# pass through. Killed? Run it again: it goes on.
set -eu
cd "$(dirname "$0")/.."
case "${MODEL_NAME:-}" in
    *tiny_sd*) PRESET=style-tiny ;;
    *) PRESET=style-sd ;;
esac

exec "${PYTHON:-python}" train_lora.py --preset "$PRESET" \
    ${MODEL_NAME:+--pretrained_model_name_or_path "$MODEL_NAME"} \
    ${TRAIN_DATA_DIR:+--train_data_dir "$TRAIN_DATA_DIR"} \
    ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
    --resume_from_checkpoint latest \
    "$@"

#!/bin/sh
# A DreamBooth LoRA of one cat. MODEL_NAME=../tiny_sd trains on the embedded base, on any machine. What is trained stands
# in finetune/presets.py. Overrides: MODEL_NAME, INSTANCE_DIR, CLASS_DIR, OUTPUT_DIR; further flags pass through. Killed?
# Run it again: it goes on.
set -eu
cd "$(dirname "$0")/.."
CLASS_DIR="${CLASS_DIR:-${OUTPUT_DIR:+$OUTPUT_DIR/class-images}}"
case "${MODEL_NAME:-}" in
    *tiny_sd*) PRESET=dreambooth-tiny ;;
    *) PRESET=dreambooth-sd ;;
esac

exec "${PYTHON:-python}" train_dreambooth_lora.py --preset "$PRESET" \
    ${MODEL_NAME:+--pretrained_model_name_or_path "$MODEL_NAME"} \
    ${INSTANCE_DIR:+--instance_data_dir "$INSTANCE_DIR"} \
    ${CLASS_DIR:+--class_data_dir "$CLASS_DIR"} \
    ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
    --resume_from_checkpoint latest \
    "$@"

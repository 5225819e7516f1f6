#!/bin/sh
# Task 1-1: a ControlNet on the edges that make_canny.py has made. MODEL_DIR=../tiny_sd trains on the embedded base, on any
# machine. Overrides: MODEL_DIR, DATASET_NAME, OUTPUT_DIR; further flags pass through. Killed? Run it again: it goes on.
# All pictures are trained on: keep some for evaluate.py by --max_train_samples.
set -eu
cd "$(dirname "$0")"

case "${MODEL_DIR:-}" in
    *tiny_sd*)
        exec "${PYTHON:-python}" train.py --preset canny-tiny --pretrained_model_name_or_path "$MODEL_DIR" \
            ${DATASET_NAME:+--dataset_name "$DATASET_NAME"} \
            ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
            --resume_from_checkpoint latest \
            "$@" ;;
    *)
        export PRESET=canny-sd14
        exec sh train.sh "$@" ;;
esac

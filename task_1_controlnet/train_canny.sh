#!/bin/sh
# Task 1-1: a ControlNet on the edges that make_canny.py has made. MODEL_DIR=../tiny_sd trains on the embedded base, on any
# machine. Overrides: MODEL_DIR, DATASET_NAME, OUTPUT_DIR; further flags pass through. Killed? Run it again: it goes on.
set -eu
cd "$(dirname "$0")"
MODEL_DIR="${MODEL_DIR:-CompVis/stable-diffusion-v1-4}"
DATASET_NAME="${DATASET_NAME:-../runs/canny-data}"
OUTPUT_DIR="${OUTPUT_DIR:-../runs/controlnet-canny}"

case "$MODEL_DIR" in
    *tiny_sd*)
        exec "${PYTHON:-python}" train.py \
            --pretrained_model_name_or_path "$MODEL_DIR" \
            --dataset_name "$DATASET_NAME" \
            --output_dir "$OUTPUT_DIR" \
            --resolution 128 \
            --conditioning_channels 8 16 32 64 \
            --train_batch_size 16 \
            --gradient_accumulation_steps 1 \
            --max_train_steps 1300 \
            --learning_rate 1e-3 \
            --lr_scheduler cosine \
            --lr_warmup_steps 50 \
            --snr_gamma 0.05 \
            --mixed_precision auto \
            --validation_steps 0 \
            --resume_from_checkpoint latest \
            "$@" ;;
    *)
        export MODEL_DIR DATASET_NAME OUTPUT_DIR
        exec sh train.sh --validation_steps 0 "$@" ;;
esac

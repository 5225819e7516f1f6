#!/bin/sh
# Task 1-1: a ControlNet on the edges that make_canny.py has made. MODEL_DIR=../tiny_sd trains on the embedded base, on any
# machine. Overrides: MODEL_DIR, DATASET_NAME, OUTPUT_DIR; further flags pass through. Killed? Run it again: it goes on.
# All pictures are trained on: keep some for evaluate.py by --max_train_samples.
set -eu
cd "$(dirname "$0")"
MODEL_DIR="${MODEL_DIR:-CompVis/stable-diffusion-v1-4}"
DATASET_NAME="${DATASET_NAME:-../runs/canny-data}"
OUTPUT_DIR="${OUTPUT_DIR:-../runs/controlnet-canny}"

# --output_dir means OUTPUT_DIR: each of two stages has a folder of its own.
number=$#
while [ "$number" -gt 0 ]; do
    case "$1" in
        --output_dir) OUTPUT_DIR="${2:?--output_dir needs a folder}" && shift 2 && number=$((number - 2)) ;;
        --output_dir=*) OUTPUT_DIR="${1#*=}" && shift && number=$((number - 1)) ;;
        *) set -- "$@" "$1" && shift && number=$((number - 1)) ;;
    esac
done

train_tiny() {
    "${PYTHON:-python}" train.py \
        --pretrained_model_name_or_path "$MODEL_DIR" \
        --dataset_name "$DATASET_NAME" \
        --conditioning_channels 8 16 32 64 \
        --train_batch_size 16 \
        --gradient_accumulation_steps 1 \
        --learning_rate 1e-3 \
        --lr_warmup_steps 20 \
        --snr_gamma 0.05 \
        --mixed_precision auto \
        --validation_steps 0 \
        --resume_from_checkpoint latest \
        "$@"
}

case "$MODEL_DIR" in
    *tiny_sd*)  # as `make demo` does it: at 64 px first, where a step costs a quarter
        train_tiny --resolution 64 --max_train_steps 1000 --lr_scheduler constant_with_warmup \
            --output_dir "$OUTPUT_DIR/64px" --part_of "$OUTPUT_DIR" "$@"
        train_tiny --resolution 128 --max_train_steps 500 --lr_scheduler cosine \
            --controlnet_model_name_or_path "$OUTPUT_DIR/64px/controlnet" --output_dir "$OUTPUT_DIR" "$@" ;;
    *)
        export MODEL_DIR DATASET_NAME OUTPUT_DIR
        exec sh train.sh --validation_steps 0 "$@" ;;
esac

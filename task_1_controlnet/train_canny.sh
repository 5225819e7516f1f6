#!/bin/sh
# Task 1-1: a ControlNet on the edges that make_canny.py has made. MODEL_DIR=../tiny_sd trains on the embedded base, on any
# machine. Overrides: MODEL_DIR, DATASET_NAME, OUTPUT_DIR; further flags pass through. Killed? Run it again: it goes on.
# All pictures are trained on: keep some for evaluate.py by --max_train_samples.
set -eu
cd "$(dirname "$0")"
MODEL_DIR="${MODEL_DIR:-}"
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
    preset="$1" && shift
    "${PYTHON:-python}" train.py --preset "$preset" --pretrained_model_name_or_path "$MODEL_DIR" \
        ${DATASET_NAME:+--dataset_name "$DATASET_NAME"} --resume_from_checkpoint latest "$@"
}

case "$MODEL_DIR" in
    *tiny_sd*)  # at 64 px first, where a step costs a quarter
        train_tiny canny-tiny-64 --output_dir "$OUTPUT_DIR/64px" --part_of "$OUTPUT_DIR" "$@"
        train_tiny canny-tiny-128 --controlnet_model_name_or_path "$OUTPUT_DIR/64px/controlnet" \
            --output_dir "$OUTPUT_DIR" "$@" ;;
    *)
        export PRESET=canny-sd14 OUTPUT_DIR
        exec sh train.sh "$@" ;;
esac

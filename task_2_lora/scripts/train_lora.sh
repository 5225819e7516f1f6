#!/bin/sh
# A style LoRA from a data set of the hub, with one consumer CUDA GPU. Overrides: MODEL_NAME, DATASET_NAME, OUTPUT_DIR;
# further flags pass through, as in `sh scripts/train_lora.sh --rank 8`. Killed? Run it again: it goes on.
set -eu
cd "$(dirname "$0")/.."
MODEL_NAME="${MODEL_NAME:-CompVis/stable-diffusion-v1-4}"
DATASET_NAME="${DATASET_NAME:-lambdalabs/naruto-blip-captions}"
OUTPUT_DIR="${OUTPUT_DIR:-../runs/lora-naruto}"
PYTHON="${PYTHON:-python}"

exec "$PYTHON" train_lora.py \
    --pretrained_model_name_or_path "$MODEL_NAME" \
    --dataset_name "$DATASET_NAME" \
    --output_dir "$OUTPUT_DIR" \
    --resolution 512 \
    --random_flip \
    --train_batch_size 1 \
    --gradient_accumulation_steps 4 \
    --max_train_steps 15000 \
    --learning_rate 1e-4 \
    --lr_scheduler cosine \
    --mixed_precision fp16 \
    --validation_prompt "a ninja with blue eyes" \
    --checkpointing_steps 500 \
    --resume_from_checkpoint latest \
    "$@"

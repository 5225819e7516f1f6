#!/bin/sh
# A style LoRA from a folder of pictures with captions. MODEL_NAME=../tiny_sd trains on the embedded base, on any
# machine. Overrides: MODEL_NAME, TRAIN_DATA_DIR, OUTPUT_DIR; further flags pass through. Killed? Run it again: it goes on.
set -eu
cd "$(dirname "$0")/.."
MODEL_NAME="${MODEL_NAME:-CompVis/stable-diffusion-v1-4}"
TRAIN_DATA_DIR="${TRAIN_DATA_DIR:-sample_data/artistic-custom/train}"
OUTPUT_DIR="${OUTPUT_DIR:-../runs/lora-custom}"
PYTHON="${PYTHON:-python}"

case "$MODEL_NAME" in
    *tiny_sd*)
        set -- --resolution 128 --train_batch_size 8 --max_train_steps 600 --learning_rate 5e-4 --mixed_precision auto \
            --rank 32 --lora_layers all --train_text_encoder --proportion_empty_prompts 0.1 \
            --validation_epochs 200 --validation_guidance_scale 2.5 "$@" ;;
    *)
        set -- --resolution 512 --train_batch_size 4 --max_train_steps 500 --learning_rate 2e-4 --mixed_precision fp16 \
            --validation_epochs 50 "$@" ;;
esac

# No --random_flip: hatching that runs one way would run both ways in what is learnt. Add it for a style without one.
exec "$PYTHON" train_lora.py \
    --pretrained_model_name_or_path "$MODEL_NAME" \
    --train_data_dir "$TRAIN_DATA_DIR" \
    --output_dir "$OUTPUT_DIR" \
    --lr_scheduler cosine \
    --validation_prompt "a house" \
    --checkpointing_steps 100 \
    --resume_from_checkpoint latest \
    "$@"

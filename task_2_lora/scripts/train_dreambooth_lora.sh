#!/bin/sh
# A DreamBooth LoRA of one cat. MODEL_NAME=../tiny_sd trains on the embedded base, on any machine. Overrides: MODEL_NAME,
# INSTANCE_DIR, CLASS_DIR, OUTPUT_DIR; further flags pass through. Killed? Run it again: it goes on.
set -eu
cd "$(dirname "$0")/.."
MODEL_NAME="${MODEL_NAME:-CompVis/stable-diffusion-v1-4}"
INSTANCE_DIR="${INSTANCE_DIR:-sample_data/dreambooth-cat}"
OUTPUT_DIR="${OUTPUT_DIR:-../runs/dreambooth-cat}"
CLASS_DIR="${CLASS_DIR:-$OUTPUT_DIR/class-images}"
PYTHON="${PYTHON:-python}"

case "$MODEL_NAME" in
    *tiny_sd*)
        set -- --resolution 128 --train_batch_size 4 --max_train_steps 1200 --learning_rate 5e-4 --mixed_precision auto \
            --lr_scheduler cosine --snr_gamma 1 --rank 32 --lora_layers all --train_text_encoder --num_class_images 64 \
            --validation_guidance_scale 2.5 "$@" ;;
    *)
        set -- --resolution 512 --train_batch_size 2 --max_train_steps 500 --learning_rate 1e-4 --mixed_precision fp16 \
            "$@" ;;
esac

# No --random_flip: a subject is not its mirror image (this cat has one green and one blue eye).
exec "$PYTHON" train_dreambooth_lora.py \
    --pretrained_model_name_or_path "$MODEL_NAME" \
    --instance_data_dir "$INSTANCE_DIR" \
    --instance_prompt "a sks cat" \
    --with_prior_preservation \
    --class_data_dir "$CLASS_DIR" \
    --class_prompt "a cat" \
    --output_dir "$OUTPUT_DIR" \
    --validation_prompt "a sks cat in a garden" \
    --checkpointing_steps 100 \
    --resume_from_checkpoint latest \
    "$@"

#!/bin/sh
# The real run: Stable Diffusion 1.4 on Fill50K with one consumer CUDA GPU. Overrides: MODEL_DIR, DATASET_NAME,
# OUTPUT_DIR; further flags pass through, as in `sh train.sh --max_train_steps 20000`. Killed? Run it again: it goes on.
set -eu
cd "$(dirname "$0")"
MODEL_DIR="${MODEL_DIR:-CompVis/stable-diffusion-v1-4}"
DATASET_NAME="${DATASET_NAME:-fusing/fill50k}"
OUTPUT_DIR="${OUTPUT_DIR:-../runs/controlnet-fill50k}"
PYTHON="${PYTHON:-python}"

# 8-bit Adam needs a quarter of the optimiser's memory, where bitsandbytes is installed; on MPS it does not run.
if "$PYTHON" -c "import bitsandbytes, torch; assert not torch.backends.mps.is_available()" 2>/dev/null; then set -- --use_8bit_adam "$@"; fi

exec "$PYTHON" train.py \
    --pretrained_model_name_or_path "$MODEL_DIR" \
    --dataset_name "$DATASET_NAME" \
    --output_dir "$OUTPUT_DIR" \
    --resolution 512 \
    --learning_rate 1e-5 \
    --train_batch_size 4 \
    --gradient_accumulation_steps 4 \
    --mixed_precision fp16 \
    --gradient_checkpointing \
    --dataloader_num_workers 4 \
    --resume_from_checkpoint latest \
    "$@"

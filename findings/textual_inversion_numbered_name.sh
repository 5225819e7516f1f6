#!/usr/bin/env bash
# Version: diffusers 0.42.1 with transformers 5.23.0 (torch 2.14.1, Python 3.11)
# Behaviour: The vectors of a textual inversion with several are known by names alone: NAME, NAME_1, NAME_2, ... So when
#   a second inversion is loaded as disc_1 beside one named disc, it becomes a part of the first: each prompt with
#   "disc" is read as "disc disc_1". A prompt with both turns into "disc disc_1 ... disc disc_1_1", of which the last is
#   spelt out in letters. Loaded in the other order it is refused; in this order there is not a word.
# Output seen: what becomes of the prompts
#   "a disc" alone: a disc; after disc_1 was loaded: a disc disc_1, and its embedding differs
#   "a disc_1 or a disc": a disc disc_1_1 or a disc disc_1
#   named <disc> and <disc_1>, or disc and disc-1: each for itself
# One would have guessed: What one name stands for does not change when another is loaded.
# What follows: No names that are another's with _1 behind it (two versions of one concept, two seeds of one training):
#   write <disc-1>, and look at pipe.maybe_convert_prompt(prompt, pipe.tokenizer) once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 torch==2.14.1
venv/bin/python - <<'PY'
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_-<>"
WORDS = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]


def pipeline():
    torch.manual_seed(0)
    start, end = len(WORDS) - 2, len(WORDS) - 1
    text = CLIPTextConfig(vocab_size=len(WORDS), hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                          num_attention_heads=2, bos_token_id=start, eos_token_id=end)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, merges=[], model_max_length=77)
    return StableDiffusionPipeline(
        AutoencoderKL(block_out_channels=(8,), norm_num_groups=4), CLIPTextModel(text).eval(), tokenizer, unet,
        DDIMScheduler(clip_sample=False, steps_offset=1), None, None, requires_safety_checker=False)


def load(pipe, name, seed):
    vector = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    pipe.load_textual_inversion({name: vector}, token=name)


def read(pipe, prompt):
    return pipe.maybe_convert_prompt(prompt, pipe.tokenizer)


@torch.no_grad()
def embedding(pipe, prompt):
    return pipe.encode_prompt(prompt, "cpu", 1, False)[0]


pipe = pipeline()
load(pipe, "disc", 1)
before = embedding(pipe, "a disc")
print("alone:", read(pipe, "a disc"))
assert read(pipe, "a disc") == "a disc"
load(pipe, "disc_1", 2)
after = embedding(pipe, "a disc")
print("after disc_1 was loaded:", read(pipe, "a disc"), f"(embedding moves by {(after - before).abs().max():.2f})")
print("both in one prompt:", read(pipe, "a disc_1 or a disc"))
assert read(pipe, "a disc") == "a disc disc_1", "the names are kept apart now"
assert (after - before).abs().max() > 0.1
assert read(pipe, "a disc_1 or a disc") == "a disc disc_1_1 or a disc disc_1"
assert pipe.tokenizer.tokenize(read(pipe, "a disc_1"))[1] == "disc_1"

for first, second in (("<disc>", "<disc_1>"), ("disc", "disc-1")):
    apart = pipeline()
    load(apart, first, 1)
    before = embedding(apart, f"a {first}")
    load(apart, second, 2)
    print(f"named {first} and {second}:", read(apart, f"a {first}"))
    assert read(apart, f"a {first}") == f"a {first}" and torch.allclose(embedding(apart, f"a {first}"), before)

other = pipeline()
load(other, "disc_1", 2)
try:
    load(other, "disc", 1)
except ValueError as refused:
    print("in the other order:", refused)
else:
    raise SystemExit("the other order is taken now")
PY

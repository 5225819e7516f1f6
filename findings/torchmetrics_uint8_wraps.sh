#!/usr/bin/env bash
# Version: torchmetrics 1.9.0 (torch 2.14.1, Python 3.11)
# Behaviour: Given pictures as uint8, MeanSquaredError, MeanAbsoluteError, TotalVariation and PSNR with blocked effect
#   subtract, and MSE squares, modulo 256, and return a plausible number. PeakSignalNoiseRatio converts to float, SSIM
#   raises. MAE means to convert, too, but asks `x.is_floating_point` without calling it, which is true for all tensors.
#   A picture 16 brighter everywhere has an MSE of 0; one 1 darker everywhere has an MAE of 255.
# Output seen: two pictures with noise between -40 and 40, as float and as uint8
#   MSE 500.3 and 95.8, MAE 19.10 and 126.74, TV 4.12 and 6.20 million, PSNRB 21.12 and 28.26; PSNR 21.14 and 21.14
#   16 brighter: MSE 256 and 0; 1 darker: MAE 1 and 255
# One would have guessed: A measure of pictures counts the bytes that a decoder gives, or refuses them; and MSE and
#   PSNR of one library belong together.
# What follows: Call .float() on pictures before any measure, and check one number by hand: a PSNR counted from this
#   MSE is 7 dB too good.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-compile torchmetrics==1.9.0 torch==2.14.1 numpy
venv/bin/python - <<'PY'
import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError
from torchmetrics.image import (PeakSignalNoiseRatio, PeakSignalNoiseRatioWithBlockedEffect,
                                StructuralSimilarityIndexMeasure, TotalVariation)

torch.manual_seed(0)
picture = torch.randint(0, 256, (2, 3, 64, 64))
noisy = (picture + torch.randint(-40, 41, picture.shape)).clamp(0, 255)


def both(metric, first, second):
    """The measure of the same values as float and as uint8."""
    values = []
    for kind in (torch.float32, torch.uint8):
        pair = [first.to(kind)] if isinstance(metric, TotalVariation) else [first.to(kind), second.to(kind)]
        metric.reset()
        values.append(float(metric(*pair)))
    return tuple(values)


seen = {
    "MSE": both(MeanSquaredError(), picture, noisy),
    "MAE": both(MeanAbsoluteError(), picture, noisy),
    "TV": both(TotalVariation(), picture, noisy),
    "PSNRB": both(PeakSignalNoiseRatioWithBlockedEffect(data_range=255.0), picture[:, :1], noisy[:, :1]),
    "PSNR": both(PeakSignalNoiseRatio(data_range=255.0), picture, noisy),
}
for name, (right, wrapped) in seen.items():
    print(f"{name:5} of float {right:12.3f}   of uint8 {wrapped:12.3f}")
assert seen["PSNR"][0] == seen["PSNR"][1]
assert seen["MSE"][1] < seen["MSE"][0] / 4, "MSE counts uint8 now"
assert seen["MAE"][1] > 6 * seen["MAE"][0], "MAE counts uint8 now"
assert seen["TV"][1] > 1.4 * seen["TV"][0], "TV counts uint8 now"
assert seen["PSNRB"][1] > seen["PSNRB"][0] + 5, "PSNRB counts uint8 now"

grey = torch.full((1, 3, 8, 8), 100)
brighter, darker = both(MeanSquaredError(), grey, grey + 16), both(MeanAbsoluteError(), grey - 1, grey)
print("16 brighter: MSE", brighter, "  1 darker: MAE", darker)
assert brighter == (256, 0) and darker == (1, 255)
try:
    StructuralSimilarityIndexMeasure(data_range=255.0)(picture.to(torch.uint8), noisy.to(torch.uint8))
except RuntimeError as refused:
    print("SSIM refuses:", refused)
else:
    raise SystemExit("SSIM takes uint8 now")
PY

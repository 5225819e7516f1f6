"""Wrong texts for the TODO places in the UNet."""

from __future__ import annotations

from solutions.pieces import PAIRS

# The rows are those of wrong_controlnet.py.
WRONG = [
    ("4-1", "joined", "the lists are joined, not added", """
        if is_controlnet:
            down_block_res_samples = down_block_res_samples + tuple(down_block_additional_residuals)
    """),
    ("4-1", "joined by +=", "the lists are joined, not added", """
        if is_controlnet:
            down_block_res_samples += down_block_additional_residuals
    """),
    ("4-1", "in place", "the mid block's input `sample`, which must stay as it is", f"""
        if is_controlnet:
            for skip, residual in {PAIRS}:
                skip += residual
    """),
    ("4-1", "in place, and kept", "changed in place", f"""
        if is_controlnet:
            down_block_res_samples = tuple(skip.add_(residual) for skip, residual in {PAIRS})
    """),
    ("4-1", "in place on the residuals", "ControlNet's residuals are changed in place", f"""
        if is_controlnet:
            down_block_res_samples = tuple(residual.add_(skip) for skip, residual in {PAIRS})
    """),
    ("4-1", "no ControlNet afterwards", "`is_controlnet` is another one afterwards", f"""
        if is_controlnet:
            down_block_res_samples = [skip + residual for skip, residual in {PAIRS}]
            is_controlnet = False
    """),
    ("4-1", "another mid residual", "`mid_block_additional_residual` is another one afterwards", f"""
        if is_controlnet:
            down_block_res_samples = [skip + residual for skip, residual in {PAIRS}]
            mid_block_additional_residual = down_block_additional_residuals[-1]
    """),
    ("4-1", "hides a function that forward needs", "`len` is set here, which hides", f"""
        if is_controlnet:
            down_block_res_samples = [skip + residual for skip, residual in {PAIRS}]
        len = 6
    """),
    ("4-1", "forgotten", "the residuals are not added", "pass"),
    ("4-1", "computed and thrown away", "the residuals are not added", f"""
        if is_controlnet:
            for skip, residual in {PAIRS}:
                skip = skip + residual
    """),
    ("4-1", "all but the last", "[5] is the skip without its residual", f"""
        if is_controlnet:
            sums = [skip + residual for skip, residual in {PAIRS}]
            down_block_res_samples = (*sums[:-1], down_block_res_samples[-1])
    """),
    ("4-1", "only the last", "[0, 1, 2, 3 and 4] is the skip without its residual", """
        if is_controlnet:
            last = down_block_res_samples[-1] + down_block_additional_residuals[-1]
            down_block_res_samples = down_block_res_samples[:-1] + (last,)
    """),
    ("4-1", "one too few", "too few tensors", f"""
        if is_controlnet:
            down_block_res_samples = [skip + residual for skip, residual in {PAIRS}][:-1]
    """),
    ("4-1", "twice", "added twice", f"""
        if is_controlnet:
            for _ in range(2):
                down_block_res_samples = [skip + residual for skip, residual in {PAIRS}]
    """),
    ("4-1", "replaced", "in place of the skip", """
        if is_controlnet:
            down_block_res_samples = tuple(down_block_additional_residuals)
    """),
    ("4-1", "subtracted", "minus its residual", f"""
        if is_controlnet:
            down_block_res_samples = tuple(skip - residual for skip, residual in {PAIRS})
    """),
    ("4-1", "in reverse", "the wrong residual added, number 5", """
        if is_controlnet:
            pairs = zip(down_block_res_samples, reversed(down_block_additional_residuals))
            down_block_res_samples = tuple(skip + residual for skip, residual in pairs)
    """),
    ("4-1", "one residual for all", "the wrong residual added, the mid block's", """
        if is_controlnet:
            down_block_res_samples = tuple(skip + mid_block_additional_residual for skip in down_block_res_samples)
    """),
    ("4-1", "side by side", "has the shape", f"""
        if is_controlnet:
            down_block_res_samples = tuple(torch.cat(pair, dim=1) for pair in {PAIRS})
    """),
    ("4-1", "changes the tuple", "A tuple cannot be changed", """
        if is_controlnet:
            for i, residual in enumerate(down_block_additional_residuals):
                down_block_res_samples[i] = down_block_res_samples[i] + residual
    """),
    ("4-1", "takes the residuals for a list", "'tuple' object has no attribute 'pop'", """
        if is_controlnet:
            sums = [skip + down_block_additional_residuals.pop(0) for skip in down_block_res_samples]
            down_block_res_samples = tuple(sums)
    """),
    ("4-1", "without the condition", "without ControlNet, where the residuals are None",
     f"down_block_res_samples = tuple(skip + residual for skip, residual in {PAIRS})"),
    ("4-1", "a generator", "of type `generator`", f"""
        if is_controlnet:
            down_block_res_samples = (skip + residual for skip, residual in {PAIRS})
    """),
    ("4-1", "without gradients", "gradients do not reach", f"""
        if is_controlnet:
            down_block_res_samples = tuple(skip + residual.detach() for skip, residual in {PAIRS})
    """),
    ("4-1", "gradients twice", "the gradients of ControlNet's residuals are not", f"""
        if is_controlnet:
            down_block_res_samples = tuple(skip + 2 * residual - residual.detach() for skip, residual in {PAIRS})
    """),
    ("4-1", "the mid block's input too", "`sample` is another tensor afterwards", f"""
        if is_controlnet:
            down_block_res_samples = tuple(skip + residual for skip, residual in {PAIRS})
            sample = down_block_res_samples[-1]
    """),
    ("4-1", "returns", "returns from the UNet's `forward`", f"""
        if is_controlnet:
            return tuple(skip + residual for skip, residual in {PAIRS})
    """),
    ("4-2", "no timestep afterwards", "`emb` is another one afterwards", """
        sample = sample + mid_block_additional_residual
        emb = None
    """),
    ("4-2", "forgotten", "is not added", "pass"),
    ("4-2", "only a comment", "Some code must stand between these banners", "# nothing to do"),
    ("4-2", "replaced", "in place of its sum", "sample = mid_block_additional_residual"),
    ("4-2", "thrown away", "is not added", "sample + mid_block_additional_residual"),
    ("4-2", "under another name", "is not added", "mid_sample = sample + mid_block_additional_residual"),
    ("4-2", "the last skip's residual", "has the last skip's residual added",
     "sample = sample + down_block_additional_residuals[-1]"),
    ("4-2", "the last skip", "has the last skip added", "sample = sample + down_block_res_samples[-1]"),
    ("4-2", "added to the last skip", "is the last skip plus the residual",
     "sample = down_block_res_samples[-1] + mid_block_additional_residual"),
    ("4-2", "twice", "added twice", "sample = sample + 2 * mid_block_additional_residual"),
    ("4-2", "subtracted", "minus the residual", "sample = sample - mid_block_additional_residual"),
    ("4-2", "multiplied", "is the product", "sample = sample * mid_block_additional_residual"),
    ("4-2", "in place on the residual", "changed in place",
     "mid_block_additional_residual += sample\nsample = mid_block_additional_residual"),
    ("4-2", "without gradients", "gradients do not reach", "sample = sample + mid_block_additional_residual.detach()"),
    ("4-2", "the skips too", "in TODO (4-1)", """
        sample = sample + mid_block_additional_residual
        down_block_res_samples = [a + b for a, b in zip(down_block_res_samples, down_block_additional_residuals)]
    """),
    ("4-2", "returns", "returns from the UNet's `forward`", "return sample + mid_block_additional_residual"),
]  # fmt: skip

"""The checks of the TODO places: no wrong solution passes, no right one fails, and each is blamed on itself only."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

from grading.checks import __main__ as program
from grading.checks import observe
from grading.checks import run as checks
from grading.checks.run import check, check_all, judge
from grading.handed_out.banners import TODO_FILES, TODOS, BannerError, extract, fill, read_parts, read_source
from grading.starter.make import blank

ROOT = Path(__file__).resolve().parents[2]
TASK_1 = ROOT / "task_1_controlnet"
SOLUTION = read_parts(TASK_1)
EMPTY = {t: s for file in TODO_FILES for t, s in extract(blank(read_source(TASK_1 / file))).items()}
INDENT = {"1": 4, "2": 8, "3": 8, "4-1": 8, "4-2": 12}

CONV = "module = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)"
ZERO = "for parameter in module.parameters(): nn.init.zeros_(parameter)"
MODULES = '("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block")'
COPY = f"for name in {MODULES}: getattr(controlnet, name).load_state_dict(getattr(unet, name).state_dict())"
DOWN = "down_block_res_samples = [f(x) for f, x in zip(self.controlnet_down_blocks, down_block_res_samples)]"
MID = "mid_block_res_sample = self.controlnet_mid_block(sample)"
PAIRS = "zip(down_block_res_samples, down_block_additional_residuals)"


def without(copy: str, *modules: str) -> str:
    for module in modules:
        copy = copy.replace(f'"{module}", ', "").replace(f', "{module}"', "")
    return copy


# TODO, what is wrong with it, words that its message must have, and what stands between the banners.
WRONG = [
    ("1", "only the weight is zero", "the bias does not start at zero", f"""
        {CONV}
        nn.init.zeros_(module.weight)
    """),
    ("1", "only the bias is zero", "the weight does not start at zero", f"""
        {CONV}
        nn.init.zeros_(module.bias)
    """),
    ("1", "a plain convolution", "the weight does not start at zero", CONV),
    ("1", "almost zero", "does not start at zero", f"""
        {CONV}
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=1e-6)
    """),
    ("1", "frozen", "does not require a gradient", f"{CONV}\n{ZERO}\nmodule.requires_grad_(False)"),
    ("1", "frozen bias", "the bias does not require a gradient", f"{CONV}\n{ZERO}\nmodule.bias.requires_grad = False"),
    ("1", "buffers", "the weight is not a parameter", """
        class Zero(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("weight", torch.zeros(out_channels, in_channels, kernel_size, kernel_size))
                self.register_buffer("bias", torch.zeros(out_channels))

            def forward(self, x):
                return F.conv2d(x, self.weight, self.bias, stride, padding)

        module = Zero()
    """),
    ("1", "stride forgotten", "`stride` is ignored",
     f"module = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding)\n{ZERO}"),
    ("1", "padding forgotten", "`padding` is ignored",
     f"module = nn.Conv2d(in_channels, out_channels, kernel_size, stride)\n{ZERO}"),
    ("1", "padding by kernel size", "`padding` is half of the kernel",
     f"module = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2)\n{ZERO}"),
    ("1", "stride and padding swapped", "stride",
     f"module = nn.Conv2d(in_channels, out_channels, kernel_size, padding, stride)\n{ZERO}"),
    ("1", "always 1x1", "`kernel_size` is not what was asked for",
     f"module = nn.Conv2d(in_channels, out_channels, 1)\n{ZERO}"),
    ("1", "channels swapped", "`in_channels` and `out_channels` are swapped",
     f"module = nn.Conv2d(out_channels, in_channels, kernel_size, stride, padding)\n{ZERO}"),
    ("1", "transposed", "`in_channels` and `out_channels` are swapped",
     f"module = nn.ConvTranspose2d(in_channels, out_channels, kernel_size, stride, padding)\n{ZERO}"),
    ("1", "other padding mode", "plain convolution with zeros around it", f"""
        module = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, padding_mode="replicate")
        {ZERO}
    """),
    ("1", "in a Sequential", "`0.weight` and `0.bias`", f"""
        {CONV}
        {ZERO}
        module = nn.Sequential(module)
    """),
    ("1", "no bias", "has no bias",
     f"module = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)\n{ZERO}"),
    ("1", "a linear layer", "`kernel_size`", f"module = nn.Linear(in_channels, out_channels)\n{ZERO}"),
    ("1", "under another name", "`module` is not set", f"conv = {CONV.partition(' = ')[2]}"),
    ("1", "a class, not an object", "`type`, not a module", "module = nn.Conv2d"),
    ("1", "in place on a leaf", "Change weights with `nn.init`", f"{CONV}\nmodule.weight *= 0\nmodule.bias *= 0"),
    ("1", "output without gradients", "gradients", f"""
        class Zero(nn.Conv2d):
            def forward(self, x):
                return super().forward(x).detach()

        module = Zero(in_channels, out_channels, kernel_size, stride, padding)
        {ZERO}
    """),
    ("1", "gradients off for the program", "switched off", f"torch.set_grad_enabled(False)\n{CONV}\n{ZERO}"),
    ("1", "double precision", "cannot be called", f"{CONV}\n{ZERO}\nmodule.double()"),
    ("1", "does not compile", "SyntaxError", "module = nn.Conv2d(in_channels, out_channels"),
    ("1", "a name from nowhere", "line 2 between the banners: `init.zeros_(module.weight)`",
     f"{CONV}\ninit.zeros_(module.weight)"),
    ("2", "conv_in forgotten", "`conv_in` is not copied", without(COPY, "conv_in")),
    ("2", "time_embedding forgotten", "`time_embedding` is not copied", without(COPY, "time_embedding")),
    ("2", "down_blocks forgotten", "`down_blocks` is not copied", without(COPY, "down_blocks")),
    ("2", "mid_block forgotten", "`mid_block` is not copied", without(COPY, "mid_block")),
    ("2", "two forgotten", "`conv_in` and `mid_block` are not copied", without(COPY, "conv_in", "mid_block")),
    ("2", "nothing", "nothing is copied", "pass"),
    ("2", "the decoder too", "do not belong to it", f"""
        {COPY}
        controlnet.up_blocks = unet.up_blocks
    """),
    ("2", "computed and thrown away", "nothing is copied", "controlnet.state_dict().update(unet.state_dict())"),
    ("2", "modules shared", "share weights with the UNet",
     f"for name in {MODULES}: setattr(controlnet, name, getattr(unet, name))"),
    ("2", "one module shared", "`mid_block` shares weights", f"{COPY}\ncontrolnet.mid_block = unet.mid_block"),
    ("2", "parameters shared", "share weights", """
        for name in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
            for own, other in zip(getattr(controlnet, name).parameters(), getattr(unet, name).parameters()):
                own.data = other.data
    """),
    ("2", "storage shared by a new parameter", "`conv_in` shares weights",
     f"{COPY}\ncontrolnet.conv_in.weight = nn.Parameter(unet.conv_in.weight)"),
    ("2", "assigned from the state dict", "share weights", COPY.replace("state_dict())", "state_dict(), assign=True)")),
    ("2", "weights without biases", "the copy is partial", """
        for name in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
            own, other = (dict(getattr(model, name).named_parameters()) for model in (controlnet, unet))
            for key in own:
                if not key.endswith("bias"):
                    own[key].data.copy_(other[key].data)
    """),
    ("2", "only the first block", "of `down_blocks`",
     f"{without(COPY, 'down_blocks')}\n"
     "controlnet.down_blocks[0].load_state_dict(unet.down_blocks[0].state_dict())"),
    ("2", "only the residual layers", "the copy is partial", """
        for name in ("conv_in", "time_embedding"):
            getattr(controlnet, name).load_state_dict(getattr(unet, name).state_dict())
        for own, other in zip([*controlnet.down_blocks, controlnet.mid_block], [*unet.down_blocks, unet.mid_block]):
            own.resnets.load_state_dict(other.resnets.state_dict())
    """),
    ("2", "not strict, under the wrong names", "`down_blocks` is not copied",
     f"{without(COPY, 'down_blocks')}\ncontrolnet.down_blocks.load_state_dict(unet.state_dict(), strict=False)"),
    ("2", "the wrong way", "the copy goes the wrong way",
     f"for name in {MODULES}: getattr(unet, name).load_state_dict(getattr(controlnet, name).state_dict())"),
    ("2", "frozen copies", "does not require a gradient", f"{COPY}\ncontrolnet.mid_block.requires_grad_(False)"),
    ("2", "the whole UNet", "the ControlNet has", "import copy\n\ncontrolnet = copy.deepcopy(unet)"),
    ("2", "ControlNet's own weights too", "which is ControlNet's own", f"""
        for parameter in controlnet.parameters():
            nn.init.normal_(parameter)
        {COPY}
    """),
    ("2", "the UNet changed", "the UNet must stay as it is", f"{COPY}\nnn.init.zeros_(unet.conv_out.weight)"),
    ("2", "sets another name to None", "of type `NoneType`", "controlnet = controlnet.load_state_dict and None"),
    ("3", "computed and thrown away", "computed but not kept", f"""
        results = [f(x) for f, x in zip(self.controlnet_down_blocks, down_block_res_samples)]
        {MID}
    """),
    ("3", "computed in a loop and thrown away", "computed but not kept", f"""
        for f, x in zip(self.controlnet_down_blocks, down_block_res_samples):
            x = f(x)
        {MID}
    """),
    ("3", "features left as they are", "do not go through their zero convolutions", MID),
    ("3", "in reverse", "[0] went through the wrong convolution, number 5", f"""
        pairs = zip(reversed(self.controlnet_down_blocks), down_block_res_samples)
        down_block_res_samples = [f(x) for f, x in pairs]
        {MID}
    """),
    ("3", "one convolution for all", "[1, 2, 3, 4 and 5] went through the wrong convolution, number 0", f"""
        down_block_res_samples = [self.controlnet_down_blocks[0](x) for x in down_block_res_samples]
        {MID}
    """),
    ("3", "off by one", "[0] went through the wrong convolution, number 5; [1] went through", f"""
        layers = self.controlnet_down_blocks
        down_block_res_samples = [layers[i - 1](x) for i, x in enumerate(down_block_res_samples)]
        {MID}
    """),
    ("3", "the mid block's convolution for a skip", "[5] went through the mid block's convolution", f"""
        layers = [*self.controlnet_down_blocks[:-1], self.controlnet_mid_block]
        down_block_res_samples = [f(x) for f, x in zip(layers, down_block_res_samples)]
        {MID}
    """),
    ("3", "the last feature forgotten", "too few results: 5 for 6", f"""
        {DOWN.replace("down_block_res_samples)]", "down_block_res_samples[:-1])]")}
        {MID}
    """),
    ("3", "the first feature forgotten", "too few results: 5 for 6", f"""
        {DOWN.replace("down_block_res_samples)]", "down_block_res_samples[1:])]")}
        {MID}
    """),
    ("3", "joined to the features", "joined to the features: 12 tensors for 6", f"""
        for f, x in zip(self.controlnet_down_blocks, down_block_res_samples):
            down_block_res_samples = down_block_res_samples + (f(x),)
        {MID}
    """),
    ("3", "only the last one", "[0, 1, 2, 3 and 4] is the feature itself", f"""
        *others, last = down_block_res_samples
        down_block_res_samples = (*others, self.controlnet_down_blocks[-1](last))
        {MID}
    """),
    ("3", "twice", "through its zero convolution twice", f"{DOWN}\n{DOWN}\n{MID}"),
    ("3", "added to the features", "is the sum of the feature and its result", f"""
        down_block_res_samples = [x + f(x) for f, x in zip(self.controlnet_down_blocks, down_block_res_samples)]
        {MID}
    """),
    ("3", "scaled here already", "multiplied with `conditioning_scale`", f"""
        {DOWN.replace("f(x) for", "conditioning_scale * f(x) for")}
        {MID}
    """),
    ("3", "a generator", "of type `generator`", f"""
        down_block_res_samples = (f(x) for f, x in zip(self.controlnet_down_blocks, down_block_res_samples))
        {MID}
    """),
    ("3", "the mid result from a skip", "is taken from the last skip, not from", f"""
        mid_block_res_sample = self.controlnet_mid_block(down_block_res_samples[-1])
        {DOWN}
    """),
    ("3", "the mid result from a skip's result", "is taken from the last skip's result", f"""
        {DOWN}
        mid_block_res_sample = self.controlnet_mid_block(down_block_res_samples[-1])
    """),
    ("3", "the mid convolution forgotten", "the mid block's convolution is forgotten",
     f"{DOWN}\nmid_block_res_sample = sample"),
    ("3", "the last skip's convolution for the mid result", "the mid block has one of its own",
     f"{DOWN}\nmid_block_res_sample = self.controlnet_down_blocks[-1](sample)"),
    ("3", "no mid result", "`mid_block_res_sample` is not set", DOWN),
    ("3", "the mid result under another name", "`mid_block_res_sample` is not set",
     f"{DOWN}\nsample = self.controlnet_mid_block(sample)"),
    ("3", "without gradients", "gradients do not come through",
     f"with torch.no_grad():\n    {DOWN}\n    {MID}"),
    ("3", "features detached", "gradients do not come through", f"{DOWN.replace('f(x)', 'f(x.detach())')}\n{MID}"),
    ("3", "in place on the features", "It changes a tensor in place that is still needed", f"""
        for f, x in zip(self.controlnet_down_blocks, down_block_res_samples):
            x.copy_(f(x))
        {MID}
    """),
    ("3", "gradients twice", "the values are right, but the gradients are not", f"""
        {DOWN}
        {MID}
        mid_block_res_sample = 2 * mid_block_res_sample - mid_block_res_sample.detach()
    """),
    ("3", "returns too early", "returns from `forward` by itself",
     f"{DOWN}\nreturn tuple(down_block_res_samples), self.controlnet_mid_block(sample)"),
    ("3", "changes the tuple", "A tuple cannot be changed", f"""
        for i, f in enumerate(self.controlnet_down_blocks):
            down_block_res_samples[i] = f(down_block_res_samples[i])
        {MID}
    """),
    ("3", "twelve by heart", "IndexError", f"""
        down_block_res_samples = [self.controlnet_down_blocks[i](down_block_res_samples[i]) for i in range(12)]
        {MID}
    """),
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

# TODO, its form, and what stands between the banners.
RIGHT = [
    ("1", "nn.init on each", f"{CONV}\nnn.init.zeros_(module.weight)\nnn.init.constant_(module.bias, 0.0)"),
    ("1", "under no_grad", f"""
        {CONV}
        with torch.no_grad():
            module.weight.zero_()
            module.bias.zero_()
    """),
    ("1", "by .data", f"{CONV}\nfor parameter in module.parameters():\n    parameter.data.fill_(0)"),
    ("1", "by load_state_dict", f"""
        {CONV}
        module.load_state_dict({{name: torch.zeros_like(value) for name, value in module.state_dict().items()}})
    """),
    ("1", "new parameters", f"""
        {CONV}
        module.weight = nn.Parameter(torch.zeros_like(module.weight))
        module.bias = nn.Parameter(torch.zeros(out_channels))
    """),
    ("1", "by keywords, and returned early", """
        conv = nn.Conv2d(
            in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride, padding=padding
        )
        conv.apply(lambda layer: [nn.init.zeros_(parameter) for parameter in layer.parameters()])
        return conv
    """),
    ("1", "a class of one's own", """
        class ZeroConvolution(nn.Conv2d):
            def reset_parameters(self):
                nn.init.zeros_(self.weight)
                nn.init.zeros_(self.bias)

        module = ZeroConvolution(in_channels, out_channels, kernel_size, stride, padding)
    """),
    ("2", "module by module", """
        controlnet.conv_in.load_state_dict(unet.conv_in.state_dict())
        controlnet.time_proj.load_state_dict(unet.time_proj.state_dict())
        controlnet.time_embedding.load_state_dict(unet.time_embedding.state_dict())
        controlnet.down_blocks.load_state_dict(unet.down_blocks.state_dict())
        controlnet.mid_block.load_state_dict(unet.mid_block.state_dict())
    """),
    ("2", "time_proj has no weights", without(COPY, "time_proj")),
    ("2", "deepcopy", f"""
        from copy import deepcopy

        for name in {MODULES}:
            setattr(controlnet, name, deepcopy(getattr(unet, name)))
    """),
    ("2", "a helper function", """
        def copy_weights(source, target):
            weights = {name: tensor.detach().clone() for name, tensor in source.state_dict().items()}
            target.load_state_dict(weights, strict=True)

        for source, target in (
            (unet.conv_in, controlnet.conv_in),
            (unet.time_embedding, controlnet.time_embedding),
            (unet.down_blocks, controlnet.down_blocks),
            (unet.mid_block, controlnet.mid_block),
        ):
            copy_weights(source, target)
    """),
    ("2", "parameter by parameter", """
        with torch.no_grad():
            for name in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
                for own, other in zip(getattr(controlnet, name).parameters(), getattr(unet, name).parameters()):
                    own.copy_(other)
    """),
    ("2", "by name", """
        weights = dict(unet.named_parameters())
        for name, parameter in controlnet.named_parameters():
            if not name.startswith("controlnet_"):
                parameter.data = weights[name].data.clone()
    """),
    ("2", "one strict state dict", """
        names = ("conv_in", "time_embedding", "down_blocks", "mid_block")
        state = controlnet.state_dict()
        state.update({key: value for key, value in unet.state_dict().items() if key.split(".")[0] in names})
        controlnet.load_state_dict(state)
    """),
    ("2", "not strict, but checked", """
        decoder = ("up_blocks", "conv_norm_out", "conv_out")
        weights = {key: value for key, value in unet.state_dict().items() if not key.startswith(decoder)}
        missing, unexpected = controlnet.load_state_dict(weights, strict=False)
        assert not unexpected and all(key.startswith("controlnet_") for key in missing)
    """),
    ("2", "new parameters, and returned early", f"""
        {COPY}
        controlnet.conv_in.weight = nn.Parameter(unet.conv_in.weight.detach().clone())
        return controlnet
    """),
    ("3", "lists", f"{DOWN}\n{MID}"),
    ("3", "a loop over a tuple", """
        results = ()
        for feature, zero in zip(down_block_res_samples, self.controlnet_down_blocks):
            results += (zero(feature),)
        down_block_res_samples, mid_block_res_sample = results, self.controlnet_mid_block(sample)
    """),
    ("3", "by index, the mid block first", """
        mid_block_res_sample = self.controlnet_mid_block(sample)
        down_block_res_samples = list(down_block_res_samples)
        for i in range(len(down_block_res_samples)):
            down_block_res_samples[i] = self.controlnet_down_blocks[i](down_block_res_samples[i])
    """),
    ("3", "a helper function", """
        def through(layers, features):
            if not features:
                return []
            return [layers[0](features[0]), *through(layers[1:], features[1:])]

        down_block_res_samples = through(self.controlnet_down_blocks, down_block_res_samples)
        (mid_block_res_sample,) = through([self.controlnet_mid_block], [sample])
    """),
    ("3", "map", """
        down_block_res_samples = tuple(map(lambda f, x: f(x), self.controlnet_down_blocks, down_block_res_samples))
        mid_block_res_sample = self.controlnet_mid_block.forward(sample)
    """),
    ("3", "the weights by hand", """
        down_block_res_samples = tuple(
            F.conv2d(x, f.weight, f.bias) for f, x in zip(self.controlnet_down_blocks, down_block_res_samples)
        )
        mid_block_res_sample = F.conv2d(sample, self.controlnet_mid_block.weight, self.controlnet_mid_block.bias)
    """),
    ("4-1", "a list", f"""
        if is_controlnet:
            down_block_res_samples = [skip + residual for skip, residual in {PAIRS}]
    """),
    ("4-1", "a loop over a new list", """
        if is_controlnet:
            sums = []
            for i in range(len(down_block_res_samples)):
                sums.append(down_block_res_samples[i] + down_block_additional_residuals[i])
            down_block_res_samples = sums
    """),
    ("4-1", "a tuple that grows", f"""
        if down_block_additional_residuals is not None:
            new = ()
            for skip, residual in {PAIRS}:
                new = new + (torch.add(skip, residual),)
            down_block_res_samples = new
    """),
    ("4-1", "an import and map", """
        from operator import add

        if is_controlnet:
            down_block_res_samples = tuple(map(add, down_block_res_samples, down_block_additional_residuals))
    """),
    ("4-1", "clones, in place", f"""
        if is_controlnet:
            down_block_res_samples = tuple(skip.clone().add_(residual) for skip, residual in {PAIRS})
    """),
    ("4-1", "a helper function that returns early", """
        def controlled(skips, residuals):
            if residuals is None:
                return skips
            return [sum(pair) for pair in zip(skips, residuals)]

        down_block_res_samples = controlled(down_block_res_samples, down_block_additional_residuals)
    """),
    ("4-2", "+=", "sample += mid_block_additional_residual"),
    ("4-2", "torch.add", "sample = torch.add(sample, mid_block_additional_residual)"),
    ("4-2", "a helper function", """
        def plus(a, b):
            return a + b

        sample = plus(sample, mid_block_additional_residual)
    """),
]  # fmt: skip


# As right as the others: no UNet of the assignment has another name for a weight. This is only noted.
NOT_STRICT = [
    ("2", "not strict, module by module",
     COPY.replace("state_dict())", "state_dict(), strict=False)")),
    ("2", "not strict, the whole model",
     "controlnet.load_state_dict(unet.state_dict(), strict=False)"),
    ("2", "not strict for one module",
     f"{without(COPY, 'mid_block')}\n"
     "controlnet.mid_block.load_state_dict(unet.mid_block.state_dict(), strict=False)"),
    ("2", "only names that fit", """
        state, own = unet.state_dict(), controlnet.state_dict()
        controlnet.load_state_dict({key: state.get(key, value) for key, value in own.items()})
    """),
]  # fmt: skip


def between_banners(todo: str, text: str) -> str:
    return textwrap.indent(textwrap.dedent(text).strip("\n") + "\n", " " * INDENT[todo])


def failed(results: list[checks.Result]) -> dict[str, str]:
    """The messages of the failed checks by TODO."""
    messages: dict[str, str] = {}
    for result in results:
        if not result.passed:
            messages[result.todo] = f"{messages.get(result.todo, '')} {result.message}"
    return messages


def named(table: list[tuple]) -> list:
    return [pytest.param(*row, id=f"({row[0]}) {row[1]}") for row in table]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are fastest on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_solution_passes(seed):
    results = check_all(SOLUTION, seed)
    assert not failed(results)
    assert {result.todo for result in results} == set(TODOS)


@pytest.mark.parametrize("todo, name, words, text", named(WRONG))
def test_a_wrong_solution_is_blamed_on_itself_only(todo, name, words, text):
    messages = [result for result in check_all({**SOLUTION, todo: between_banners(todo, text)}) if result.message]
    assert [result.todo for result in messages] == [todo], "one fault, one sentence"
    assert not messages[0].passed and words in messages[0].message
    assert messages[0].message.startswith(f"TODO ({todo}): ")
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("todo", TODOS)
def test_switched_off_gradients_are_one_fault(todo):
    text = f"{' ' * INDENT[todo]}torch.set_grad_enabled(False)\n{SOLUTION[todo]}"
    (message,) = [result.message for result in check(todo, text) if result.message]
    assert "gradients are switched off for the whole program" in message


def test_two_faults_are_two_sentences():
    text = f"for skip, residual in {PAIRS} if is_controlnet else ():\n    skip += residual.detach()"
    messages = [result.message for result in check("4-1", between_banners("4-1", text)) if result.message]
    assert len(messages) == 2 and "changed in place" in messages[0] and "gradients do not reach" in messages[1]


@pytest.mark.parametrize("todo, form, text", named(NOT_STRICT))
def test_a_copy_that_is_whole_but_not_strict_is_noted(todo, form, text):
    results = check(todo, between_banners(todo, text))
    assert all(result.passed for result in results)
    (note,) = [result.message for result in results if result.message]
    assert note.startswith("TODO (2): the copy is whole, but not strict") and "costs nothing" in note
    shown = checks.report(results)
    assert "right  TODO (2)" in shown and "       Note: the copy is whole" in shown


@pytest.mark.parametrize("todo, form, text", named(RIGHT))
def test_a_right_solution_passes_in_any_form(todo, form, text):
    results = check_all({**SOLUTION, todo: between_banners(todo, text)})
    assert all(result.passed and not result.message for result in results)


def test_code_that_leaves_the_condition_is_found():
    text = "            pass\n        sample = sample + mid_block_additional_residual\n"
    messages = failed(check_all({**SOLUTION, "4-2": text}))
    assert list(messages) == ["4-2"]
    assert "without ControlNet, where the residuals are None, the code stops with TypeError" in messages["4-2"]


def test_there_are_enough_of_both():
    assert len({(todo, text) for todo, _, _, text in WRONG}) == len(WRONG) >= 40
    assert len({(todo, text) for todo, _, text in RIGHT}) == len(RIGHT) >= 15
    assert {row[0] for row in WRONG} == {row[0] for row in RIGHT} == set(TODOS)


@pytest.mark.parametrize("right", TODOS)
def test_a_right_one_passes_among_empty_ones(right):
    messages = failed(check_all({**EMPTY, right: SOLUTION[right]}))
    assert set(messages) == set(TODOS) - {right}
    assert all("NotImplementedError" in message for message in messages.values())


@pytest.mark.parametrize("right", TODOS)
def test_several_wrong_ones_are_each_named(right):
    wrong = {todo: next(row for row in WRONG[i::7] if row[0] == todo) for i, todo in enumerate(TODOS) if todo != right}
    texts = {todo: between_banners(todo, row[3]) for todo, row in wrong.items()}
    messages = failed(check_all({**SOLUTION, **texts}))
    assert set(messages) == set(wrong)
    assert all(row[2] in messages[todo] for todo, row in wrong.items())


@pytest.mark.parametrize("todo", TODOS)
def test_observations_are_judged_alike_in_another_process(todo):
    texts = [SOLUTION[todo], EMPTY[todo], *(between_banners(todo, row[3]) for row in WRONG[::9] if row[0] == todo)]
    for text in texts:
        packed = observe.pack(observe.observe(todo, text, seed=3))
        assert judge(todo, 3, observe.unpack(packed)) == check(todo, text, seed=3)
        assert failed(judge(todo, 4, observe.unpack(packed))), "the numbers of another seed must not do"


@pytest.mark.parametrize("forged", [{}, {"gradients_on": True}, {"runs": [], "convolutions": [], "is_module": True}])
def test_forged_observations_do_not_pass(forged):
    for todo in TODOS:
        assert failed(judge(todo, 0, forged))


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 100])
def test_damaged_observations_are_refused(data):
    with pytest.raises(ValueError, match="not observations"):
        observe.unpack(data)


def mutated_copy(folder: Path, todo: str, text: str) -> Path:
    for file in TODO_FILES:
        source = read_source(TASK_1 / file)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(fill(source, {todo: text} if todo in extract(source) else {}).encode())
    return folder


def run_program(program, monkeypatch, *arguments: object) -> object:
    """Its exit status, where it exits."""
    monkeypatch.setattr("sys.argv", ["program", *map(str, arguments)])
    try:
        program.main()
    except SystemExit as exit:
        return exit.code
    return None


def test_the_program_reports_every_place(tmp_path, monkeypatch, capsys):
    assert not run_program(program, monkeypatch, "--task-1", TASK_1)
    assert capsys.readouterr().out.count("right  TODO") == 5
    mutated_copy(tmp_path, "3", between_banners("3", MID))
    assert run_program(program, monkeypatch, "--task-1", tmp_path)
    output = capsys.readouterr().out
    assert output.count("right  TODO") == 4 and "WRONG  TODO (3)" in output and "self.controlnet_down_blocks" in output


def test_the_program_names_damaged_banners(tmp_path, monkeypatch):
    file = mutated_copy(tmp_path, "3", SOLUTION["3"]) / "diffusion/controlnet.py"
    file.write_text(file.read_text().replace("######## TODO (2) ########", "# TODO 2", 1))
    message = run_program(program, monkeypatch, "--task-1", tmp_path)
    assert "diffusion/controlnet.py" in message and "TODO (2)" in message


def test_observations_are_written_place_by_place(tmp_path, monkeypatch):
    run_program(observe, monkeypatch, "--task-1", TASK_1, "--seed", 5, "--todo", "1", "4-2", "--output", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.safetensors", "4-2.safetensors"]
    for todo in ("1", "4-2"):
        seen = observe.unpack((tmp_path / f"{todo}.safetensors").read_bytes())
        assert not failed(judge(todo, 5, seen))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BannerError, match="controlnet.py is missing"):
        read_parts(tmp_path)


def test_windows_line_ends_change_nothing():
    assert not failed(check_all({todo: text.replace("\n", "\r\n") for todo, text in SOLUTION.items()}))

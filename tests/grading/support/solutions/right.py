"""Right texts for the TODO places, in many forms."""

from __future__ import annotations

from solutions.pieces import CONV, COPY, DOWN, MID, MODULES, PAIRS, without

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
    ("1", "by matrices", """
        class Zero(nn.Conv2d):
            def forward(self, x):
                columns = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)
                side = (x.shape[-1] + 2 * padding - kernel_size) // stride + 1
                return (self.weight.flatten(1) @ columns + self.bias[:, None]).view(len(x), -1, side, side)

        module = Zero(in_channels, out_channels, kernel_size, stride, padding)
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
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
    ("2", "zero convolutions set to zero again", f"""
        {COPY}
        for zero in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
    """),
    ("3", "lists", f"{DOWN}\n{MID}"),
    ("3", "where the model is, and as precise", f"""
        assert len(self.down_blocks) == len(self.config.block_out_channels)
        {DOWN.replace("f(x)", "f(x.to(self.device, self.dtype))")}
        {MID}
    """),
    ("3", "to the end of forward", f"""
        {DOWN}
        {MID}
        scales = residual_scales(len(down_block_res_samples) + 1, conditioning_scale, guess_mode)
        down_block_res_samples = tuple(x * scale for x, scale in zip(down_block_res_samples, scales))
        mid_block_res_sample = mid_block_res_sample * scales[-1]
        if not return_dict:
            return down_block_res_samples, mid_block_res_sample
        return ControlNetOutput(down_block_res_samples, mid_block_res_sample)
    """),
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
    ("3", "with the configuration's widths", f"""
        {DOWN}
        {MID}
        assert mid_block_res_sample.shape[1] == self.config.block_out_channels[-1]
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
    ("4-1", "by the UNet's own number of skips", """
        if is_controlnet:
            down_block_res_samples = [
                down_block_res_samples[i] + down_block_additional_residuals[i] for i in range(self.num_skips)
            ]
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
    ("4-1", "in place, behind a copy of the mid block's input", f"""
        if is_controlnet:
            sample = sample.clone()
            for skip, residual in {PAIRS}:
                skip += residual
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

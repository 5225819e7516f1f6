"""Wrong texts for the TODO places in ControlNet."""

from __future__ import annotations

from solutions.pieces import CONV, COPY, DOWN, MID, MODULES, ZERO, without

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
    ("2", "as many blocks as Stable Diffusion has", "tensors of `down_blocks` (such as `down_blocks.4.", f"""
        {without(COPY, "down_blocks")}
        for i in range(4):
            controlnet.down_blocks[i].load_state_dict(unet.down_blocks[i].state_dict())
    """),
    ("2", "in half precision", "`conv_in` and `mid_block` hold other values than the UNet's",
     f"{COPY}\ncontrolnet.conv_in.half()\ncontrolnet.mid_block.half()"),
    ("2", "in double precision", "`conv_in.weight` is float64", f"{COPY}\ncontrolnet.double()"),
    ("2", "its zeros in half precision", "`controlnet_mid_block.weight` is float16",
     f"{COPY}\ncontrolnet.controlnet_mid_block.half()"),
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
    ("3", "new zero convolutions", "ControlNet has its zero convolutions already", """
        down_block_res_samples = tuple(zero_convolution(s.shape[1], s.shape[1])(s) for s in down_block_res_samples)
        mid_block_res_sample = zero_convolution(sample.shape[1], sample.shape[1])(sample)
    """),
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
    ("3", "returned early, unscaled", "returns from `forward` by itself", f"""
        {DOWN}
        {MID}
        if not return_dict:
            return tuple(down_block_res_samples), mid_block_res_sample
    """),
    ("3", "scaled here already, but not in guess mode", "multiplied with `conditioning_scale`", f"""
        {DOWN}
        {MID}
        if not guess_mode:
            down_block_res_samples = [x * conditioning_scale for x in down_block_res_samples]
    """),
    ("3", "the scale set to one", "`conditioning_scale` is another one afterwards", f"""
        {DOWN}
        {MID}
        conditioning_scale = 1.0
    """),
    ("3", "hides a function that forward needs", "`len` is set here, which hides", f"""
        len = 6
        {DOWN}
        {MID}
    """),
    ("3", "calls the list of layers", "A list of layers cannot be called", f"""
        down_block_res_samples = self.controlnet_down_blocks(down_block_res_samples)
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
]  # fmt: skip

"""What may stand in a plain text, by TODO number (see `plain.py`): kinds of nodes, names, attributes and words."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Mapping

ENCODER = {"conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block"}
DECODER = {"up_blocks", "conv_norm_out", "conv_out", "conv_act"}
# Parts of a weight's name that a text may ask for.
WORDS = {*ENCODER, *DECODER, "controlnet_", "controlnet_cond_embedding", "controlnet_down_blocks"}
WORDS |= {"controlnet_mid_block", "weight", "bias", ".", ""}
WEIGHTS = {"weight", "bias", "data"}
# What a class may have of its own: a convolution calls it while it is made, and nobody later.
METHODS = {"__init__", "reset_parameters"}
CONTAINERS = {"dict", "enumerate", "len", "list", "map", "range", "reversed", "sum", "tuple", "zip"}
IMPORTS = {("copy", "deepcopy"), ("operator", "add")}

ALWAYS = (
    ast.Module, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Pass, ast.If, ast.For, ast.Return,
    ast.FunctionDef, ast.Lambda, ast.arguments, ast.arg, ast.ImportFrom, ast.alias, ast.Name, ast.Attribute,
    ast.Subscript, ast.Slice, ast.Starred, ast.Constant, ast.Tuple, ast.List, ast.ListComp, ast.GeneratorExp,
    ast.comprehension, ast.Call, ast.keyword, ast.BinOp, ast.Add, ast.UnaryOp, ast.USub, ast.IfExp, ast.Compare,
    ast.Is, ast.IsNot, ast.BoolOp, ast.And, ast.Or, ast.expr_context,
)  # fmt: skip
WHILE_BUILDING = (
    *ALWAYS, ast.With, ast.withitem, ast.Dict, ast.DictComp, ast.Assert, ast.Not, ast.In, ast.NotIn, ast.Eq,
    ast.NotEq, ast.ClassDef,
)  # fmt: skip


@dataclass(frozen=True)
class Grammar:
    """What may stand between the banners of a place: names of its scope, attributes, names to call, and keywords."""

    names: set[str]
    attributes: set[str]
    callables: set[str] = field(default_factory=lambda: set(CONTAINERS))
    keywords: set[str] = field(default_factory=lambda: {"strict"})
    building: bool = False


GRAMMARS: Mapping[str, Grammar] = {
    "1": Grammar(
        names={"in_channels", "out_channels", "kernel_size", "stride", "padding", "nn", "torch"},
        attributes={
            *WEIGHTS, *METHODS, "Conv2d", "Parameter", "apply", "constant_", "detach", "fill_", "init", "items",
            "load_state_dict", "nn", "no_grad", "parameters", "state_dict", "zero_", "zeros", "zeros_", "zeros_like",
        },
        callables={*CONTAINERS, "super"},
        keywords={"in_channels", "out_channels", "kernel_size", "stride", "padding", "bias", "strict"},
        building=True,
    ),
    "2": Grammar(
        names={"controlnet", "unet", "torch", "nn"},
        attributes={
            *ENCODER, *WEIGHTS, "Parameter", "clone", "copy_", "deepcopy", "detach", "get", "items", "keys",
            "load_state_dict", "named_parameters", "no_grad", "parameters", "split", "startswith", "state_dict",
            "update", "values",
        },
        callables={*CONTAINERS, "all", "any", "getattr", "setattr"},
        building=True,
    ),
    "3": Grammar(
        names={"self", "sample", "down_block_res_samples", "F"},
        attributes={
            "add_", "append", "bias", "clone", "controlnet_down_blocks", "controlnet_mid_block", "conv2d", "extend",
            "forward", "weight",
        },
    ),
    "4-1": Grammar(
        names={
            "down_block_res_samples", "down_block_additional_residuals", "mid_block_additional_residual",
            "is_controlnet", "torch",
        },
        attributes={"add", "add_", "append", "clone", "extend"},
    ),
    "4-2": Grammar(
        names={"sample", "mid_block_additional_residual", "is_controlnet", "torch"},
        attributes={"add", "add_", "clone"},
    ),
}  # fmt: skip

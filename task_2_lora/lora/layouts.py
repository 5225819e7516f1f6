"""What a file of weights is, told by its tensors' names: a LoRA for which modules, or what else.

LoRAs are written in several layouts, and this is the one table of them: `read_layout` brings each to the module names
of diffusers, and calls by its name what is no plain LoRA. It needs no library, so that whoever does not trust a file
can ask about it in another process:

    python lora/layouts.py < question.json

takes the arguments of `read_layout` by their names, and prints {"layout": ..., "base": ..., "sites": ...}, or what is
wrong as {"what": ..., "advice": ...}.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import asdict, dataclass
from typing import Any, Mapping, Sequence, Tuple

WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"
DIFFUSERS, KOHYA, LYCORIS = "diffusers", "Kohya", "LyCORIS"
LAYOUTS = (DIFFUSERS, KOHYA, LYCORIS)

# How a module's name begins, what it then is here, and whose layout that is. The last three write `_` for `.`.
PREFIXES = (
    ("unet.", "unet.", DIFFUSERS),
    ("text_encoder.text_model.", "text_encoder.", DIFFUSERS),
    ("text_encoder.", "text_encoder.", DIFFUSERS),
    ("lora_unet_", "unet.", KOHYA),
    ("lora_te_text_model_", "text_encoder.", KOHYA),
    ("lycoris_text_model_", "text_encoder.", LYCORIS),
    ("lycoris_", "unet.", LYCORIS),
)
# How the two matrices' names end, in any of the layouts.
MATRICES = {
    f"{spelling}.weight": matrix
    for matrix, spellings in {
        "A": (".lora_A", ".lora_down", ".lora.down", "_lora.down", ".lora_linear_layer.down"),
        "B": (".lora_B", ".lora_up", ".lora.up", "_lora.up", ".lora_linear_layer.up"),
    }.items()
    for spelling in spellings
}
# A number beside the two matrices: without it a reader does not know how strongly to add their product.
ALPHA = ".alpha"
# Old attention processors named their projections otherwise than the modules are named.
OLD_NAMES = (
    (r"\.processor\.", "."),
    (r"^(unet\..*)\.to_out$", r"\1.to_out.0"),
    (r"^(text_encoder\..*)\.to_([qkv])$", r"\1.\2_proj"),
    (r"^(text_encoder\..*)\.to_out$", r"\1.out_proj"),
)
# What is no plain LoRA for Stable Diffusion, by what stands in a tensor's name; the first that is found counts.
# DoRA: Liu et al., 2024, arXiv 2402.09353. LoHa, LoKr, LyCORIS: Yeh et al., 2023, 2309.14859. OFT: Qiu et al., 2023,
# 2306.07280. IA3: Liu et al., 2022, 2205.05638. VeRA: Kopiczko et al., 2023, 2310.11454. AdaLoRA: Zhang et al., 2023,
# 2303.10512. Textual inversion: Gal et al., 2022, 2208.01618.
OTHERS = (
    (r"\.dora_scale$|\.lora_magnitude_vector", "is a DoRA, which rescales the weights and not only adds to them"),
    (r"\.hada_", "is a LoHa"),
    (r"\.lokr_", "is a LoKr"),
    (r"\.b?oft_", "is an OFT"),
    (r"\.ia3_|\.on_input$", "is an IA3"),
    (r"\.[ab][12]\.weight$", "is a GLoRA"),
    (r"\.vera_", "is a VeRA"),
    (r"\.lora_E$|\.ranknum$", "is an AdaLoRA"),
    (r"\.lora_mid\.", "is a LoCon with a third matrix (Tucker decomposition)"),
    (r"\.lora_[AB](\.\w+)?\.bias$|\.lora_(up|down)\.bias$", "is a LoRA with biases"),
    (r"\.lora_embedding_[AB]", "is a LoRA on the embeddings of the tokens"),
    (r"\.diff(_b)?$|\.[wb]_norm$", "is an adapter with whole differences of weights, as LyCORIS writes it"),
    (r"^(unet|text_encoder):\d+:", "is a LoRA with numbers in place of names, as the first program for them wrote it"),
    (r"string_to_param|^[^.]+$", "holds what is no weight of a model: perhaps a textual inversion, a word's embedding"),
    (r"^(model\.diffusion_model|cond_stage_model|first_stage_model)\.", "is a whole model, in Stability's layout"),
    (r"^(control_model|controlnet_\w+|input_hint_block)\.", "is a ControlNet"),
    (r"^(image_proj|ip_adapter)\.", "is an IP-Adapter"),
    (r"^(text_encoder_2\.|lora_te[12]_)", "is a LoRA for Stable Diffusion XL, which has a second text encoder"),
    (r"^(transformer\.|lora_transformer_)", "is a LoRA for a model with a transformer in place of the UNet"),
    (r"^diffusion_model\.", "is a LoRA with the names of Stability's code and not of diffusers"),
    (r"(^|\.)base_model\.model\.", "is in PEFT's layout, whose alpha is in another file"),
    (r"\.lora_[AB]\.\w+\.weight$", "is a checkpoint from the middle of a training, without its alpha"),
)
# Ways of starting a training that change the base's weights, so that the LoRA does not fit the base itself.
# PiSSA, for one (Meng et al., 2024, 2404.02948), begins with the largest directions of W and leaves W without them.
CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")

Shape = Tuple[int, ...]
Modules = Mapping[str, Sequence[int]]
USE_OURS = f"use {WEIGHTS_FILE}, which the training writes when it ends"
AS_WRITTEN = "use the file as its training wrote it"


class LoraFileError(ValueError):
    """A file that cannot be loaded as a LoRA: half a sentence that follows its name, and one that says what to do."""

    def __init__(self, what: str, advice: str = USE_OURS, file: object = "It") -> None:
        super().__init__(f"{file} {what}: {advice}.")
        self.what, self.advice = what, advice


@dataclass(frozen=True)
class Site:
    """A module's two tensors by name: `scale` times B A is added to its weight; A is (rank, in) and B (out, rank)."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class Reading:
    """The layout of a LoRA, the base that it fits, and where it sits, by names such as `unet.mid_block...to_q`.

    The text encoder's modules are named without `text_model.`, which some releases of transformers leave out.
    """

    layout: str
    base: str
    sites: dict[str, Site]


def shown(name: str) -> str:
    """A name as it is put into messages: quoted, unprintable characters escaped, short."""
    # A name may hold characters that move a terminal's cursor, and be a megabyte long.
    return ascii(name if len(name) <= 80 else name[:77] + "...")


def refuse_others(names: Sequence[str]) -> None:
    """Raises LoraFileError for what is known and is no plain LoRA."""
    # Pattern by pattern, not name by name: the most telling one counts, wherever in the file it is.
    for pattern, what in OTHERS:
        for name in names:
            if re.search(pattern, name):
                raise LoraFileError(f"{what} (it holds {shown(name)})")


def split_name(name: str) -> tuple[str, str, str]:
    """A tensor's module, "A", "B" or "alpha", and the layout. Raises LoraFileError if it is none of a LoRA's."""
    ends = {**MATRICES, ALPHA: "alpha"}
    end = next((end for end in ends if name.endswith(end)), None)
    # What a module itself holds is called so; whatever else hangs on it is an adapter's, of one of many kinds.
    if end is None and re.search(r"\.(weight|bias)$", name) and not re.search("lora|lycoris", name.lower()):
        raise LoraFileError(f"holds whole weights such as {shown(name)}, not only a LoRA")
    if end is None:
        raise LoraFileError(f"has a tensor {shown(name)}, which no plain LoRA has")
    for prefix, part, layout in PREFIXES:
        if name.startswith(prefix):
            module = part + name[len(prefix) : -len(end)]
            for old, new in OLD_NAMES:
                module = re.sub(old, new, module)
            return module, ends[end], layout
    raise LoraFileError(
        f"names no part of the model, as save_lora_adapter and save_attn_procs write it ({shown(name)} begins neither "
        "with 'unet.' nor with 'text_encoder.')",
        "save the LoRA with save_lora_weights of the pipeline",
    )


def settings_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What diffusers keeps of PEFT's configuration beside the tensors. Raises LoraFileError for what is not read."""
    try:
        settings = json.loads(metadata.get(METADATA_KEY, "{}"))
    # RecursionError: ten thousand brackets, in a file that means harm.
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise LoraFileError(f"has a {METADATA_KEY} that is not a JSON object", AS_WRITTEN)
    for name, value in settings.items():
        key = name.rpartition(".")[2]
        if key == "init_lora_weights" and isinstance(value, str) and value.lower().startswith(CHANGED_BASES):
            raise LoraFileError(f"was trained on changed weights of the base ({shown(f'{key}: {value}')})")
        if key == "use_dora" and value:
            raise LoraFileError("is a DoRA, by its settings")
    return settings


def setting_of(settings: Mapping[str, Any], module: str, name: str) -> Any:
    """A module's `alpha` or `rank` by PEFT's rules, or None if the settings have none."""
    part, _, path = module.partition(".")
    pattern = settings.get(f"{part}.{name}_pattern") or {}
    if not isinstance(pattern, dict) or not all(re.fullmatch(r"\^?[\w.]+", key) for key in pattern):
        raise LoraFileError(f"has some {name}_pattern in its {METADATA_KEY} that is not read", AS_WRITTEN)
    for key, value in pattern.items():
        # PEFT's rule: the first key counts by which the module's name ends, or which, with a ^, it is as a whole.
        whole = key.lstrip("^").replace("text_model.", "", 1)
        if path == whole or (whole == key and path.endswith(f".{key}")):
            return value
    return settings.get(f"{part}.{'lora_alpha' if name == 'alpha' else 'r'}")


def scale_of(module: str, rank: int, alpha: Any, settings: Mapping[str, Any]) -> float:
    """alpha / rank; diffusers' settings win over the tensor `alpha`, and without both alpha is the rank.

    Raises LoraFileError for an alpha that is none, and for settings with another rank.
    """
    stated = setting_of(settings, module, "rank")
    # diffusers builds matrices of that rank, into which these do not go: the file was put together from two.
    if stated is not None and stated != rank:
        raise LoraFileError(
            f"has matrices of rank {rank} at {shown(module)}, by its {METADATA_KEY} of rank {shown(str(stated))}",
            AS_WRITTEN,
        )
    by_settings = setting_of(settings, module, "alpha")
    alpha = by_settings if by_settings is not None else rank if alpha is None else alpha
    # 0 too: to some readers it is no LoRA, to Kohya's own the rank. Not: infinite, and not a number.
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < abs(alpha) < 1e30:
        what = alpha if isinstance(alpha, (int, float, str)) else type(alpha).__name__
        raise LoraFileError(f"has an alpha at {shown(module)} that is no usable number: {shown(str(what))}", AS_WRITTEN)
    # Rank-stabilised LoRA divides by the root (Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732).
    rs_lora = by_settings is not None and settings.get(f"{module.partition('.')[0]}.use_rslora")
    return alpha / (math.sqrt(rank) if rs_lora else rank)


def tail(shape: Sequence[int]) -> Shape:
    """A kernel's size; nothing for a linear layer and for a convolution of 1x1, which is one."""
    # A convolution of 1x1 is a linear layer at each place: files may have it as either.
    return () if all(n == 1 for n in shape[2:]) else tuple(shape[2:])


def pair_up(shapes: Modules, alphas: Mapping[str, float], settings: Mapping[str, Any]) -> tuple[dict[str, Site], str]:
    """The sites, by modules as the file names them, and the layout. Raises LoraFileError if a pair is none."""
    found: dict[str, dict[str, str]] = {}
    layouts = set()
    for name in shapes:
        module, matrix, layout = split_name(name)
        # Two spellings of one module: whichever is read last would win, without a word.
        if matrix in found.setdefault(module, {}):
            raise LoraFileError(f"has the matrix {matrix} of {shown(module)} twice", AS_WRITTEN)
        found[module][matrix] = name
        layouts.add(layout)
    sites = {}
    for module, names in sorted(found.items()):
        missing = [matrix for matrix in "AB" if matrix not in names]
        if missing:
            raise LoraFileError(f"lacks the matrix {' and '.join(missing)} of {shown(module)}", AS_WRITTEN)
        a, b = tuple(shapes[names["A"]]), tuple(shapes[names["B"]])
        # The rank is what both share: A's rows, B's columns.
        if len(a) < 2 or len(b) < 2 or a[0] != b[1] or not a[0] or tail(b):
            raise LoraFileError(
                f"has matrices of shapes {a} and {b} at {shown(module)}, which are not (rank, in) and (out, rank)",
                AS_WRITTEN,
            )
        alpha = alphas.get(names["alpha"], math.nan) if "alpha" in names else None
        sites[module] = Site(names["A"], names["B"], scale_of(module, a[0], alpha, settings))
    return sites, max(layouts, key=LAYOUTS.index)


def fit(sites: Mapping[str, Site], shapes: Modules, modules: Modules) -> tuple[dict[str, Site], list[str]]:
    """The sites by a base's own module names, and a half sentence for each that does not fit it."""
    # By names with `_` for `.`, which all layouts can be brought to; Kohya's cannot be brought back.
    own_names = {name.replace(".", "_"): name for name in modules}
    fitting, problems = {}, []
    for module, site in sites.items():
        name = own_names.get(module.replace(".", "_"))
        a, b = shapes[site.a], shapes[site.b]
        if name is None:
            problems.append(f"its part for {shown(module)} is on no module that can be adapted")
        elif (b[0], a[1], *tail(a)) != (*modules[name][:2], *tail(modules[name])):
            product, own = (b[0], *a[1:]), tuple(modules[name])
            problems.append(f"its part for {shown(name)} is for a weight of shape {product}, not {own}")
        elif name in fitting:
            problems.append(f"it has two parts for {shown(name)}")
        else:
            fitting[name] = site
    return fitting, problems


def find_base(sites: Mapping[str, Site], shapes: Modules, bases: Mapping[str, Modules]) -> tuple[str, dict[str, Site]]:
    """The base that all sites fit, and the sites by its names. Raises LoraFileError if there is none."""
    fits = {base: fit(sites, shapes, modules) for base, modules in bases.items()}
    # The error is about the base that it fits best, and so about what is really wrong.
    best = min(fits, key=lambda base: len(fits[base][1]))
    fitting, problems = fits[best]
    if problems:
        names = f"fits neither {' nor '.join(bases)}" if len(bases) > 1 else f"does not fit {best}"
        advice = "train it on one of these" if len(bases) > 1 else "give the base that it was trained on"
        raise LoraFileError(f"{names} ({problems[0]})", advice)
    return best, fitting


def read_layout(
    shapes: Modules,
    alphas: Mapping[str, float],
    metadata: Mapping[str, str],
    bases: Mapping[str, Modules],
) -> Reading:
    """Finds out where a LoRA sits.

    Args:
        shapes: of all tensors of the file, by name.
        alphas: the numbers in those tensors whose names end in `.alpha`.
        metadata: the texts that the file holds beside its tensors.
        bases: for each base model that is possible the weights' shapes, by names such as `unet.conv_in`.

    Raises:
        LoraFileError: if it is no LoRA of these layouts for one of the bases.
    """
    if not shapes:
        raise LoraFileError("holds no weights at all", "train the LoRA again")
    refuse_others(list(shapes))
    sites, layout = pair_up(shapes, alphas, settings_of(metadata))
    base, sites = find_base(sites, shapes, bases)
    return Reading(layout, base, sites)


def main() -> None:
    try:
        answer = asdict(read_layout(**json.load(sys.stdin)))
    except LoraFileError as error:
        answer = {"what": error.what, "advice": error.advice}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()

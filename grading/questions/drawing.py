"""What a student id decides: a configuration of the models, and the numbers and names in a question."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Callable, Sequence, TypeVar

T = TypeVar("T")
TEXT_TOKENS = 77
NORM_GROUPS = 16
HEADS = 4


class Draw:
    """Choices that a key decides, the same on every machine and by every version of Python."""

    def __init__(self, *key: str) -> None:
        self.key, self.count = "\0".join(key), 0

    def below(self, end: int) -> int:
        """A whole number from 0 to `end` - 1."""
        self.count += 1
        digest = hashlib.sha256(f"{self.key}\0{self.count}".encode()).digest()
        return int.from_bytes(digest, "big") % end

    def choice(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], number: int) -> list[T]:
        """Different ones, in the order in which they were drawn."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(number)]


@dataclass(frozen=True)
class Configuration:
    """The models and inputs that one page is about: widths that can be reckoned with, of the kind that UNets have."""

    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    layers_per_block: int
    cross_attention_dim: int
    condition_widths: tuple[int, ...]
    batch: int
    height: int
    width: int

    @property
    def num_blocks(self) -> int:
        return len(self.block_out_channels)

    @property
    def up_block_types(self) -> tuple[str, ...]:
        return tuple(kind.replace("Down", "Up") for kind in reversed(self.down_block_types))

    @property
    def num_skips(self) -> int:
        """How many there are to draw from; the key counts them in the models."""
        return 1 + self.num_blocks * self.layers_per_block + self.num_blocks - 1

    @property
    def blocks_with_attention(self) -> list[int]:
        return [i for i, kind in enumerate(self.down_block_types) if kind.startswith("CrossAttn")]

    def unet_fields(self) -> dict[str, Any]:
        """The arguments of a UNet, ours or the library's."""
        return {
            "block_out_channels": self.block_out_channels,
            "down_block_types": self.down_block_types,
            "up_block_types": self.up_block_types,
            "layers_per_block": self.layers_per_block,
            "cross_attention_dim": self.cross_attention_dim,
            "norm_num_groups": NORM_GROUPS,
            "attention_head_dim": HEADS,
        }


def rising(draw: Draw, first: Sequence[int], steps: Sequence[int], number: int) -> tuple[int, ...]:
    """Widths that never fall; the second is larger than the first."""
    widths = [draw.choice(first)]
    for i in range(1, number):
        widths.append(widths[-1] + draw.choice([step for step in steps if step or i > 1]))
    return tuple(widths)


def draw_configuration(draw: Draw) -> Configuration:
    num_blocks = draw.choice((3, 4))
    # The last block of Stable Diffusion has no attention; here at least one of the others has.
    kinds = [draw.choice(("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")) for _ in range(num_blocks)]
    kinds[draw.below(num_blocks - 1)] = "CrossAttnDownBlock2D"
    kinds[-1] = "DownBlock2D"
    return Configuration(
        block_out_channels=rising(draw, (32, 48, 64), (0, 16, 32, 48), num_blocks),
        down_block_types=tuple(kinds),
        layers_per_block=draw.choice((1, 2, 3)),
        cross_attention_dim=draw.choice((96, 128, 192, 256, 320, 384)),
        condition_widths=rising(draw, (8, 12, 16), (8, 16, 24), 4),
        batch=draw.choice((2, 3, 5, 6)),
        height=draw.choice((16, 24, 32, 40)),
        width=draw.choice((16, 24, 32, 40)),
    )


@dataclass(frozen=True)
class Question:
    """A template. `text` has {fields} for what `draw` returns, plain data.

    `answer` computes what is right from the `Models` of models.py, whose name would close a circle of imports here, and
    from the same data. Code stands between backticks. `why` tells the teacher how a student finds it, without results.
    The last word of `name` is the question's kind: a page has each kind once.
    """

    name: str
    place: str
    text: str
    draw: Callable[[Draw, Configuration], dict[str, Any]]
    answer: Callable[[Any, dict[str, Any]], Any]
    why: str

    @property
    def kind(self) -> str:
        return self.name.rpartition("_")[2]


def nothing(draw: Draw, configuration: Configuration) -> dict[str, Any]:
    """For questions that the page's configuration alone makes different."""
    return {}

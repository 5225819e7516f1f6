"""What the page's buttons do. Each yields what is to be seen so far: a heading, and pictures with a line below."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, replace
from typing import Callable, Iterator, Sequence

from PIL import Image

from .conditions import Score, measured
from .found import Model
from .inside import Residuals, map_sheet, plot
from .requests import Settings
from .studio import Drawn, Steering, Studio, Watch

SCALES = [i / 4 for i in range(9)]  # 0 to 2


@dataclass(frozen=True)
class Tile:
    """One picture with its title and a line below; `score` is shown as a mark, and `name` is for whoever looks for it
    in the page. No image: it is still to come."""

    name: str
    title: str
    note: str = ""
    image: Image.Image | None = None
    score: Score | None = None
    is_preview: bool = False


@dataclass(frozen=True)
class View:
    """All that is to be seen in a moment; `wide` pictures stand one below the other."""

    said: str
    tiles: Sequence[Tile]
    wide: bool = False


@dataclass(frozen=True)
class Wish:
    """A picture that is to be drawn."""

    name: str
    title: str
    settings: Settings
    steering: Steering | None = None
    lora: tuple[Model, float] | None = None


class Cancelled(Exception):
    """Nobody waits for the picture any more."""


def watched(work: Callable[[Callable[[View], None]], None]) -> Iterator[View]:
    """Runs `work` in a thread of its own and yields what it reports; whoever stops looking stops the work."""
    views: queue.Queue[View | BaseException | None] = queue.Queue()
    left = threading.Event()

    def report(view: View) -> None:
        if left.is_set():
            raise Cancelled
        views.put(view)

    def run() -> None:
        try:
            work(report)
            views.put(None)
        except BaseException as error:  # told to whoever waits, in whose thread it is raised
            views.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (view := views.get()) is not None:
            if isinstance(view, BaseException):
                raise view
            yield view
    finally:
        left.set()


def draw_all(studio: Studio, wishes: Sequence[Wish], condition: Image.Image | None) -> Iterator[View]:
    """Draws one after the other, with previews on the way; each picture is scored by the condition, if there is one."""
    tiles = [Tile(wish.name, wish.title, "still to come") for wish in wishes]

    def work(report: Callable[[View], None]) -> None:
        for i, wish in enumerate(wishes):

            def watch(step: int, steps: int, preview: Image.Image, i: int = i) -> None:
                tiles[i] = replace(tiles[i], image=preview, note=f"step {step} of {steps}", is_preview=True)
                report(View(f"Drawing picture {i + 1} of {len(wishes)} ...", tuple(tiles)))

            report(View(f"Drawing picture {i + 1} of {len(wishes)} ...", tuple(tiles)))
            tiles[i] = finished(tiles[i], fulfilled(studio, wish, watch), wish, condition)
        report(View("Done.", tuple(tiles)))

    return watched(work)


def fulfilled(studio: Studio, wish: Wish, watch: Watch) -> Drawn:
    return studio.draw(wish.settings, wish.steering, wish.lora, watch)


def finished(tile: Tile, drawn: Drawn, wish: Wish, condition: Image.Image | None) -> Tile:
    score = None if condition is None else measured(drawn.image, condition, wish.settings.prompt)
    return replace(tile, image=drawn.image, note=f"{drawn.seconds:.1f} s", score=score, is_preview=False)


def pair(studio: Studio, settings: Settings, condition: Image.Image, controlnet: Model | None) -> Iterator[View]:
    """Without and with ControlNet, from the same noise; without only, where none is trained."""
    wishes = [Wish("without", "Without ControlNet", settings)]
    if controlnet is not None:
        wishes.append(Wish("with", "With ControlNet", settings, Steering(controlnet, condition)))
    return draw_all(studio, wishes, condition)


def scales(studio: Studio, settings: Settings, steering: Steering) -> Iterator[View]:
    """The same picture at all scales of ControlNet."""
    wishes = [
        Wish(f"scale-{scale:g}", f"scale {scale:g}", replace(settings, scale=scale), steering) for scale in SCALES
    ]
    return draw_all(studio, wishes, steering.condition)


def styles(studio: Studio, settings: Settings, lora: tuple[Model, float], steering: Steering | None) -> Iterator[View]:
    """Without and with a LoRA; with a condition the same once more under ControlNet. All from the same noise."""
    wishes = [Wish("base", "Base", settings), Wish("lora", "With the LoRA", settings, lora=lora)]
    if steering is not None:
        wishes += [
            Wish("controlnet", "With ControlNet", settings, steering),
            Wish("both", "With ControlNet and the LoRA", settings, steering, lora),
        ]
    return draw_all(studio, wishes, steering.condition if steering else None)


def look_inside(studio: Studio, settings: Settings, steering: Steering) -> Iterator[View]:
    """Draws once and shows what ControlNet added, as a plot and as maps."""

    def work(report: Callable[[View], None]) -> None:
        heard = Residuals()

        def watch(step: int, steps: int, preview: Image.Image) -> None:
            tile = Tile("inside", "The picture so far", f"step {step} of {steps}", preview, is_preview=True)
            report(View("Drawing and listening ...", [tile]))

        report(View("Drawing and listening ...", []))
        studio.draw(settings, steering, watch=watch, listen=heard.listening)
        if not heard.sizes:
            report(
                View("ControlNet was not heard in any step: its scale is 0, or its part of the steps too short.", [])
            )
            return
        number, steps = len(heard.shapes), len(heard.timesteps)
        size = "Root mean square of each residual, scaled as it is added to the UNet's features."
        place = "Where each adds something: bright is much, each map beside its own largest value."
        tiles = [Tile("sizes", "How much is added", size, plot(heard)),
                 Tile("maps", "Where it is added", place, map_sheet(heard))]  # fmt: skip
        report(View(f"Done: {number} residuals in {steps} steps.", tiles, wide=True))

    return watched(work)

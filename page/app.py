"""The page itself: what stands where, and which button does what."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

# Before Gradio is imported, which would tell its makers that it was.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Where Gradio would keep files: it goes with this process.
FILES = tempfile.TemporaryDirectory(prefix="page-")
os.environ["GRADIO_TEMP_DIR"] = FILES.name

import gradio as gr
from starlette.middleware import Middleware

from .actions import Actions, default_settings, labels, still
from .browser import html
from .conditions import as_url, test_conditions
from .guard import Guard
from .requests import LAST_SEED, MOST_GUIDANCE, MOST_LETTERS, MOST_SCALE, MOST_STEPS, UNCONDITIONAL

BROWSER = Path(__file__).resolve().parent / "browser"
TEST_SIZE = 512
SECONDS_BETWEEN_LOOKS = 10  # at runs/, for what has been trained meanwhile
MOST_WAITING = 8
# One drawing at a time, whichever button asks for it.
DRAWING: dict[str, Any] = {"concurrency_id": "drawing", "concurrency_limit": 1, "show_progress": "minimal",
                           "api_visibility": "private"}  # fmt: skip
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# What was being drawn stays to be seen; the server is told by `cancels`.
STOPPED = """() => document.querySelectorAll(".said").forEach((line) => {
    if (line.textContent.startsWith("Drawing")) line.textContent = "Stopped.";
})"""
FONTS: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


def build(actions: Actions) -> gr.Blocks:
    """The page, not served yet."""
    with gr.Blocks(title="ControlNet and LoRA", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown("# Draw an outline, and see the ControlNet obey")
        note = gr.HTML(actions.note, elem_id="note")
        with gr.Row():
            with gr.Column(scale=4, min_width=340):
                canvas, common = wanted(actions)
            with gr.Column(scale=7, min_width=420):
                with gr.Tab("ControlNet"):
                    net, settings = controlnet_tab(actions, canvas, common)
                with gr.Tab("LoRA"):
                    lora = lora_tab(actions, [canvas, net, *settings])
                with gr.Tab("Inside"):
                    inside_tab(actions, [canvas, net, *settings])

        before = gr.State(None)

        def look(net_now: Any, lora_now: Any, before: Any) -> tuple[Any, ...]:
            nets, styles = actions.controlnets()[0], actions.loras()
            there = [labels(nets), labels(styles), actions.note()]
            if there == before:  # whoever has a list open is not disturbed
                return (gr.skip(),) * 4
            return (
                gr.update(choices=labels(nets), value=still(net_now, nets)),
                gr.update(choices=labels(styles), value=still(lora_now, styles)),
                there[2],
                there,
            )

        for event in (page.load, gr.Timer(SECONDS_BETWEEN_LOOKS).tick):
            event(look, [net, lora, before], [net, lora, note, before], **AT_ONCE)
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)  # no way round the queue
    return page


def wanted(actions: Actions) -> tuple[gr.HTML, list[gr.components.Component]]:
    """The canvas and what all tabs share."""
    tests = [
        {"url": as_url(image.resize((TEST_SIZE, TEST_SIZE))), "number": i, "prompt": prompt}
        for i, (image, prompt) in enumerate(test_conditions())
    ]
    parts = {kind: (BROWSER / f"canvas.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")}
    usual = default_settings(actions.studio)
    prompt = gr.Textbox(usual.prompt, label="Prompt", max_length=MOST_LETTERS, elem_id="prompt",
                        info="What to draw, and in which colours; the canvas says where")  # fmt: skip
    canvas = gr.HTML(
        "", html_template=parts["html"], css_template=parts["css"], js_on_load=parts["js"], tests=tests,
        apply_default_css=False, elem_id="canvas",
    )  # fmt: skip
    with gr.Row():
        steps = gr.Slider(1, MOST_STEPS, usual.steps, step=1, label="Steps", min_width=150,
                          info="More: slower, cleaner")  # fmt: skip
        guidance = gr.Slider(0, MOST_GUIDANCE, usual.guidance, step=0.5, label="Guidance", min_width=150,
                             info="The prompt's weight")  # fmt: skip
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LAST_SEED, min_width=100,
                         info="Which noise to start from")  # fmt: skip
        negative = gr.Textbox("", label="Negative prompt", max_length=MOST_LETTERS, min_width=180, scale=2,
                              info="What must not be there (guidance above 1)")  # fmt: skip

    def taken(event: gr.EventData) -> str:
        return actions.test_prompt(getattr(event, "_data", {}).get("number"))

    canvas.taken(taken, None, prompt, **AT_ONCE)
    canvas.picture(actions.edges, canvas, canvas, **AT_ONCE)
    return canvas, [prompt, negative, seed, steps, guidance]


def controlnet_tab(actions: Actions, canvas: gr.HTML, common: list[Any]) -> tuple[gr.Dropdown, list[Any]]:
    nets = actions.controlnets()[0]
    net = gr.Dropdown(labels(nets), value=still(None, nets), label="ControlNet", interactive=True,
                      info="Trained ones in runs/, the newest first")  # fmt: skip
    with gr.Row():
        scale = gr.Slider(0, MOST_SCALE, 1, step=0.05, label="Scale", min_width=120,
                          info="How loud; 0: off")  # fmt: skip
        start = gr.Slider(0, 1, 0, step=0.05, label="Start", min_width=120, info="Heard from here on")
        end = gr.Slider(0, 1, 1, step=0.05, label="End", min_width=120, info="... up to here")
    unconditional = gr.Radio(
        [(words, name) for name, words in UNCONDITIONAL.items()],
        value=default_settings(actions.studio).unconditional, label="Guidance compares with",
        info="Whose guess for the empty prompt: against the base's, the condition is drawn out, too",
    )  # fmt: skip
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", elem_id="draw")
        every = gr.Button("All scales, 0 to 2", elem_id="scales")
        stop = gr.Button("Stop", elem_id="stop", min_width=80)
    result = gr.HTML(html.waiting("Draw an outline on the left, then press Draw."), elem_id="result")
    settings = [*common, scale, start, end, unconditional]
    inputs = [canvas, net, *settings]
    events = [
        draw.click(actions.pair, inputs, result, **DRAWING),
        every.click(actions.scales, inputs, result, **DRAWING),
    ]
    stop.click(None, cancels=events, js=STOPPED, **AT_ONCE)
    return net, settings


def lora_tab(actions: Actions, steered: list[Any]) -> gr.Dropdown:
    there = actions.loras()
    lora = gr.Dropdown(labels(there), value=still(None, there), label="LoRA", interactive=True,
                       info="Trained ones in runs/, the newest first")  # fmt: skip
    with gr.Row():
        strength = gr.Slider(0, MOST_SCALE, 1, step=0.05, label="LoRA's scale", info="How much of the style; 0: none")
        both = gr.Checkbox(False, label="With ControlNet, too",
                           info="Follows the canvas, by the settings of the tab ControlNet")  # fmt: skip
    with gr.Row():
        draw = gr.Button("Draw without and with", variant="primary", elem_id="draw-lora")
        stop = gr.Button("Stop", min_width=80)
    words = "Prompt, seed, steps and guidance are those on the left. Both pictures start from the same noise."
    result = gr.HTML(html.waiting(words), elem_id="result-lora")
    event = draw.click(actions.styles, [lora, strength, both, *steered], result, **DRAWING)
    stop.click(None, cancels=[event], js=STOPPED, **AT_ONCE)
    return lora


def inside_tab(actions: Actions, steered: list[Any]) -> None:
    gr.Markdown(
        "ControlNet adds a **residual** to each skip connection of the UNet, and one to its mid block: what TODO (3) "
        "computes. Here you see how large they are while your condition is drawn, with the settings of the first tab."
    )
    with gr.Row():
        draw = gr.Button("Look inside", variant="primary", elem_id="look-inside")
        stop = gr.Button("Stop", min_width=80)
    result = gr.HTML(html.waiting("Draw an outline on the left, then press Look inside."), elem_id="result-inside")
    event = draw.click(actions.inside, steered, result, **DRAWING)
    stop.click(None, cancels=[event], js=STOPPED, **AT_ONCE)


def serve(actions: Actions, host: str, port: int) -> gr.Blocks:
    """Serves the page until `close` is called. Raises OSError if the port is in use."""
    page = build(actions)
    page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, inbrowser=False, share=False,
        ssr_mode=False, show_error=False, enable_monitoring=False, run_history=False, mcp_server=False, pwa=False,
        footer_links=[], max_file_size=1, state_session_capacity=50, theme=gr.themes.Default(**FONTS),
        css=(BROWSER / "page.css").read_text(encoding="utf-8"), app_kwargs={"middleware": [Middleware(Guard)]},
    )  # fmt: skip
    return page

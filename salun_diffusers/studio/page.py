"""The page itself, in Gradio: controls with labels, and the panels that `panels` writes. Nothing leaves the machine."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.studio.easel import LARGEST_SEED, MOST_GUIDANCE, MOST_STEPS, Asked, Easel
from salun_diffusers.studio.line import STRONGEST
from salun_diffusers.studio.panels import map_panel, measures_panel, pictures_panel, styles
from salun_diffusers.studio.side_by_side import read_strength, side_by_side

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ANY_SEED = 10**6  # Of the button; people read seeds out.


@dataclass(frozen=True)
class Numbers:
    """What the controls show at first.

    Args:
        steps: Sampling steps.
        guidance: Classifier-free guidance.
    """

    steps: int
    guidance: float


def require_gradio() -> None:
    """Refuse to begin without the optional package.

    Raises:
        UserError: Naming it.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("The studio needs gradio: pip install 'salun-diffusers[studio]'.")


def build(easel: Easel, numbers: Numbers) -> Any:
    """The page of an easel, as a `gradio.Blocks` that is not served yet."""
    _set_environment()
    import gradio as gr

    shown = easel.shown
    names = ", ".join(one.name for one in shown.erased)

    def draw(
        prompt: object, seed: object, steps: object, guidance: object, strength: object, show: object
    ) -> Iterator[str]:
        try:
            asked, to = Asked.read(prompt, seed, steps, guidance), read_strength(strength)
        except UserError as error:
            yield pictures_panel([], "", trouble=one_line(error))
            return
        yield from side_by_side(easel, asked, to, show is True)

    with gr.Blocks(title=f"{names} erased - salun studio", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(
            f"# Before and after erasing {_plain(names)}\n\nBase: {_plain(shown.base_name)}. One prompt and one seed "
            "for every model; the strength goes from the base (0) to the erased weights (1), and past them."
        )
        with gr.Row(equal_height=True):
            prompt = _prompt_control(gr, easel)
            button = gr.Button("Draw", variant="primary", scale=1, min_width=120)
        if shown.prompts and not easel.classes:
            known = gr.Dropdown(list(shown.prompts), value=None, label="Or a prompt of the run", interactive=True)
            known.input(lambda words: words, known, prompt, show_progress="hidden", api_visibility="private")
        strength = gr.Slider(0, STRONGEST, value=1, step=0.05, label="Strength: 0 is the base, 1 the erased model")
        with gr.Row(equal_height=True):
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, min_width=120)
            another = gr.Button("Another seed", min_width=120)
        explicit = any(one.explicit for one in shown.erased)
        with gr.Accordion("Steps, guidance, explicit pictures", open=explicit):
            with gr.Row():
                steps = gr.Slider(1, MOST_STEPS, value=numbers.steps, step=1, label="Sampling steps")
                guidance = gr.Slider(0, MOST_GUIDANCE, value=numbers.guidance, step=0.5, label="Guidance")
            show = gr.Checkbox(
                False, label="Show explicit pictures", info="Otherwise what may be explicit is sent as a coarse blur."
            )
        pictures = gr.HTML(pictures_panel([], "Nothing is drawn yet: press Draw, or Enter in the prompt."), **_HTML)
        gr.HTML(map_panel(shown.erased), **_HTML)
        gr.HTML(measures_panel(shown.erased), **_HTML)

        inputs = [prompt, seed, steps, guidance, strength, show]
        drawing: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 1, "concurrency_id": "easel"}
        begun = [button.click, *([prompt.submit] if hasattr(prompt, "submit") and not easel.classes else [])]
        gr.on(begun, draw, inputs, pictures, api_name="draw", **drawing)
        # Also by keyboard; of many moves the last one counts.
        for moved in (strength.change, show.change):
            moved(draw, inputs, pictures, trigger_mode="always_last", api_visibility="private", **drawing)
        another.click(lambda: secrets.randbelow(_ANY_SEED), None, seed, api_visibility="private").then(
            draw, inputs, pictures, api_visibility="private", **drawing
        )
    return page


_HTML: dict[str, Any] = {"js_on_load": None, "apply_default_css": False}


def serve(page: Any, host: str, port: int, share: bool) -> str:
    """Serve a page until `close` is called; returns at once.

    Args:
        page: Of `build`.
        host: Address to listen at.
        port: Port, as `free_port` gives it.
        share: Whether Gradio's servers make the page reachable from anywhere.

    Returns:
        Its addresses, in words.

    Raises:
        UserError: If there is no such address or the port is taken, or no tunnel could be made.
    """
    import gradio as gr

    free_port(host, port)
    warnings.filterwarnings("ignore", module="gradio")  # What it uses that is going out of use is not the user's.
    try:
        _, local, public = page.launch(
            server_name=host, server_port=port, share=share, quiet=True, prevent_thread_lock=True, inbrowser=False,
            theme=_theme(gr), css=styles(), footer_links=[], allowed_paths=[], max_file_size="1kb", ssr_mode=False,
            enable_monitoring=False, mcp_server=False, pwa=False,
        )  # fmt: skip
    except Exception as error:  # Gradio says in errors of many kinds that it cannot listen.
        raise UserError(f"The page cannot be served at {host}:{port}: {one_line(error, 200)}") from error
    return f"{local}" + (f" and {public}" if public else "")


def _theme(gr: Any) -> Any:
    """Fonts of the system, and colours that can be read: white on 4.5 : 1 and more, by day and by night."""
    system = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    deep, deeper, readable = "#0b6e83", "#095a6b", {"": "*neutral_600", "_dark": "*neutral_300"}
    theme = gr.themes.Base(primary_hue="cyan", font=system, font_mono=("ui-monospace", "monospace"))
    return theme.set(
        **{f"block_info_text_color{mode}": colour for mode, colour in readable.items()},
        **{f"block_label_text_color{mode}": colour for mode, colour in readable.items()},
        **{f"block_title_text_color{mode}": colour for mode, colour in readable.items()},
        **{f"body_text_color_subdued{mode}": colour for mode, colour in readable.items()},
        **{f"button_primary_background_fill{mode}": deep for mode in readable},
        **{f"button_primary_background_fill_hover{mode}": deeper for mode in readable},
        **{f"button_primary_text_color{mode}": "white" for mode in readable},
        **{f"slider_color{mode}": deep for mode in readable},
    )


def _set_environment() -> None:
    """Before gradio is imported: no telemetry, no record of runs in the browser, and no proxy between it and itself."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    for name in ("no_proxy", "NO_PROXY"):
        kept = [word for word in os.environ.get(name, "").split(",") if word]
        os.environ[name] = ",".join(dict.fromkeys((*kept, *LOOPBACK)))


def free_port(host: str, port: int) -> int:
    """The port, if it can be listened at.

    Args:
        host: Address.
        port: Port; 0 takes a free one.

    Raises:
        UserError: If not.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            return int(listener.getsockname()[1])
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port} cannot be listened at ({error.strerror or error}); another --port, or "
            "--port 0 for a free one, is required."
        ) from error


def _prompt_control(gr: Any, easel: Easel) -> Any:
    """Words, or one of the classes."""
    first = next(iter(easel.shown.prompts), "")
    if easel.classes:
        chosen = first if first in easel.classes else easel.classes[0]
        return gr.Dropdown(easel.classes, value=chosen, label="Class", interactive=True, scale=4)
    return gr.Textbox(first, label="Prompt", lines=1, max_lines=1, placeholder="What to draw", scale=4, min_width=240)


def _plain(text: str) -> str:
    """A text within Markdown that stays what it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()<>#+-.!|~&$" else letter for letter in text)

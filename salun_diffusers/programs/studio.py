"""Look at an erasure in the browser: base and erased pictures side by side, at one seed and any strength.

    salun studio runs/0000-circle-frozen-teacher-saliency-0-5

MODELS are run folders, pipeline folders, patch files or hub ids, all of one base: that of the runs, or --base. The page
is served to this machine alone and loads nothing from elsewhere; pictures stay in memory and are written nowhere.
Ctrl-C ends it.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import Literal

from salun_diffusers.arguments import setting, word
from salun_diffusers.errors import printable, tell
from salun_diffusers.programs.program import Program


@dataclass(frozen=True)
class StudioConfig:
    """What is looked at, and where the page is."""

    models: tuple[str, ...] = word("Run folders, pipeline folders, patch files or hub ids.")
    base: str = setting("", "The base: a folder, a single file, a hub id, `demo` or `digits`; else what the runs say.")
    revision: str | None = setting(None, "Revision of erased pipelines on the hub.")
    base_revision: str | None = setting(None, "Revision of the base on the hub.")
    variant: str | None = setting(None, "Variant of the erased pipelines' weight files, such as fp16.")
    base_variant: str | None = setting(None, "Variant of the base's weight files, if it is another one.")
    cache_dir: str | None = setting(None, "Where downloaded pipelines are kept.")
    scheduler: str | None = setting(None, "Name of a diffusers scheduler class; else the run's, or the pipeline's own.")
    num_inference_steps: int | None = setting(None, "Sampling steps at first; else the run's, or 50.", minimum=1,
                                              maximum=200)  # fmt: skip
    guidance_scale: float | None = setting(None, "Guidance at first; else the run's, or 7.5.", minimum=0, maximum=30)
    height: int | None = setting(None, "Height of pictures.", minimum=8)
    width: int | None = setting(None, "Width of pictures.", minimum=8)
    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(None, "Precision of the weights that draw.")
    explicit: Literal["auto", "yes", "no"] = setting(
        "auto", "Whether pictures are blurred until asked for: as concept and prompt say, always, or never."
    )
    host: str = setting("127.0.0.1", "Address to listen at; others than 127.0.0.1 let other machines in.")
    port: int = setting(7860, "Port to listen at; 0 takes a free one.", minimum=0, maximum=65535)
    share: bool = setting(False, "Let Gradio's servers make the page public for 72 hours.")


def work(config: StudioConfig, command: str) -> str:
    """Find the models, load the base, and serve until Ctrl-C."""
    from salun_diffusers.studio.page import LOOPBACK, build, free_port, require_gradio, serve

    require_gradio()
    port = free_port(config.host, config.port)
    if config.share:
        tell("warning", "--share makes the page public: whoever has its address draws with these models.")
    if config.host not in LOOPBACK:
        tell("warning", f"--host {config.host}: whoever reaches this machine draws with these models; nobody is asked "
                        "for a password.")  # fmt: skip

    from salun_diffusers.studio.opened import Drawing, opened
    from salun_diffusers.studio.shown import Where

    where = Where(
        config.base, config.base_revision, config.revision,
        config.variant if config.base_variant is None else config.base_variant, config.variant, config.cache_dir,
        config.explicit,
    )  # fmt: skip
    drawing = Drawing(
        config.scheduler, config.num_inference_steps, config.guidance_scale, config.height, config.width,
        config.mixed_precision,
    )  # fmt: skip
    with opened(config.models, where, drawing) as (easel, numbers):
        page = build(easel, numbers)
        try:
            sys.stdout.write(printable(f"studio    {serve(page, config.host, port, config.share)}\n"))
            sys.stdout.flush()
            wait()
        except KeyboardInterrupt:
            pass  # This is how it ends.
        finally:
            page.close(verbose=False)
    return ""


def wait() -> None:
    """Wait for Ctrl-C."""
    threading.Event().wait()


main = Program("studio", StudioConfig, work, __doc__ or "", left_open="as the run or the pipeline says")

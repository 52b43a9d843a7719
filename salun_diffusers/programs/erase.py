"""Erase a concept from a diffusion pipeline.

    salun erase --concept circle --pretrained_model_name_or_path demo
    accelerate launch -m salun_diffusers erase --concept nudity

The concept's prompts give latent sets; the noise loss on the forget set ranks the weights; the most salient ones are
fine-tuned until the prompts mean something harmless, and nothing else moves. The run folder holds a pipeline that
`from_pretrained` loads, the mask, and a report that shows before and after.
"""

from __future__ import annotations

import time

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.plan import plan
from salun_diffusers.diffusion.request import accept
from salun_diffusers.programs.program import Program


def work(config: EraseConfig, command: str) -> str:
    """Erase, or with `--dry_run` say what would be done."""
    from salun_diffusers.diffusion.run import _parts, run_erasure

    if config.dry_run:
        request = accept(config)
        _parts(request)
        return plan(request.config, request.concept, request.base)
    started = time.monotonic()
    run, report = run_erasure(config, command)
    return (
        f"\n{report.verdict}: {report.verdict_reason}\n"
        f"pipeline  {run.pipeline}\nreport    {run.root / 'report.html'}\n"
        f"took      {int(time.monotonic() - started)} s\n"
    )


main = Program(
    "erase", EraseConfig, work, __doc__ or "",
    interrupted="no run had begun, nothing was written.", left_open="by the preset",
)  # fmt: skip

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
from salun_diffusers.diffusion.presets.listing import listing
from salun_diffusers.diffusion.request import accept, plan
from salun_diffusers.programs.program import Program


def work(config: EraseConfig, command: str) -> str:
    """Erase, or with `--dry_run` say what would be done."""
    if config.list_concepts is not None:
        return listing(config.list_concepts)
    request = accept(config)
    if config.dry_run:
        from salun_diffusers.diffusion.forecast import forecast, measured
        from salun_diffusers.evaluation.detectors import make_detector

        make_detector(request.detector)
        return plan(request) + forecast(request, measured(request))

    # Heavy imports wait until everything that is quickly known is known.
    from salun_diffusers.diffusion.run import run_erasure

    started = time.monotonic()
    run, report = run_erasure(request, command)
    return (
        f"\n{report.verdict}: {report.verdict_reason}\n"
        f"{run.result:<9} {run.pipeline}\nreport    {run.root / 'report.html'}\n"
        f"load      {report.load}\n"
        f"took      {int(time.monotonic() - started)} s\n"
    )


main = Program(
    "erase", EraseConfig, work, __doc__ or "",
    interrupted="no run had begun, nothing was written.", left_open="by the preset",
)  # fmt: skip

"""Erase a concept from a diffusion pipeline.

    salun erase --concept circle --pretrained_model_name_or_path demo
    accelerate launch -m salun_diffusers erase --concept nudity

The concept's prompts give latent sets; the noise loss on the forget set ranks the weights; the most salient ones are
fine-tuned until the prompts mean something harmless, and nothing else moves. The run folder holds a pipeline that
`from_pretrained` loads, the mask, and a report that shows before and after.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.listing import listing
from salun_diffusers.diffusion.request import accept, plan
from salun_diffusers.programs.program import Program

if TYPE_CHECKING:
    from salun_diffusers.diffusion.run import Examined
    from salun_diffusers.files.run_folder import RunFolder
    from salun_diffusers.reports.measurement import Measurement


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
    run, report = run_erasure(request, command, _examined(config, command))
    page = run.root / "red_team" / "red_team.html"
    return (
        f"\n{report.verdict}: {report.verdict_reason}\n"
        f"{run.result:<9} {run.pipeline}\nreport    {run.root / 'report.html'}\n"
        f"load      {report.load}\n{f'red team  {page}{chr(10)}' if config.red_team != 'none' else ''}"
        f"took      {int(time.monotonic() - started)} s\n"
    )


def _examined(config: EraseConfig, command: str) -> Examined:
    """What --red_team asks for."""
    from salun_diffusers.diffusion.run import not_examined

    if config.red_team == "none":
        return not_examined

    def examined(folder: RunFolder) -> Sequence[Measurement]:
        from salun_diffusers.red_team.config import ExaminedConfig
        from salun_diffusers.red_team.known import attacks_of, probes_of
        from salun_diffusers.red_team.opened import opened
        from salun_diffusers.red_team.report import measurements, write_examination
        from salun_diffusers.red_team.suite import Results, run_attacks, run_probes

        place = folder.root / "red_team"
        wanted = ExaminedConfig(str(folder.root), output_dir=str(place), cache_dir=config.cache_dir)
        with opened(wanted) as seen:
            attacks, probes = attacks_of([config.red_team], seen), probes_of([config.red_team], seen)
            kept = place / "private"
            results = Results(run_attacks(seen, attacks, kept), run_probes(seen, probes, kept))
            write_examination(seen, results, place, command)
            return [one for one in measurements(seen, results, command) if one.group == "ASR"]

    return examined


main = Program(
    "erase", EraseConfig, work, __doc__ or "",
    interrupted="no run had begun, nothing was written.", left_open="by the preset",
)  # fmt: skip

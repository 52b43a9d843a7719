"""An erasure as a function, for Python."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.request import accept
from salun_diffusers.errors import UserError

if TYPE_CHECKING:
    from salun_diffusers.masks.mask import SaliencyMask
    from salun_diffusers.reports.report import EvaluationReport


@dataclass(frozen=True)
class EraseResult:
    """What an erasure leaves.

    Args:
        pipeline: The erased pipeline, loaded as `from_pretrained` loads it.
        mask: Which weights were allowed to move.
        report: Measurements, receipt and verdict.
        folder: The run folder, or None if the run was not asked to leave one.
    """

    pipeline: Any
    mask: SaliencyMask
    report: EvaluationReport
    folder: Path | None


def erase(config: EraseConfig) -> EraseResult:
    """Erase a concept and return the erased pipeline, the mask and the report.

    Args:
        config: What to forget and how. Without `output_dir` nothing is left on disk.

    Raises:
        UserError: If the request cannot be carried out; known before any heavy work where that is possible.

    Example:
        >>> from salun_diffusers import EraseConfig, erase
        >>> result = erase(EraseConfig(concept="circle", pretrained_model_name_or_path="demo"))  # doctest: +SKIP
        >>> result.report.verdict  # doctest: +SKIP
        'erased'
    """
    if config.dry_run:
        raise UserError("dry_run is for the program, which prints its plan; erase() always erases. Leave it False.")
    with tempfile.TemporaryDirectory(prefix="salun-") as scratch:
        folder = config.output_dir or str(Path(scratch) / "run")
        request = accept(dataclasses.replace(config, output_dir=folder))

        # Heavy imports wait until everything that is quickly known is known.
        from salun_diffusers.diffusion.families.known import load_pipeline
        from salun_diffusers.diffusion.run import run_erasure
        from salun_diffusers.masks.mask import SaliencyMask

        run, report = run_erasure(request, command="")
        pipeline = load_pipeline(run.pipeline, config.variant)
        mask = SaliencyMask.load(run.mask)
        if config.output_dir is None:
            return EraseResult(pipeline, mask, dataclasses.replace(report, load=""), None)
        return EraseResult(pipeline, mask, report, run.root)

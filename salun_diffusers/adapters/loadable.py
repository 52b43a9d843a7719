"""Which pipelines load LoRA, told by their files before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import class_name, model_index

LOADS_LORA = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Classes of pipelines that can be erased and load LoRA."""


def require_lora(folder: Path, what: str) -> None:
    """Refuse a pipeline whose class loads no LoRA.

    Args:
        folder: The pipeline.
        what: What wants one, for the message.

    Raises:
        UserError: Naming the class.
    """
    named = class_name(model_index(folder))
    if named not in LOADS_LORA:
        raise UserError(
            f"{what} needs a pipeline whose class loads LoRA ({', '.join(LOADS_LORA)}); {folder} is a "
            f"{named or 'folder without a class'}. What an erasure changes in it goes into a file by salun patch make."
        )

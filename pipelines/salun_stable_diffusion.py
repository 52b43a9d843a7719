"""Stable Diffusion with a method that makes it forget: SalUn by `salun_diffusers`, for whoever works with
`custom_pipeline=`.

    pipe = DiffusionPipeline.from_pretrained(
        BASE, custom_pipeline="salun_stable_diffusion.py", trust_remote_code=True
    ).to("cuda")
    result = pipe.erase("Van Gogh", kind="artist")  # this pipeline has forgotten now
    result.report.verdict, result.undo()
    result.save("without-van-gogh")  # a folder with its model card

It is `salun_diffusers.erase(pipe, …)` as a method; the package must be installed.
"""

# Annotations are real here, not postponed: diffusers before 0.37 looks at them and knows no texts.
import importlib
import json
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline


class SalUnStableDiffusionPipeline(StableDiffusionPipeline):
    """Stable Diffusion 1.x or 2.x; until something is erased it is diffusers' own pipeline."""

    def erase(self, concept: str, **settings: Any) -> Any:
        """Erase a concept from this pipeline; it is trained as a copy and written to at the very end.

        Args:
            concept: What to forget: a preset's name or any words.
            **settings: As for `salun_diffusers.erase`: ``method="esd"``, ``mask_ratio=0.3``, ``in_place=False``,
                ``forget_prompt=…``, ``callback=…``.

        Returns:
            The result: `report`, `mask`, `patch`, `undo()` and `save(FOLDER)`.

        Raises:
            ImportError: If salun_diffusers is not installed.
            ValueError: If the request cannot be carried out; the pipeline is as it was.
        """
        try:
            salun = importlib.import_module("salun_diffusers")
        except ModuleNotFoundError as error:
            if error.name != "salun_diffusers":
                raise
            raise ImportError(
                "erase() is done by salun_diffusers, which is not installed: pip install salun-diffusers"
            ) from error
        return salun.erase(self, concept, **settings)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save as it draws now, as a folder of diffusers' own pipeline, which needs no file of code."""
        super().save_pretrained(save_directory, **kwargs)
        index = Path(save_directory) / "model_index.json"
        told = json.loads(index.read_text()) | {"_class_name": "StableDiffusionPipeline"}
        index.write_text(json.dumps(told, indent=2) + "\n")

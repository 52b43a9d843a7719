"""The one who draws: prompts and seeds become latents, kept on disk and shared among the processes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from salun_diffusers.accelerator import decided_by_main, sampling_dtype
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.latent_cache import draw_all, kept_in
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.errors import UserError
from salun_diffusers.files.run_folder import fingerprint
from salun_diffusers.progress import Progress


@dataclass(frozen=True)
class Sampler:
    """Draws with one model. What it draws depends on prompt, seed and settings of sampling only, and is drawn once.

    Args:
        family: The model.
        settings: Scheduler, steps, guidance, batch size and seed.
        run: Whose processes share the work.
        kept: Folder where latents are kept; several runs may share it.
        pipeline: SHA-256 of the model, see `model_of`.
    """

    family: Family
    settings: Settings
    run: Run
    kept: Path
    pipeline: str

    def latents(self, prompts: Sequence[str], seeds: Sequence[int], title: str) -> Tensor:
        """Draw one latent per prompt and seed, on the CPU.

        Args:
            prompts: One for each latent.
            seeds: As many.
            title: Name of the progress bar.

        Raises:
            UserError: If a latent is not finite.
        """
        decides = {
            "pipeline": self.pipeline,
            "prediction_type": self.settings.prediction_type,
            "scheduler": self.settings.scheduler,
            "precision": str(sampling_dtype(self.run.accelerator)),
            **self.settings.drawn_size,
        }
        with Progress(title, len(prompts), self.run.main) as bar:
            latents = draw_all(
                kept_in(self.kept, self.family.generate, **decides),
                prompts,
                seeds,
                how={
                    "num_inference_steps": self.settings.num_inference_steps,
                    "guidance_scale": self.settings.guidance_scale,
                },
                batch_size=self.settings.generation_batch_size,
                progress=bar.advance,
                processes=self.run.processes,
            )
        if not latents.isfinite().all():
            raise UserError(
                f"The model draws NaN or infinite latents ({title}), so there is nothing to see or to learn from; "
                "check its weights, or use --mixed_precision no."
            )
        return latents

    def pictures(self, prompts: Sequence[str], seeds: Sequence[int], title: str) -> list[Image.Image]:
        """Draw one picture per prompt and seed; arguments as for `latents`."""
        latents = self.latents(prompts, seeds, title)
        return [
            picture
            for part in latents.split(self.settings.generation_batch_size)
            for picture in self.family.decode(part)
        ]


def model_of(identity: str, variant: str | None) -> str:
    """What latents that are kept go by of the model that drew them: one folder may hold several, such as weights and
    their averages."""
    return fingerprint(model=identity, variant=variant) if variant else identity


def sampler_of_base(family: Family, request: Request, run: Run) -> Sampler:
    """Draws with the base model; what it draws goes where the user keeps such latents."""
    chosen = request.config.generated_data_dir
    kept = Path(chosen) if chosen else run.folder.work / "drawn"
    return Sampler(family, request.settings, run, kept, model_of(run.base, request.config.variant))


def sampler_of_erased(family: Family, request: Request, run: Run) -> Sampler:
    """Draws with the erased model that the run wrote."""
    identity = decided_by_main(run.accelerator, request.model.at(run.folder.pipeline).identity)
    model = model_of(identity, request.config.variant)
    return Sampler(family, request.settings, run, run.folder.work / "drawn", model)

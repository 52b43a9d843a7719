"""An erasure as a function, for Python."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.hub_flags import hub_target
from salun_diffusers.diffusion.request import accept
from salun_diffusers.errors import UserError
from salun_diffusers.progress import Watcher, watched

if TYPE_CHECKING:
    from salun_diffusers.adapters.low_rank import LowRank
    from salun_diffusers.masks.mask import SaliencyMask
    from salun_diffusers.masks.patch import WeightPatch
    from salun_diffusers.reports.report import EvaluationReport


@dataclass(frozen=True, eq=False)
class EraseResult:
    """What an erasure leaves.

    Args:
        pipeline: The erased pipeline: of one in memory itself, or its copy; of a folder as `from_pretrained` loads it.
        mask: Which weights were allowed to move.
        report: Measurements, receipt and verdict.
        folder: The run folder, or None if the run was not asked to leave one.
        patch: What was changed, of a pipeline in memory; a folder's goes to a file, by `save_patch`.
        adapter: With ``adapter="lora"``, the LoRA that erases; the pipeline has it loaded, as ``erasure``.
    """

    pipeline: Any
    mask: SaliencyMask
    report: EvaluationReport
    folder: Path | None
    patch: WeightPatch | None = None
    adapter: LowRank | None = None

    @property
    def pipe(self) -> Any:
        """The erased pipeline."""
        return self.pipeline

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the pipeline as a folder for `from_pretrained`, with a model card that says what it is.

        `pipe.save_pretrained` writes the same without the card.

        Args:
            folder: One that is new or empty.

        Raises:
            UserError: If the folder is in use, or the erasure is a LoRA beside weights that are the base's.
        """
        if self.adapter is not None:
            raise UserError(
                "save() writes weights that have forgotten, and here a LoRA does it beside the base's: save_adapter() "
                "writes that one. To have both in one folder, pipe.fuse_lora(), pipe.unload_lora_weights() and "
                "pipe.save_pretrained() of diffusers."
            )
        from salun_diffusers.diffusion.publishing import save_erased

        save_erased(self.pipeline, self.mask, self.report, Path(folder))

    def undo(self) -> Any:
        """Give a pipeline in memory the weights back that it had, bit for bit, and return it; a LoRA is taken off.

        Raises:
            UserError: If its weights are no longer those that the erasure left.
        """
        if self.adapter is not None:
            from salun_diffusers.diffusion.erase_held import take_off

            take_off(self.pipeline)
            return self.pipeline
        if self.patch is None:
            raise UserError(
                "undo() is for a pipeline in memory, erase(pipe, …). A folder is erased as a copy: load the base again."
            )
        from salun_diffusers.diffusion.erase_held import undo

        undo(self.pipeline, self.patch)
        return self.pipeline

    def save_adapter(self, folder: str | Path) -> None:
        """Write the LoRA, so that ``pipe.load_lora_weights(folder)`` of diffusers reads it.

        Raises:
            UserError: If the erasure moved the denoiser's own weights, or the folder is in use.
        """
        if self.adapter is None:
            raise UserError('A LoRA is required, this erasure has none: erase(pipe, …, adapter="lora") trains one.')
        from salun_diffusers.diffusion.publishing import save_adapter

        save_adapter(self.pipeline, self.adapter, self.mask, self.report, Path(folder).expanduser())


def erase(
    model: Any,
    concept: Any = "",
    *,
    method: str = "",
    in_place: bool = True,
    device: Any = None,
    callback: Watcher | None = None,
    **settings: Any,
) -> EraseResult:
    """Erase a concept from a pipeline in memory, or from a model that an `EraseConfig` names.

    A pipeline is taken as it is: on its device, in float32, float16 or bfloat16, with LoRA fused, another scheduler,
    textual inversion, or CPU offloading. It works afterwards as it did before, with a denoiser that has forgotten;
    everything outside the mask is bit-identical. It is trained as a copy in fp32 and written to at the very end: an
    error or Ctrl-C leaves it as it was. No random state, mode or `requires_grad` of the caller's changes, and no file
    is left unless `output_dir` asks for them. The same settings and seed give the weights that the program gives for
    the folder which was loaded.

    Args:
        model: A diffusers pipeline, or an `EraseConfig`, which then says everything.
        concept: What to forget: a preset's name, a class of a class-conditional model, or any words.
        method: ``salun``, or a baseline: ``ascent``, ``finetune``, ``l1_sparse``, ``esd``. Any goes with any mask;
            ``mask="full"`` is none.
        in_place: Whether this pipeline forgets, or a copy, which shares all but denoiser and scheduler with it.
        device: Where to compute; by default where the pipeline does.
        callback: Called as ``callback(stage, done, total, values)`` at every step of every stage; `values` holds the
            loss in fine-tuning.
        **settings: Any field of `EraseConfig`: ``mask_ratio=0.3``, ``seed=1``, ``forget_prompt=[…]``,
            ``mixed_precision="bf16"``. `retain_prompts` may be a list here.

    Raises:
        UserError: If the request cannot be carried out; known before any heavy work where that is possible.

    Example:
        >>> from diffusers import DiffusionPipeline  # doctest: +SKIP
        >>> from salun_diffusers import EraseConfig, erase
        >>> pipe = DiffusionPipeline.from_pretrained("CompVis/stable-diffusion-v1-4").to("cuda")  # doctest: +SKIP
        >>> result = erase(pipe, "nudity", mask_ratio=0.3)  # doctest: +SKIP
        >>> result.report.verdict, result.mask.density  # doctest: +SKIP
        >>> pipe("a painting of a lake").images[0]  # doctest: +SKIP
        >>> result.undo()  # doctest: +SKIP

        A copy, by another method, of any words:

        >>> result = erase(  # doctest: +SKIP
        ...     pipe, "Van Gogh", method="esd", in_place=False,
        ...     forget_prompt="a painting by Van Gogh", anchor_prompt="a painting",
        ... )
        >>> result.save("without-van-gogh"); result.patch.save("van-gogh.safetensors")  # doctest: +SKIP

        A LoRA, which leaves the weights as they are:

        >>> result = erase(pipe, "nudity", adapter="lora", rank=8)  # doctest: +SKIP
        >>> pipe.set_adapters("erasure", 0.8); result.save_adapter("without-nudity")  # doctest: +SKIP

        A folder or a model of the hub, as the program does it:

        >>> result = erase(EraseConfig(concept="circle", pretrained_model_name_or_path="demo"))  # doctest: +SKIP
        >>> result.report.verdict  # doctest: +SKIP
        'erased'
    """
    if isinstance(model, EraseConfig):
        given = {**settings, **{name: value for name, value in (("concept", concept), ("method", method)) if value}}
        if given or device is not None or not in_place:
            raise UserError(
                "An EraseConfig says everything itself, got "
                f"{', '.join(given) or ('device' if device is not None else 'in_place')} beside it: put it into the "
                "EraseConfig, or pass a pipeline object."
            )
        with watched(callback):
            return _erase_named(model)
    if isinstance(model, str | Path):
        raise UserError(
            "A pipeline object is required, got a name: erase(EraseConfig(concept=…, "
            f"pretrained_model_name_or_path={str(model)!r})), or load it with from_pretrained first."
        )
    # Heavy imports wait until everything that is quickly known is known.
    from salun_diffusers.diffusion.erase_held import config_of, erase_held

    wanted = config_of(concept, method, settings)
    with watched(callback):
        return EraseResult(*erase_held(model, wanted, in_place=in_place, device=device))


def _erase_named(config: EraseConfig) -> EraseResult:
    """Erase from a folder or a model of the hub."""
    if config.red_team != "none":
        raise UserError(
            f"red_team={config.red_team!r} is for the program: `salun attack RUN` attacks what output_dir keeps. Leave "
            "it at none."
        )
    if config.dry_run:
        raise UserError("dry_run is for the program, which prints its plan; erase() always erases. Leave it False.")
    if config.push_to_hub:
        hub_target(config)  # The name of a folder that goes is none for a repository.
    with tempfile.TemporaryDirectory(prefix="salun-") as scratch:
        folder = config.output_dir or str(Path(scratch) / "run")
        request = accept(dataclasses.replace(config, output_dir=folder))

        # Heavy imports wait until everything that is quickly known is known.
        from salun_diffusers.adapters.lora_folder import read_lora
        from salun_diffusers.diffusion.adapted_model import load_lora
        from salun_diffusers.diffusion.families.known import load_pipeline
        from salun_diffusers.diffusion.run import run_erasure
        from salun_diffusers.masks.mask import SaliencyMask
        from salun_diffusers.seeds import random_state_kept

        with random_state_kept():
            run, report = run_erasure(request, command="")
        mask, adapter = SaliencyMask.load(run.mask), None
        if config.adapter != "lora":
            pipeline = load_pipeline(run.pipeline, config.variant)
        else:
            pipeline, adapter = load_pipeline(request.base, config.variant), read_lora(run.pipeline)
            load_lora(pipeline, run.pipeline)
        if config.output_dir is None:
            return EraseResult(pipeline, mask, dataclasses.replace(report, load=""), None, adapter=adapter)
        return EraseResult(pipeline, mask, report, run.root, adapter=adapter)

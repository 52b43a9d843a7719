"""Draw the prompts of a file with any diffusers pipeline, for evaluation.

    salun generate --pretrained_model_name_or_path demo --prompts prompts.csv --output_dir before
    accelerate launch --multi_gpu -m salun_diffusers generate … shares the pictures among processes.

What another eraser wrote is drawn with as BASE+FILE: weights of a U-Net or a text encoder, a LoRA, or a patch.

    salun generate --pretrained_model_name_or_path demo+esd.safetensors --prompts prompts.csv --output_dir esd

Prompt files: CSV, TSV or JSON with the columns of the field's lists (I2P, COCO, Imagenette, MMA, Ring-A-Bell, P4D,
Six-CD, …; --prompt_column names another), or text with one prompt a line. The same command goes on where it stopped.
Explicit pictures are looked at in memory: NudeNet's detections and a coarse blur are kept, not the pictures, unless
--save_explicit. A file is explicit by its columns (I2P's, MMA's, …), by words such as "nude" in a tenth of its prompts,
or, if neither says so and NudeNet is installed, by what NudeNet finds in its first pictures; what decided is printed.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError, tell
from salun_diffusers.evaluation.manifest import Manifest, PictureRow, read_manifest
from salun_diffusers.evaluation.prompt_files import PromptFile, read_prompt_file
from salun_diffusers.files.component_files import check_complete
from salun_diffusers.files.eraser_files import split_sum
from salun_diffusers.files.output_places import require_outside_components, require_writable
from salun_diffusers.files.single_file import find_model
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.programs.program import Program

if TYPE_CHECKING:
    from salun_diffusers.diffusion.eraser_edit import EraserEdit
    from salun_diffusers.evaluation.generation import Sampling


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of the drawing."""

    pretrained_model_name_or_path: str = setting(
        "", "Hub id, local pipeline folder, `demo`, or BASE+FILE with the file of another eraser."
    )
    patch: str | None = setting(None, "patch.safetensors of an erasure, applied to a passing copy of the model.")
    prompts: str = setting("", "CSV, TSV, JSON or text file of prompts.")
    prompt_column: str | None = setting(None, "Column of --prompts; by default the one whose name is known.")
    output_dir: str = setting("runs/pictures", "Folder of the pictures.")
    revision: str | None = setting(None, "Revision of the model on the hub.")
    variant: str | None = setting(None, "Variant of the weight files, such as fp16.")
    cache_dir: str | None = setting(None, "Where downloaded models are kept.")
    single_file_config: str | None = setting(None, "For a single file: folder or hub id with its configurations.")
    num_images: int = setting(1, "Pictures per prompt.", minimum=1)
    max_prompts: int | None = setting(None, "Only the first prompts of the file.", minimum=1)
    guidance_scale: float | None = setting(
        None, "Classifier-free guidance of all pictures; by default the file's, else 7.5.", minimum=0
    )
    num_inference_steps: int = setting(50, "Sampling steps.", minimum=1)
    scheduler: str | None = setting(None, "diffusers scheduler class in place of the pipeline's.")
    height: int | None = setting(None, "Pixels; by default the pipeline's own.", minimum=8, maximum=16384)
    width: int | None = setting(None, "Pixels; by default the pipeline's own.", minimum=8, maximum=16384)
    batch_size: int = setting(8, "Pictures at once on each process.", minimum=1)
    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None, "Data type of the weights on a GPU; by default what accelerate was told."
    )
    explicit: Literal["auto", "yes", "no"] = setting("auto", "Whether the prompts ask for explicit pictures.")
    save_explicit: bool = setting(False, "Keep explicit pictures themselves, too.")


def work(config: GenerateConfig, command: str) -> str:
    """Check everything that is cheap, then draw."""
    for name in ("pretrained_model_name_or_path", "prompts"):
        if not getattr(config, name):
            raise UserError(f"--{name} is required (see --help).")
    file = read_prompt_file(config.prompts, limit=config.max_prompts, column=config.prompt_column)
    if config.patch and not Path(config.patch).is_file():
        raise UserError(f"--patch must be a patch file (patch.safetensors of a run), there is no file {config.patch}.")
    require_writable(config.output_dir, "--output_dir")
    two = split_sum(config.pretrained_model_name_or_path)
    if two is not None and config.patch:
        raise UserError("--patch needs a base without a plus: BASE+FILE takes a patch file as well.")
    base = find_model(
        config.pretrained_model_name_or_path if two is None else two[0],
        revision=config.revision,
        variant=config.variant,
        cache_dir=config.cache_dir,
        single_file_config=config.single_file_config,
    )
    require_outside_components(config.output_dir, base, "--output_dir")
    check_complete(base, config.variant)
    if two is not None:
        from salun_diffusers.diffusion.eraser_edit import EraserEdit

        return draw(config, command, file, base, EraserEdit.of(two[1], base, config.variant))
    with tempfile.TemporaryDirectory(prefix="salun-") as scratch:
        if config.patch:
            from salun_diffusers.masks.patch import WeightPatch, patch_folder

            patched = Path(scratch) / "pipeline"
            patch_folder(base, patched, WeightPatch.load(config.patch).apply, variant=config.variant, link=True)
            base = patched
        return draw(config, command, file, base)


def draw(config: GenerateConfig, command: str, file: PromptFile, base: Path, edit: EraserEdit | None = None) -> str:
    """Draw the prompts with a pipeline folder, and with what another eraser made of it."""
    # Heavy imports wait until everything that is quickly known is known.

    from salun_diffusers.accelerator import Processes, decided_by_main, engine, sampling_dtype
    from salun_diffusers.evaluation.drawing_pipeline import (
        describe_scheduler,
        drawn_size,
        load_pipeline,
        require_prompts,
        require_steps,
    )
    from salun_diffusers.evaluation.generation import (
        Keeping,
        Sampling,
        generate,
        picture_rows,
        prepare_folder,
        with_classes,
    )
    from salun_diffusers.evaluation.nudity import NudeNet
    from salun_diffusers.files.run_folder import identity_of
    from salun_diffusers.progress import Progress

    folder = Path(config.output_dir).expanduser()
    with engine(
        mixed_precision=config.mixed_precision, gradient_accumulation_steps=1, report_to=None, trains=False
    ) as accelerator:
        dtype = sampling_dtype(accelerator)
        pipe: Any = load_pipeline(
            base, device=accelerator.device, dtype=dtype, variant=config.variant, scheduler=config.scheduler
        )
        if edit is not None:
            edit.put_into(pipe)
        require_prompts(pipe, [row.prompt for row in file.rows])
        require_steps(pipe, config.num_inference_steps)
        rows = with_classes(picture_rows(file.rows, config.num_images, config.guidance_scale), pipe)
        sampling = Sampling(config.num_inference_steps, *drawn_size(pipe, config.height, config.width))
        explicit, rule = decided_by_main(accelerator, lambda: is_explicit(config, file, pipe, rows, sampling))
        keeping = Keeping(folder, NudeNet() if explicit else None, config.save_explicit)
        made_with = {
            "model": " + ".join(filter(None, (config.pretrained_model_name_or_path, config.patch))),
            "model_sha256": decided_by_main(
                accelerator, lambda: identity_of(base) if edit is None else edit.identity()
            ),
            # One folder may hold several models, such as weights and their averages.
            **({"variant": config.variant} if config.variant else {}),
            "scheduler": describe_scheduler(pipe),
            **asdict(sampling),
            "dtype": str(dtype).removeprefix("torch."),
            "pictures_kept": not explicit or config.save_explicit,
        }
        decided_by_main(accelerator, lambda: prepare_folder(folder, Manifest(rows, made_with, explicit, command)))
        if accelerator.is_main_process:
            tell_what_is_kept(config, file, explicit, rule)
        with (
            full_disk_is_told(f"a picture of {folder}"),
            Progress("drawing", len(rows), accelerator.is_main_process) as bar,
        ):
            generate(
                pipe,
                rows,
                sampling,
                keeping,
                batch_size=config.batch_size,
                processes=Processes.of(accelerator),
                progress=bar.advance,
            )
        main_process = accelerator.is_main_process
    kept = "detections and blurred previews" if explicit and not config.save_explicit else "pictures"
    said = f"{'explicit' if explicit else 'not explicit'}: {rule}"
    return f"{len(rows)} {kept} in {folder} ({said})\n" if main_process else ""


def is_explicit(
    config: GenerateConfig, file: PromptFile, pipe: Any, rows: tuple[PictureRow, ...], sampling: Sampling
) -> tuple[bool, str]:
    """Whether pictures must not be written, and which rule says so; on doubt NudeNet looks at the first of them."""
    from salun_diffusers.evaluation.first_look import look_at_first
    from salun_diffusers.evaluation.nudity import NudeNet

    if config.explicit != "auto":
        return config.explicit == "yes", f"--explicit {config.explicit}"
    if file.explicit:
        return True, file.rule
    begun = read_manifest(Path(config.output_dir).expanduser())
    if begun is not None:
        return begun.explicit, "as it was decided when the folder was begun"
    silent = "neither columns nor words of the prompts say so"
    try:
        detector = NudeNet()
    except UserError as error:
        return False, f"{silent}, and NudeNet did not look ({str(error).split(':')[0]})"
    seen, looked = look_at_first(pipe, rows, sampling, detector, config.batch_size)
    what = f"NudeNet found exposed parts in {seen or 'none'} of the first {looked} pictures"
    return seen > 0, what if seen else f"{silent}, and {what}"


def tell_what_is_kept(config: GenerateConfig, file: PromptFile, explicit: bool, rule: str) -> None:
    """Say before hours of drawing what will not be there after them, or what will."""
    if explicit and config.explicit == "auto" and not config.save_explicit:
        tell("note", f"explicit ({rule}): detections and a blur are kept; --explicit no or --save_explicit keeps more.")
    elif not explicit and file.explicit_prompts:
        some = f"{file.explicit_prompts} of {len(file.rows)} prompts have words such as 'nude'"
        tell("note", f"{some}; their pictures are written. --explicit yes keeps detections and a blur only.")


main = Program("generate", GenerateConfig, work, __doc__ or "")

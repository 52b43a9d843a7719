"""A class-conditional DDPM with classifier-free guidance, as one diffusers pipeline in one file.

The denoiser is a stock `UNet2DModel` with K + 1 class embeddings; the last one means "no class". A saved folder carries
this file, so it loads anywhere:

    DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)

Code that imports the class needs no such flag: `ClassConditionalDDPMPipeline.from_pretrained(FOLDER)`.
"""

# mypy: disable-error-code="attr-defined,misc"
# (mypy does not see through diffusers' lazy imports.)
# Annotations are real here, not postponed: diffusers before 0.37 looks at those of `__init__` and knows no texts.
import importlib
import inspect
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import snapshot_download


class ClassConditionalDDPMPipeline(DiffusionPipeline):
    """Draw pictures of named classes, in pixel space.

    Args:
        unet: A `UNet2DModel` with `num_class_embeds` = number of classes + 1; its last id is the null class.
        scheduler: A diffusers scheduler with ε- or v-prediction, such as `DDPMScheduler` or `DDIMScheduler`.
        id2label: Name of each class by id; JSON makes the keys of a saved folder texts.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        id2label: Optional[dict[Any, str]] = None,  # noqa: UP045 - nor does it know unions written with a bar
    ) -> None:
        super().__init__()
        classes = (unet.config.num_class_embeds or 0) - 1
        if classes < 1:
            raise ValueError(
                f"unet must have num_class_embeds = number of classes + 1 (the last is the null class), at least 2; "
                f"it has {unet.config.num_class_embeds}."
            )
        names = {int(number): str(name) for number, name in (id2label or {}).items()}
        names = names or {number: str(number) for number in range(classes)}
        if sorted(names) != list(range(classes)) or len(set(names.values())) != classes:
            raise ValueError(
                f"id2label must give {classes} different names, for the ids 0 to {classes - 1}; got {names}."
            )
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(id2label={str(number): names[number] for number in range(classes)})
        self.labels = {name: number for number, name in names.items()}

    @property
    def null_class_id(self) -> int:
        """The id that means "no class"."""
        return len(self.labels)

    def get_label_ids(self, labels: int | str | Sequence[int | str]) -> list[int]:
        """Ids of classes given by id or name.

        Raises:
            ValueError: If there is no such class.
        """
        wanted = [labels] if isinstance(labels, int | str) else list(labels)
        ids = [self.labels.get(label, -1) if isinstance(label, str) else int(label) for label in wanted]
        for label, number in zip(wanted, ids, strict=True):
            if not 0 <= number < self.null_class_id:
                raise ValueError(
                    f"class_labels must be ids from 0 to {self.null_class_id - 1} or names "
                    f"({', '.join(self.labels)}); got {label!r}."
                )
        return ids

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str],
        guidance_scale: float = 2.0,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw one picture for each class.

            ε̂ = ε_θ(x_t, ∅) + g · (ε_θ(x_t, c) - ε_θ(x_t, ∅))

        Args:
            class_labels: Ids or names, one per picture.
            guidance_scale: g. At 1 the null class is not asked; larger values make the class plainer.
            num_inference_steps: Steps of the scheduler.
            eta: Noise added by a DDIM scheduler, from 0 (none) to 1 (as DDPM); others ignore it.
            generator: One generator, or one for each picture: then a picture depends on its own generator only.
            latents: Noise to start from, `(n, channels, size, size)`, instead of a drawn one.
            output_type: `pil`, `np` (in [0, 1], channels last), `pt` (in [0, 1]) or `latent` (the tensor in [-1, 1]).
            return_dict: Whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end: Called with (pipeline, step, timestep, {"latents": …}) after each step; what it
                returns under `latents` is used from there on.

        Raises:
            ValueError: If a class is unknown, the generators do not fit, or `output_type` is none of those.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be pil, np, pt or latent; got {output_type!r}.")
        ids = torch.tensor(self.get_label_ids(class_labels), device=self.device)
        if isinstance(generator, list) and len(generator) != len(ids):
            raise ValueError(
                f"One generator per picture is required: {len(ids)} pictures, {len(generator)} generators."
            )
        guided = guidance_scale != 1.0
        null = torch.full_like(ids, self.null_class_id)
        shape = (len(ids), self.unet.config.in_channels, self.unet.config.sample_size, self.unet.config.sample_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self.device, dtype=self.unet.dtype)
        x = latents.to(device=self.device, dtype=self.unet.dtype) * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        extra: dict[str, Any] = {}
        takes = inspect.signature(self.scheduler.step).parameters
        if "generator" in takes:
            extra["generator"] = generator
        if "eta" in takes:
            extra["eta"] = eta
        for number, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            scaled = self.scheduler.scale_model_input(x, timestep)
            if guided:
                both = self.unet(torch.cat([scaled, scaled]), timestep, torch.cat([ids, null])).sample
                conditional, unconditional = both.chunk(2)
                noise = unconditional + guidance_scale * (conditional - unconditional)
            else:
                noise = self.unet(scaled, timestep, ids).sample
            x = self.scheduler.step(noise, timestep, x, **extra).prev_sample
            if callback_on_step_end is not None:
                x = callback_on_step_end(self, number, timestep, {"latents": x}).pop("latents", x)
        images: Any = x if output_type == "latent" else (x.float() / 2 + 0.5).clamp(0, 1)
        if output_type in ("pil", "np"):
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save as diffusers does, and put this file beside the components, so that the folder loads anywhere."""
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        source = Path(__file__)
        if (folder / source.name).resolve() != source.resolve():
            shutil.copyfile(source, folder / source.name)
        index = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = [source.stem, type(self).__name__]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> "ClassConditionalDDPMPipeline":
        """Load a folder or a hub id with this class, without running the file that the folder carries.

        Args:
            folder: A folder written by `save_pretrained`, or the id of one on the hub.
            dtype: Of the U-Net; by default float32.
            **kwargs: Passed to `UNet2DModel.from_pretrained`, such as `variant`; for the hub also `revision`,
                `cache_dir`, `token` and `local_files_only`.

        Raises:
            ValueError: If the folder was not written by this pipeline.
        """
        hub = {
            name: kwargs.pop(name) for name in ("revision", "cache_dir", "token", "local_files_only") if name in kwargs
        }
        if not Path(folder).is_dir():
            wanted = ["model_index.json", "scheduler/*.json", "unet/*.json", "unet/*.safetensors"]
            folder = snapshot_download(str(folder), allow_patterns=wanted, **hub)
        index = json.loads((Path(folder) / "model_index.json").read_text())
        if index.get("_class_name") not in (cls.__name__, [Path(__file__).stem, cls.__name__]):
            raise ValueError(f"A folder of {cls.__name__} is required, {folder} is of {index.get('_class_name')}.")
        library, name = index["scheduler"]
        if library != "diffusers":
            raise ValueError(f"The scheduler must be one of diffusers, {folder} names {library}.{name}.")
        scheduler = getattr(importlib.import_module("diffusers"), name).from_pretrained(folder, subfolder="scheduler")
        unet = UNet2DModel.from_pretrained(folder, subfolder="unet", local_files_only=True, **kwargs)
        if dtype is not None:  # diffusers has had two names for this argument.
            unet.to(dtype=dtype)
        return cls(unet=unet.eval(), scheduler=scheduler, id2label=index.get("id2label"))

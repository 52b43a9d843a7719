"""Before and after an erasure, for one prompt and one seed, side by side.

    pipe = DiffusionPipeline.from_pretrained(
        BASE, custom_pipeline="erasure_comparison.py", trust_remote_code=True
    )
    pipe.load_erased("runs/0001-circle/pipeline")  # what `salun erase` left
    out = pipe("a photo of a circle", seed=3)
    out.images  # [before, after]
    out.side_by_side.save("before-and-after.png")

One pipeline is in memory, and of the erased U-Net what differs. This file needs diffusers, torch, safetensors and
Pillow only.
"""

# Annotations are real here, not postponed: diffusers before 0.37 looks at them and knows no texts.
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image, ImageDraw
from safetensors import SafetensorError
from safetensors.torch import load_file

_TITLE = 16  # pixels above each picture, and between the two
_BESIDE = ("vae", "text_encoder")
_OUR_OWN = {"generator", "latents", "num_images_per_prompt", "output_type", "return_dict"}
_UNIMPORTANT = ("_name_or_path", "_diffusers_version")


@dataclass
class ErasureComparisonOutput(BaseOutput):
    """What is drawn.

    Args:
        images: Before and after.
        side_by_side: Both in one picture, with titles.
    """

    images: list[Image.Image]
    side_by_side: Image.Image


class ErasureComparisonPipeline(StableDiffusionPipeline):
    """Stable Diffusion 1.x or 2.x, which draws everything twice."""

    _erased: Any = None

    @torch.no_grad()
    def load_erased(self, folder: str | Path, variant: str | None = None) -> None:
        """Load the U-Net of an erased pipeline.

        Args:
            folder: The pipeline's folder, as `salun erase` leaves it.
            variant: Variant of its weight files, such as ``fp16``.

        Raises:
            ValueError: If it is no pipeline, or one that was not erased from this base.
        """
        folder = Path(folder)
        if not (folder / "unet" / "config.json").is_file():
            raise ValueError(f"A pipeline folder with a U-Net is required, there is none in {folder}.")
        unet = getattr(self.unet, "_orig_mod", self.unet)  # torch.compile wraps it.
        told = json.loads((folder / "unet" / "config.json").read_text())
        ours = json.loads(json.dumps(dict(unet.config), default=str))
        for name in sorted((ours.keys() & told.keys()) - set(_UNIMPORTANT)):
            if ours[name] != told[name]:
                raise ValueError(
                    f"{folder} is of another base: its U-Net has {name} {told[name]!r}, not {ours[name]!r}."
                )
        for part in _BESIDE:  # An erasure copies them as they are.
            module = getattr(self, part)
            theirs = _weights(folder / part, variant)
            own = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
            if not any(_same(own, spelt) for spelt in _spellings(theirs)):
                raise ValueError(f"{folder} is of another base: its {part} has other weights.")
        erased = _weights(folder / "unet", variant)
        live = dict(unet.state_dict(keep_vars=True))
        if erased.keys() != live.keys():
            raise ValueError(f"{folder} is of another base: its U-Net has other tensors.")
        rounded = {name: tensor.to(live[name].dtype) for name, tensor in erased.items()}
        self._erased = {
            name: tensor
            for name, tensor in rounded.items()
            if not torch.equal(_bits(tensor), _bits(live[name].detach().cpu()))
        }

    @torch.no_grad()
    def __call__(self, prompt: str, seed: int = 0, **kwargs: Any) -> ErasureComparisonOutput:
        """Draw a prompt with the base and with the erased model, from the same noise.

        Args:
            prompt: One prompt.
            seed: Of the noise; it is drawn on the CPU, so every machine draws the same.
            **kwargs: As for `StableDiffusionPipeline`, such as `num_inference_steps` and `guidance_scale`.

        Raises:
            ValueError: If no erased model is loaded, or it is not one prompt.
        """
        if self._erased is None:
            raise ValueError("Two models are required: load_erased(FOLDER) first.")
        if not isinstance(prompt, str):
            raise ValueError(f"One prompt is compared at a time, as a text; got {type(prompt).__name__}.")
        if taken := sorted(
            {"generator", "latents", "num_images_per_prompt", "output_type", "return_dict"} & set(kwargs)
        ):
            raise ValueError(f"{taken[0]} is the comparison's own: both pictures begin with the noise of `seed`.")
        before = self._drawn(prompt, seed, kwargs)
        with self._swapped():
            after = self._drawn(prompt, seed, kwargs)
        return ErasureComparisonOutput([before, after], _beside(before, after))

    def _drawn(self, prompt: str, seed: int, kwargs: Mapping[str, Any]) -> Image.Image:
        noise = torch.Generator("cpu").manual_seed(seed)
        image: Image.Image = super().__call__(prompt, generator=noise, **kwargs).images[0]
        return image

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        """The erased weights in the U-Net while the block runs; then the base's again, to the bit."""
        live = dict(getattr(self.unet, "_orig_mod", self.unet).named_parameters())
        base = {name: live[name].detach().to("cpu", copy=True) for name in self._erased}
        try:
            for name, tensor in self._erased.items():
                live[name].data.copy_(tensor)
            yield
        finally:
            for name, tensor in base.items():
                live[name].data.copy_(tensor)


def _weights(folder: Path, variant: str | None) -> dict[str, torch.Tensor]:
    """A component's weights, in one file or in parts."""
    for stem in ("diffusion_pytorch_model", "model"):
        dotted = f".{variant}" if variant else ""
        files = [
            *folder.glob(f"{stem}{dotted}.safetensors"),
            *sorted(folder.glob(f"{stem}{dotted}-*-of-*.safetensors")),
        ]
        if files:
            try:
                return {name: tensor for file in files for name, tensor in load_file(file).items()}
            except (SafetensorError, OSError) as error:
                told = " ".join(str(error).split())[:120]
                raise ValueError(f"{files[0]} is damaged or no safetensors file ({told}).") from error
    raise ValueError(f"{folder} has no safetensors weights{f' of variant {variant}' if variant else ''}.")


def _spellings(weights: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """The same weights under the names that transformers 4 and 5 have for a text encoder's."""
    prefix = "text_model."
    yield weights
    yield {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    yield {name if name.startswith(prefix) else prefix + name: tensor for name, tensor in weights.items()}


def _same(own: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    """Whether a module was loaded from these weights; what is not stored, such as position ids, is no matter."""
    shared = own.keys() & theirs.keys()
    return bool(shared) and all(
        own[name].shape == theirs[name].shape and torch.equal(own[name], theirs[name].to(own[name].dtype))
        for name in shared
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Equal exactly if the values are the same, the sign of a zero included."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _beside(before: Image.Image, after: Image.Image) -> Image.Image:
    """Two pictures in one, each under its title."""
    width, height = before.size
    page = Image.new("RGB", (2 * width + _TITLE, height + _TITLE), "white")
    draw = ImageDraw.Draw(page)
    for left, title, picture in ((0, "before", before), (width + _TITLE, "after", after)):
        draw.text((left + 2, 2), title, fill="black")
        page.paste(picture, (left, _TITLE))
    return page

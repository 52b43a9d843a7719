"""What all families of U-Net pipelines share: loading, and how the network is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from salun_diffusers.diffusion.families.attention import ATTENTION
from salun_diffusers.diffusion.families.family import Conditions, Schedule
from salun_diffusers.diffusion.families.noise_schedule import NoiseSchedule
from salun_diffusers.diffusion.families.tensor_names import check_tensors
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.component_weights import check_components
from salun_diffusers.progress import loading_quietly


class UNetFamily(ABC):
    """A diffusers pipeline around a U-Net under a variance-preserving schedule."""

    kind: ClassVar[str]
    """What the folder must be, in an error."""
    pipeline: ClassVar[Any]
    """The class that draws."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of the pipeline: without what would change or hide pictures."""
    denoiser_folder = "unet"
    attention: Mapping[str, str] = ATTENTION["UNet2DConditionModel"]
    has_empty_prompt = True
    has_encoder = True
    pipe: Any  # mypy does not see through diffusers' lazy imports.

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        variant: str | None = None,
        prediction_type: str = "scheduler",
        resolution: int = 0,
    ) -> None:
        """Load a pipeline folder.

        Args:
            folder: A local diffusers folder.
            device: Where everything goes.
            dtype: Of all parts but the denoiser, and of sampling; the denoiser is always loaded in fp32.
            variant: Variant of the weight files.
            prediction_type: What the network predicts, where the scheduler's file is wrong about that.
            resolution: Side of the pictures that are drawn, in pixels; 0 for the model's own.

        Raises:
            UserError: If the folder does not hold a complete pipeline, or weights of another network.
        """
        check_tensors(folder, variant)
        check_components(folder, variant)
        try:
            with loading_quietly():
                self.pipe = self._load(folder, dtype, variant)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} cannot be loaded as a {self.kind}: {one_line(error, 300)}") from error
        self.pipe.to(device)
        self._begin(folder, device=device, dtype=dtype, prediction_type=prediction_type, resolution=resolution)

    @classmethod
    def around(
        cls,
        pipe: Any,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        prediction_type: str = "scheduler",
        resolution: int = 0,
    ) -> Self:
        """The family of a pipeline that is in memory, which then is the family's own.

        Args:
            pipe: Of the class that `_load` returns, its denoiser in fp32, everything on the device.
            folder: What messages call it.
            device: As for a folder.
            dtype: As for a folder.
            prediction_type: As for a folder.
            resolution: As for a folder.
        """
        family = cls.__new__(cls)
        family.pipe = pipe
        family._begin(folder, device=device, dtype=dtype, prediction_type=prediction_type, resolution=resolution)
        return family

    def _begin(
        self, folder: Path, *, device: torch.device, dtype: torch.dtype, prediction_type: str, resolution: int
    ) -> None:
        """Take up the pipeline, wherever it is from."""
        if prediction_type != "scheduler":
            self.pipe.scheduler.register_to_config(prediction_type=prediction_type)
        self.pipe.set_progress_bar_config(disable=True)
        self._upcast(dtype)
        self.denoiser: nn.Module = self.pipe.unet
        self.folder, self.device, self._dtype, self._resolution = folder, device, dtype, resolution
        self.schedule: Schedule = NoiseSchedule(self.pipe.scheduler, folder, device)

    @property
    def side(self) -> int:
        """Pixels along a picture: as wanted, or the model's own."""
        size: Any = self.pipe.unet.config.sample_size
        return self._resolution or int(size if isinstance(size, int) else size[0]) * self._scale

    @property
    def picture_channels(self) -> int:
        """Of what is encoded."""
        return 3 if self.has_encoder else int(self.pipe.unet.config.in_channels)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the denoiser sees."""
        return int(self.pipe.unet.config.in_channels), self.side // self._scale, self.side // self._scale

    @property
    def _scale(self) -> int:
        """Pixels along the side of a latent's cell."""
        return int(self.pipe.vae_scale_factor) if self.has_encoder else 1

    @abstractmethod
    def _load(self, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
        """The pipeline, with the denoiser in fp32 and all else in `dtype`."""

    def _upcast(self, dtype: torch.dtype) -> None:
        """Put parts into fp32 that cannot compute in this type; a family without such parts has nothing to do."""
        return

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """ε, v or x₀, as the network answers."""
        prediction: Tensor = denoiser(noised, timesteps, **conditions).sample
        return prediction.float()

    def autocast(self) -> torch.autocast:
        """The precision of sampling."""
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32)

"""What all families of U-Net pipelines share: loading, and the noise loss's view of network and schedule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salun_diffusers.diffusion.families.family import Conditions
from salun_diffusers.diffusion.families.noise_schedule import NoiseSchedule
from salun_diffusers.diffusion.families.tensor_names import check_tensors
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.component_weights import check_components
from salun_diffusers.progress import loading_quietly


class UNetFamily:
    """A diffusers pipeline around a U-Net, which predicts ε or v under a variance-preserving schedule."""

    denoiser_folder = "unet"
    pipe: Any  # mypy does not see through diffusers' lazy imports.

    def __init__(
        self,
        load: Callable[[], Any],
        kind: str,
        folder: Path,
        *,
        variant: str | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Load a pipeline folder.

        Args:
            load: Loads it, with the denoiser in fp32.
            kind: What it must be, in the error.
            folder: Where it lies.
            variant: Variant of the weight files.
            device: Where everything goes.
            dtype: Precision of sampling.

        Raises:
            UserError: If the folder does not hold a complete pipeline, or weights of another network.
        """
        check_tensors(folder, variant)
        check_components(folder, variant)
        try:
            with loading_quietly():
                self.pipe = load()
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} cannot be loaded as a {kind}: {one_line(error, 300)}") from error
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.to(device)
        self.denoiser: nn.Module = self.pipe.unet
        self.folder, self.device, self._dtype = folder, device, dtype
        self.noise_schedule = NoiseSchedule(self.pipe.scheduler, folder, device)
        self.num_train_timesteps = self.noise_schedule.num_train_timesteps

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of clean latents."""
        return self.noise_schedule.noised(latents, noise, timesteps)

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        """SNR of the schedule."""
        return self.noise_schedule.signal_to_noise(timesteps)

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """ε_θ(x_t, c)."""
        prediction: Tensor = denoiser(noised, timesteps, **conditions).sample.float()
        return self.noise_schedule.epsilon(prediction, noised, timesteps)

    def _autocast(self) -> torch.autocast:
        """The precision of sampling."""
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32)

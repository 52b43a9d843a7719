"""A model as its configurations describe it: networks of the right shapes, whose weights nobody has.

Made within `memory_account.imagined`, they take no memory; what a run would need is counted on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

from salun_diffusers.diffusion.families.erasable import FAMILIES
from salun_diffusers.diffusion.families.family import Conditions, Family
from salun_diffusers.diffusion.families.known import family_of
from salun_diffusers.diffusion.families.noise_schedule import NoiseSchedule
from salun_diffusers.diffusion.memory_account import GPU
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.pipeline_folder import class_name, model_index


@dataclass(frozen=True)
class ModelShape:
    """The configurations of a pipeline's parts.

    Args:
        pipeline: Class of the pipeline.
        parts: By name of the part: its class, and its configuration as its `config.json` has it.
    """

    pipeline: str
    parts: Mapping[str, tuple[str, Mapping[str, Any]]]

    @classmethod
    def of(cls, folder: Path, resolution: int = 0) -> ModelShape:
        """What the configurations in a pipeline folder say.

        Args:
            folder: The pipeline.
            resolution: Side of the pictures that are drawn, in pixels; 0 for the model's own.

        Raises:
            UserError: If the denoiser has none.
        """
        index = model_index(folder)
        parts = {}
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            file = folder / name / "config.json"
            entry = index.get(name)
            if isinstance(entry, list) and entry[1] and file.is_file():
                parts[name] = (str(entry[1]), read_object(file, constants=float))
        if "unet" not in parts:
            raise UserError(f"{folder} has no unet/config.json, so nothing is known of the size of its network.")
        if resolution:
            class_, config = parts["unet"]
            vae = parts["vae"][1].get("block_out_channels", [1] * 4) if "vae" in parts else [1]
            parts["unet"] = (class_, {**config, "sample_size": resolution // 2 ** (len(vae) - 1)})
        return cls(class_name(index), parts)

    @property
    def attention(self) -> Mapping[str, str]:
        """What the words of --train_method mean in the denoiser."""
        meaning: Mapping[str, str] = self._family.attention
        return meaning

    @property
    def _family(self) -> Any:
        if self.pipeline not in FAMILIES:
            raise UserError(f"No family handles a {self.pipeline}; known are {', '.join(FAMILIES)}.")
        return family_of(self.pipeline)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the denoiser sees."""
        config = self.parts["unet"][1]
        side = config.get("sample_size") or 64
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return int(config.get("in_channels", 4)), int(height), int(width)

    def denoiser_shapes(self) -> dict[str, torch.Size]:
        """Shapes of the denoiser's tensors by name."""
        return {name: tensor.shape for name, tensor in self._network("unet", torch.float32, GPU).named_parameters()}

    def weights_beside(self) -> int:
        """How many weights the other parts have: the VAE and the text encoders."""
        others = [self._network(name, torch.float32, GPU) for name in self.parts if name != "unet"]
        return sum(parameter.numel() for network in others for parameter in network.parameters())

    def family(self, sampling: torch.dtype, device: torch.device = GPU) -> Family:
        """The family of the pipeline with networks of these shapes, in eval mode, the denoiser in fp32.

        Args:
            sampling: Type of all parts but the denoiser.
            device: Where they lie: on the imagined GPU, or on a real device with random weights.

        Raises:
            UserError: If no family handles the pipeline, or a configuration describes no network.
        """
        family: Any = object.__new__(self._family)  # Its __init__ loads a folder.
        parts = {
            name: self._network(name, torch.float32 if name == "unet" else sampling, device) for name in self.parts
        }
        pictures = SimpleNamespace(postprocess=lambda *_, **__: [])  # Nobody can look at them.
        family.pipe = SimpleNamespace(**parts, image_processor=pictures, numpy_to_pil=lambda *_: [])
        family.denoiser, family.device, family.folder, family._dtype = (
            parts["unet"],
            device,
            Path(self.pipeline),
            sampling,
        )
        # Which noise it is costs no memory.
        family.schedule = NoiseSchedule(diffusers.DDPMScheduler(), family.folder, device)
        made: Family = family
        return made

    def decode(self, family: Family, rows: int) -> None:
        """Make pictures, where that takes a network."""
        if "vae" in self.parts:
            family.decode(torch.zeros(rows, *self.latent_shape, device=GPU))

    def conditions(self, rows: int, device: torch.device = GPU) -> Conditions:
        """Conditions of some prompts, all zeros."""
        _, config = self.parts["unet"]
        if config.get("num_class_embeds"):
            return {"class_labels": torch.zeros(rows, dtype=torch.int64, device=device)}
        found: dict[str, Tensor] = {
            "encoder_hidden_states": torch.zeros(rows, self._tokens, int(config["cross_attention_dim"]), device=device)
        }
        if config.get("addition_embed_type") == "text_time":
            sizes = 6
            pooled = config["projection_class_embeddings_input_dim"] - sizes * config["addition_time_embed_dim"]
            found["text_embeds"] = torch.zeros(rows, pooled, device=device)
            found["time_ids"] = torch.zeros(rows, sizes, device=device)
        return found

    @property
    def _tokens(self) -> int:
        """Text states of one prompt."""
        _, config = self.parts.get("text_encoder", ("", {}))
        return int(config.get("max_position_embeddings", 77))

    def _network(self, name: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """One part without weights, in eval mode."""
        class_, config = self.parts[name]
        library: Any = diffusers if hasattr(diffusers, class_) else transformers
        kind = getattr(library, class_, None)
        if kind is None:
            raise UserError(f"{self.pipeline} has a {name} of class {class_}, which is not known here.")
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(dtype)  # Imagined tensors that are counted cannot be turned to another afterwards.
            with device:
                if library is diffusers:
                    network = kind.from_config(dict(config))
                else:
                    network = kind(kind.config_class.from_dict(dict(config)))
        except Exception as error:  # A configuration can be wrong in any way.
            raise UserError(f"The configuration of {name} describes no network: {one_line(error, 160)}.") from error
        finally:
            torch.set_default_dtype(before)
        evaluated: nn.Module = network.eval()
        return evaluated

"""A rehearsal of a run: the start of its saliency pass and of its training, at their sizes, on blank latents.

The run's own code does the work. Afterwards every weight is what it was, bit for bit, and the optimizer is gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from salun_diffusers.diffusion.averages import averages_of
from salun_diffusers.diffusion.baselines import make_objective
from salun_diffusers.diffusion.batches import Draws
from salun_diffusers.diffusion.families.family import Conditions, Family
from salun_diffusers.diffusion.foreseen import MADE_MASKS, trained_names
from salun_diffusers.diffusion.global_batch import GlobalBatch, Share
from salun_diffusers.diffusion.latent_set import LatentSet
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.masks import trained_parameters
from salun_diffusers.diffusion.objectives import EraseBatch
from salun_diffusers.diffusion.optimizer import make_optimizer
from salun_diffusers.diffusion.robustness import Robustness
from salun_diffusers.diffusion.saliency_pass import forget_saliency
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.stage_marks import StageMarks
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.diffusion.trainer import step_of
from salun_diffusers.diffusion.training_back import TrainingBack
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.packed_bits import bytes_for
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.progress import Clock


class QuietRun(Run):
    """A run without a folder, that shows and writes nothing."""

    @classmethod
    def of(cls, accelerator: Any) -> QuietRun:
        """A rehearsal on the processes of an accelerator."""
        return cls(accelerator, RunFolder(Path("rehearsal")), Clock({}), "", StageMarks("", {}, "", "", ""), "")

    @property
    def main(self) -> bool:
        """No process shows anything."""
        return False


def blank_data(settings: Settings, latent: tuple[int, ...], conditions: Conditions) -> EraseData:
    """As many blank latents as the rehearsed batches take: in the saliency pass two of them.

    Args:
        settings: Of the run.
        latent: Shape of one.
        conditions: Of any prompt, one row.
    """

    def blank(count: int) -> LatentSet:
        return LatentSet(torch.zeros(count, *latent), torch.zeros(count, dtype=torch.int64), ("",))

    trained = blank(1)  # Rows are drawn from it again and again.
    return EraseData(
        forget=blank(2 * _rehearsed_batch(settings)), retain=trained, anchor=trained, forget_conditions=conditions,
        anchor_conditions=conditions, retain_conditions=conditions, empty=conditions,
    )  # fmt: skip


def mask_of_size(shapes: Mapping[str, torch.Size], settings: Settings, attention: Mapping[str, str]) -> SaliencyMask:
    """A mask that selects as many weights of every tensor as the ratio says, the first ones; or the user's own mask.

    Args:
        shapes: Of the denoiser's tensors by name.
        settings: Of the run.
        attention: What the words of --train_method mean, of the family.
    """
    if settings.mask not in MADE_MASKS:
        return SaliencyMask.load(Path(settings.mask)).extended_to({name: tuple(size) for name, size in shapes.items()})
    trained = set(trained_names(shapes, settings.train_method, attention))
    ratio = 1.0 if settings.mask == "full" else settings.mask_ratio
    packed = {}
    for name, shape in shapes.items():
        bits = torch.zeros(bytes_for(shape.numel()), dtype=torch.uint8)
        whole, rest = divmod(moved_of(name, shape, ratio, settings) if name in trained else 0, 8)
        bits[:whole] = 255
        if rest:
            bits[whole] = 2**rest - 1
        packed[name] = bits
    return SaliencyMask(packed, shapes, {"kind": "rehearsal"})


def moved_of(name: str, shape: torch.Size, ratio: float, settings: Settings) -> int:
    """Weights of a tensor that move; with a LoRA as many as it has parameters there, spread evenly.

    Args:
        name: Of the tensor.
        shape: Of the tensor.
        ratio: The share that a mask selects.
        settings: Whether there is a LoRA, and of which rank.
    """
    if settings.adapter == "none":
        return int(ratio * shape.numel())
    layer = name.endswith(".weight") and len(shape) in (2, 4)
    return min(settings.rank * (shape[0] + shape[1:].numel()), shape.numel()) if layer else 0


def _rehearsed_batch(settings: Settings) -> int:
    """Latents of a rehearsed batch of the saliency pass: a micro-batch, or two where their gradients are squared."""
    micro = int(min(settings.saliency_batch_size, settings.saliency_micro_batch_size))
    in_parts = settings.mask == "saliency_ratio" and micro < settings.saliency_batch_size
    return 2 * micro if in_parts else micro


def rehearse_saliency(run: Run, family: Family, data: EraseData, settings: Settings) -> None:
    """Two batches of the saliency pass: from the second on the sums are there."""
    settings = dataclasses.replace(settings, saliency_batch_size=_rehearsed_batch(settings))
    trained = trained_parameters(dict(family.denoiser.named_parameters()), settings.train_method, family.attention)
    forget_saliency(run, family, trained, data, settings)


def rehearsed_rows(run: Run, settings: Settings) -> int:
    """Rows that one rehearsed step takes forward and backward."""
    each = GlobalBatch.of(settings, run.accelerator.num_processes).largest
    return (
        (len(make_objective(settings).halves) + Robustness.of(settings).rows)
        * each
        * min(settings.gradient_accumulation_steps, 2)
    )


class _BlankDraws(Draws):
    """Draws whose targets, where the base would have answered before, are blank."""

    def next(self, network: nn.Module) -> tuple[EraseBatch, Tensor]:
        """The next batch and its target."""
        if self.objective.teacher != "base":
            return super().next(network)
        batch = self.batch(self._shares.popleft())
        return batch, torch.zeros_like(batch.noised)


@contextmanager
def rehearsed_training(
    run: Run,
    family: Family,
    mask: SaliencyMask,
    data: EraseData,
    settings: Settings,
    optimizer: Callable[[SelectedWeights, Settings], torch.optim.Optimizer] = make_optimizer,
) -> Iterator[tuple[Callable[[], None], torch.optim.Optimizer]]:
    """Training set up as a run does it; afterwards the weights are what they were.

    Of a step that accumulates, two micro-batches are enough to see its memory.

    Args:
        run: Processes and precision.
        family: The base model.
        mask: As large as the run's.
        data: Blank.
        settings: Of the run.
        optimizer: Makes the optimizer.

    Yields:
        What takes a step, and the optimizer.
    """
    largest = GlobalBatch.of(settings, run.accelerator.num_processes).largest
    share = Share(step=0, size=largest, rows=range(largest), weight=1.0)
    micro = min(settings.gradient_accumulation_steps, 2)
    settings = dataclasses.replace(settings, gradient_accumulation_steps=micro)
    accelerator, objective = run.accelerator, make_objective(settings)
    selected = SelectedWeights(dict(family.denoiser.named_parameters()), mask)
    # On the host, where a GPU is short of memory; a tensor that is selected whole is no copy, but the weights.
    before = {name: leaf.to("cpu", copy=True) for name, leaf in selected.state().items()}
    stepper, averages = optimizer(selected, settings), averages_of(selected, settings.use_ema)
    alone = accelerator.distributed_type == DistributedType.NO
    network = family.denoiser if alone else DistributedDataParallel(family.denoiser)
    attacker = TrainingBack(selected, Robustness.of(settings))

    def step() -> None:
        draws = _BlankDraws(family, data, objective, settings, [share] * micro)
        step_of(accelerator, network, attacker, stepper, draws, settings)(progress=0.0)
        averages.update()

    try:
        with selected.in_training(gather_as_they_come=alone):
            yield step, stepper
    finally:
        selected.load(before)
        accelerator.step = 0  # Of micro-batches, which accumulation counts.

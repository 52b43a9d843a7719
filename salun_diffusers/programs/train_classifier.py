"""Train a starting classifier.

    salun train-classifier --dataset digits --output_dir runs/classifier
    salun train-classifier --preset salun-table1 --output_dir runs/cifar10

The folder holds a transformers model, how its pictures are normalised, and the settings of its training, which
unlearning takes over: what was held out here must be held out there.
"""

from __future__ import annotations

from salun_diffusers.classification.config import TrainConfig
from salun_diffusers.programs.program import Program


def work(config: TrainConfig, command: str) -> str:
    """Train, and say how good it is."""
    from salun_diffusers.classification.train import run_training

    folder, result = run_training(config)
    return f"\ntest accuracy {result:.4f}\nmodel         {folder}\n"


main = Program(
    "train-classifier",
    TrainConfig,
    work,
    __doc__ or "",
    interrupted="nothing was written.",
    left_open="as --preset has it",
)

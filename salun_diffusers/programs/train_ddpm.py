"""Train a class-conditional DDPM with classifier-free guidance, and save it as a pipeline folder.

    accelerate launch -m salun_diffusers train-ddpm --train_data digits --output_dir runs/digits

On two CPU cores, two processes of one thread each are faster than one process of two threads:

    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 accelerate launch --multi_gpu --num_processes 2 \
        -m salun_diffusers train-ddpm --train_data digits --output_dir runs/digits

Checkpoints (safetensors and JSON) lie in `--output_dir`; the same command goes on where it stopped.
"""

from __future__ import annotations

from salun_diffusers.diffusion.ddpm_config import TrainDDPMConfig
from salun_diffusers.programs.program import Program


def work(config: TrainDDPMConfig, command: str) -> str:
    """Train, and say where the pipeline is."""
    from salun_diffusers.diffusion.ddpm_training import train

    return f"pipeline  {train(config)}\n"


main = Program("train-ddpm", TrainDDPMConfig, work, __doc__ or "")

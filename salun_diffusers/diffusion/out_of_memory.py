"""What a user is told when a run does not fit in memory: which flags would make it fit, and that nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from salun_diffusers.diffusion.config import SALIENCY_MASKS, EraseConfig
from salun_diffusers.errors import UserError, is_out_of_memory


@contextmanager
def out_of_memory_is_told(config: EraseConfig, folder: Path | None = None) -> Iterator[None]:
    """Turn exhausted memory into one sentence.

    Args:
        config: The user's flags: what is not given yet is named.
        folder: The run's, which keeps what was finished; None before there is one.

    Raises:
        UserError: If the block ran out of memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        flags = saving_flags(config)
        less = f"less is needed with {', '.join(flags)}" if flags else "a smaller model or a larger machine is needed"
        kept = (
            f"Nothing that was finished is lost: the same command with --output_dir {folder} --resume_from_checkpoint "
        )
        raise UserError(
            f"Memory ran out; {less}." + (f" {kept}latest and other such flags goes on from there." if folder else "")
        ) from error


def saving_flags(config: EraseConfig) -> list[str]:
    """The flags that would save memory and are not given, those that save most first.

    Figures of Stable Diffusion 1.x, batch 8 + 8: checkpointing 24 GB of activations in fp32, bf16 half of what is left,
    micro-batches of 1 and a batch of 1 seven eighths of it, 8 bits 2.6 GB at ratio 0.5, sums on the CPU 3.4 GB, and a
    ratio of 0.1 most of leaves and moments.
    """
    flags = {
        "--gradient_checkpointing": not config.gradient_checkpointing,
        "--mixed_precision bf16": config.mixed_precision in (None, "no"),
        "--saliency_micro_batch_size 1": config.saliency_micro_batch_size != 1 and config.mask in SALIENCY_MASKS,
        # The global batch stays, and with it the training: the same folder goes on.
        "--gradient_accumulation_steps 8": config.train_batch_size is None and config.gradient_accumulation_steps < 8,
        f"--train_batch_size 1 with {config.train_batch_size} times the --gradient_accumulation_steps": (
            config.train_batch_size not in (None, 1)
        ),
        "--use_8bit_adam": not config.use_8bit_adam,
        "--offload_saliency": not config.offload_saliency and config.mask in SALIENCY_MASKS,
        "--generation_batch_size 1": config.generation_batch_size != 1,
        "--mask_ratio 0.1 (another mask)": config.mask_ratio > 0.1,
    }
    return [flag for flag, saves in flags.items() if saves]

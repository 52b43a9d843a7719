"""The accelerate engine of a run: made for its settings, and agreed upon by its processes."""

from __future__ import annotations

import datetime
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    AutocastKwargs,
    DistributedType,
    DynamoBackend,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
)

from salun_diffusers.errors import UserError, tell

T = TypeVar("T")
_PATIENCE = datetime.timedelta(days=1)  # NCCL gives up after ten minutes; the main process may look at pictures longer.
_SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.FSDP)


@contextmanager
def engine(
    *,
    mixed_precision: str | None,
    gradient_accumulation_steps: int,
    report_to: str | None,
    trains: bool = True,
    device: torch.device | None = None,
) -> Iterator[Accelerator]:
    """An `Accelerator` that knows nothing of an earlier one.

    accelerate keeps the precision in a state that all of a Python process shares: a second run would silently compute
    in the first one's precision, or be refused. What was there before is there again afterwards.

    Args:
        mixed_precision: ``no``, ``fp16``, ``bf16``, or None for what accelerate was configured with.
        gradient_accumulation_steps: Batches per optimizer step.
        report_to: Name of a tracker, or None.
        trains: Whether gradients are taken.
        device: Where a single process computes; None leaves that to accelerate.

    Raises:
        UserError: If accelerate refuses the settings, or is configured for what the mask cannot work with or for what
            computes wrong gradients.
    """
    _refuse_configured(mixed_precision, trains)
    if "ACCELERATE_USE_FSDP" in os.environ:  # transformers would leave weights of all but the first process empty.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    shared = AcceleratorState._shared_state
    earlier = dict(shared)
    shared.clear()
    placed = ExitStack()
    try:
        placed.enter_context(_computing_on(device))
        # autocast would keep the weights that it casts until its block ends; up to torch 2.10 those cast without
        # gradient, too. A network that is its own teacher in the block then loses its gradients (pytorch#158232).
        handlers = [AutocastKwargs(cache_enabled=False), InitProcessGroupKwargs(timeout=_PATIENCE)]
        try:
            with warnings.catch_warnings():
                # A tracker that is not installed is refused below, in our own words.
                warnings.filterwarnings("ignore", "`log_with=", UserWarning)
                accelerator = Accelerator(
                    mixed_precision=mixed_precision, gradient_accumulation_steps=gradient_accumulation_steps,
                    log_with=report_to, project_dir="runs", kwargs_handlers=handlers,
                )  # fmt: skip
        except (ValueError, ImportError) as error:
            raise UserError(f"accelerate refuses these settings: {error}") from error
        _require_tracker(report_to, accelerator)
        if accelerator.distributed_type not in _SUPPORTED:
            raise UserError(
                f"accelerate is configured for {accelerator.distributed_type.value}; one process, DDP or FSDP2 is "
                "required. Run `accelerate launch --multi_gpu …` or `--num_processes 1`."
            )
        if trains:
            _refuse_wrong_gradients(accelerator)
        threads = torch.get_num_threads()
        torch.set_num_threads(threads_for(accelerator.device.type, accelerator.num_processes, threads))
        try:
            yield accelerator
        finally:
            torch.set_num_threads(threads)
    finally:
        placed.close()
        shared.clear()
        shared.update(earlier)


@contextmanager
def _computing_on(device: torch.device | None) -> Iterator[None]:
    """Within the block accelerate takes this device, whatever an earlier engine of the process took."""
    if device is None:
        yield
        return
    shared, name = PartialState._shared_state, "ACCELERATE_TORCH_DEVICE"
    earlier, told = dict(shared), os.environ.get(name)
    shared.clear()
    os.environ[name] = str(device)
    try:
        yield
    finally:
        shared.clear()
        shared.update(earlier)
        os.environ.pop(name)
        if told is not None:
            os.environ[name] = told


def _refuse_configured(mixed_precision: str | None, trains: bool) -> None:
    """Refuse what `accelerate config` or `accelerate launch` asked for and the mask cannot work with.

    Known by the environment, before accelerate asks for the packages that such a configuration needs.

    Raises:
        UserError: For DeepSpeed, FSDP and fp8.
    """

    def wanted(name: str) -> bool:
        return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"

    advice = "Run `accelerate launch --multi_gpu …` or `--num_processes 1`."
    if wanted("DEEPSPEED"):
        raise UserError(
            "accelerate is configured for DeepSpeed; one process or DDP is required, since DeepSpeed keeps weights and "
            f"gradients in buffers of its own, which no mask fits. {advice}"
        )
    precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted("FSDP") and os.environ.get("WORLD_SIZE", "1") != "1":
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UserError(
                "accelerate is configured for FSDP1; FSDP2, DDP or one process is required, since FSDP1 has flat "
                "buffers instead of the tensors that a mask names. Run `accelerate launch --use_fsdp --fsdp_version 2 "
                "…`, or `--multi_gpu`."
            )
        if not trains:
            raise UserError(f"accelerate is configured for FSDP, and this program only draws. {advice}")
        if precision.lower() == "fp16" or os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
            raise UserError(
                "FSDP2 is for bf16 or fp32, with weights on the device: fp16's loss scale and offloaded weights are "
                f"not shared out. Take --mixed_precision bf16, without offloading. {advice}"
            )
    if precision.lower() == "fp8":
        raise UserError(
            "accelerate is configured for fp8, which replaces layers and with them the weights that the mask names; "
            "--mixed_precision bf16, fp16 or no is required."
        )


def sharding_plugin(accelerator: Accelerator) -> Any:
    """How FSDP2 shall share out a network, or None where it shall not.

    accelerate leaves its own plugin aside on CPUs; here it holds there, too.
    """
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not wanted or accelerator.num_processes == 1:
        return None
    configured = getattr(accelerator.state, "fsdp_plugin", None)
    return configured if configured is not None else FullyShardedDataParallelPlugin()


def _require_tracker(report_to: str | None, accelerator: Accelerator) -> None:
    """Refuse a tracker that is not installed; `all` means those that are.

    Raises:
        UserError: If it is not.
    """
    if not report_to or accelerator.log_with:
        return
    if report_to != "all":
        package = {"comet_ml": "comet-ml"}.get(report_to, report_to)
        raise UserError(f"--report_to {report_to} needs a package that is not installed; pip install {package}.")
    if accelerator.is_main_process:
        tell("note", "--report_to all: no tracker that accelerate knows is installed, so nothing is logged.")


def _refuse_wrong_gradients(accelerator: Accelerator) -> None:
    """Refuse bfloat16 under `torch.compile` on a CPU.

    Measured with torch 2.13.0 on the embedded model's denoiser: the compiled loss is right, but gradients are not (zero
    for the weights of the downsampler, cosine 0.3 to 0.6 to the right ones in the text encoder). In float32 they are.

    Raises:
        UserError: If accelerate is configured so.
    """
    compiled = accelerator.state.dynamo_plugin.backend == DynamoBackend.INDUCTOR
    if compiled and accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        raise UserError(
            "bf16 with --dynamo_backend inductor gives wrong gradients on a CPU; one of the two must be `no`. Run "
            "`accelerate launch --dynamo_backend no …` or with --mixed_precision no."
        )


def threads_for(device: str, processes: int, threads: int) -> int:
    """CPU threads of a process, where `threads` are set.

    `accelerate launch` sets OMP_NUM_THREADS to 1 unless told otherwise, which leaves all but one core idle when the
    model is on the CPU (measured on two cores: 185 s instead of 120 s for the demo). A process that accelerate launched
    with one thread takes its share of the cores it may use; `taskset` still limits them. One thread that the user asked
    for, by OMP_NUM_THREADS or --num_cpu_threads_per_process, stays one.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if device != "cpu" or threads != 1 or not launched or _threads_were_asked_for():
        return threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def _threads_were_asked_for() -> bool:
    """Whether the launcher was started with a number of threads; it hands on its own in the same variable."""
    try:
        launcher = psutil.Process(os.getppid())
        flags = (word.replace("-", "_") for word in launcher.cmdline())
        return "OMP_NUM_THREADS" in launcher.environ() or any(
            flag.startswith("__num_cpu_threads_per_process") for flag in flags
        )
    except psutil.Error:  # It has ended, or belongs to somebody else.
        return False


def start_trackers(accelerator: Accelerator, folder: Path, project: str, settings: Mapping[str, object]) -> None:
    """Let the trackers that the engine was made with write below `folder`; without one, nothing happens.

    Args:
        accelerator: The engine.
        folder: Where those go that write files.
        project: What runs are filed under.
        settings: What a tracker records of the run; texts and numbers are all that every tracker takes.
    """
    # `set_directories` would leave the folder of logs where it was when the engine was made: runs/ of wherever one is.
    accelerator.project_configuration.project_dir = accelerator.project_configuration.logging_dir = str(folder)
    plain = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
        for name, value in settings.items()
    }
    accelerator.init_trackers(project, config=plain)


def decided_by_main(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """The main process decides, all others learn of it.

    Raises:
        UserError: On every process, if `decide` raises one.
    """
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = decide()
        except UserError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    decided: T = answer[0]
    return decided


def made_by_main(accelerator: Accelerator, make: Callable[[], T]) -> T | None:
    """What the main process alone makes and holds, such as a model that only it asks; the others wait and get None.

    Raises:
        UserError: On every process, if `make` raises one.
    """
    made: list[T] = []
    decided_by_main(accelerator, lambda: made.append(make()))
    return made[0] if made else None


@dataclass(frozen=True)
class Processes:
    """Who shares some work.

    Args:
        rank: This process's number.
        count: How many there are.
        wait: A barrier between them.
    """

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, accelerator: Accelerator) -> Processes:
        """All processes of a run."""
        return cls(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)


ALONE = Processes()


def sampling_dtype(accelerator: Accelerator) -> torch.dtype:
    """The precision that pictures are drawn in: that of the run on a GPU, fp32 on a CPU."""
    if accelerator.device.type == "cpu":
        return torch.float32
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)

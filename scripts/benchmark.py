"""Measure what the masks and the erasing cost: time and memory.

    python scripts/benchmark.py threshold
    python scripts/benchmark.py optimizer
    python scripts/benchmark.py step --side 32 --batch 1
    python scripts/benchmark.py memory
    python scripts/benchmark.py end-to-end

`threshold` builds the mask of a Stable Diffusion 1.x U-Net from its 859,520,964 scores, and a double argsort of fewer.
`optimizer` compares an update of the selected weights with a dense one, `step` a whole step of fine-tuning with the
official code's on random weights of the real shape. `memory` accounts for every stage of a run on Stable Diffusion 1.x
and XL, on any machine; on a GPU its own counter is read as well. `end-to-end` erases a circle from the embedded model.
Figures go to stdout and, with --json, to a file together with a description of the machine.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from own_process import alone
from torch import nn

from salun_diffusers.arguments import setting, word
from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.saliency import Saliency
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.programs.program import Program

RATIO = 0.5
UNET_WEIGHTS = 859_520_964
ARGSORT_WEIGHTS = 40_000_000
STEP_TENSORS, STEP_SIDE = 50, 1000
REPEATS = 5

Figures = dict[str, Any]


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    benchmark: Literal["threshold", "optimizer", "step", "memory", "end-to-end"] = word("What is measured.")
    weights: int | None = setting(
        None,
        f"How many scores `threshold` ranks; by default the U-Net's {UNET_WEIGHTS:,}.",
        minimum=1,
        maximum=UNET_WEIGHTS,
    )
    model: Literal["sd1", "sd1-half", "sdxl", "small"] | None = setting(
        None,
        "Of step and memory: Stable Diffusion 1.x, half as wide (step only) or XL, or the embedded model; by default "
        "step takes sd1, which needs 20 GB, and memory its bars.",
    )
    flags: str = setting("", "Of memory with --model: flags of `salun erase`, in one word.")
    side: int = setting(32, "Of step: height and width of the latents.", minimum=8)
    batch: int = setting(1, "Of step: forget pictures a step, and as many retain pictures.", minimum=1)
    repeats: int = setting(3, "Of step: steps that count.", minimum=1)
    compiled: bool = setting(False, "Of step: also time a pass of the compiled network; compiling takes minutes.")
    quick: bool = setting(False, "Of end-to-end: a few pictures and steps, to see that it runs.")
    json: str | None = setting(None, "Also write the figures to this file.")


def unet_shapes(weights: int) -> dict[str, torch.Size]:
    """Return the parameter shapes of the SD 1.x U-Net, cut off after `weights` entries."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    shapes: dict[str, torch.Size] = {}
    for name, parameter in unet.named_parameters():
        room = weights - sum(shape.numel() for shape in shapes.values())
        if room <= 0:
            break
        shapes[name] = parameter.shape if parameter.numel() <= room else torch.Size([room])
    return shapes


def peak_bytes() -> int:
    """Return the most memory this process has ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(task: Callable[[], object], elements: int) -> Figures:
    """Time one call, and the growth of the peak memory over it."""
    before, start = peak_bytes(), time.perf_counter()
    task()
    seconds, extra = time.perf_counter() - start, peak_bytes() - before
    return {
        "weights": elements,
        "seconds": seconds,
        "extra_bytes": extra,
        "nanoseconds_per_weight": seconds / elements * 1e9,
        "extra_bytes_per_weight": extra / elements,
    }


def radix_threshold(weights: int) -> Figures:
    """Measure `SaliencyMask.from_saliency`: threshold and packed mask."""
    shapes = unet_shapes(weights)
    generator = torch.Generator().manual_seed(0)
    saliency = Saliency(
        {name: torch.empty(shape).normal_(generator=generator).abs_() for name, shape in shapes.items()}
    )
    masks: list[SaliencyMask] = []
    figures = measure(lambda: masks.append(SaliencyMask.from_saliency(saliency, RATIO)), saliency.number_of_weights)
    if masks[0].number_selected != int(RATIO * saliency.number_of_weights):
        raise RuntimeError("The mask selects another number of weights than asked for.")
    return {**figures, "tensors": len(shapes), "selected": masks[0].number_selected}


def double_argsort(weights: int) -> Figures:
    """Measure the way of OPTML-Group/Unlearn-Saliency@a6e89fd: rank all scores by sorting twice, int64 mask."""
    scores = [torch.rand(weights, generator=torch.Generator().manual_seed(0))]

    def mask() -> torch.Tensor:
        descending = -torch.cat(scores)
        ranks = torch.argsort(torch.argsort(descending))
        selected = torch.zeros_like(ranks)
        selected[ranks < int(RATIO * weights)] = 1
        return selected

    return measure(mask, weights)


def optimizer_steps(fused: bool) -> Figures:
    """Time one AdamW step on all weights, and on the selected ones including gather and scatter (median)."""
    shapes = {f"weight{index}": (STEP_SIDE, STEP_SIDE) for index in range(STEP_TENSORS)}
    parameters = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    gradients = {name: torch.randn(shape) for name, shape in shapes.items()}

    def median_seconds(step: Callable[[], None]) -> float:
        times = []
        # One more than is counted: the first step allocates the optimizer's state.
        for _ in range(REPEATS + 1):
            for name, parameter in parameters.items():
                parameter.grad = gradients[name]
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    dense = torch.optim.AdamW(parameters.values(), fused=fused)
    figures: Figures = {"dense": {"seconds": median_seconds(dense.step), "state_bytes": state_bytes(dense)}}
    del dense
    for ratio in (0.5, 0.1):
        mask = SaliencyMask.random(shapes, ratio, torch.Generator().manual_seed(0))
        selected = SelectedWeights(parameters, mask)
        optimizer = torch.optim.AdamW(selected.weights, fused=fused)

        def step(selected: SelectedWeights = selected, optimizer: torch.optim.AdamW = optimizer) -> None:
            selected.gather_gradients()
            optimizer.step()
            optimizer.zero_grad()
            selected.scatter()

        seconds = median_seconds(step)
        figures[f"selected {ratio}"] = {"seconds": seconds, "state_bytes": state_bytes(optimizer)}
    for entry in figures.values():
        entry["time_ratio"] = entry["seconds"] / figures["dense"]["seconds"]
        entry["state_ratio"] = entry["state_bytes"] / figures["dense"]["state_bytes"]
    return figures


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Count the bytes of all tensors in the optimizer's state."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in states if isinstance(value, torch.Tensor))


def threshold(weights: int) -> tuple[Figures, list[str]]:
    """Compare the mask's radix select with a double argsort; the figures, and lines that tell them."""
    radix = alone(radix_threshold, weights)
    argsort = alone(double_argsort, min(weights, ARGSORT_WEIGHTS))
    ratios = {
        "time_per_weight": argsort["nanoseconds_per_weight"] / radix["nanoseconds_per_weight"],
        "memory_per_weight": argsort["extra_bytes_per_weight"] / max(radix["extra_bytes_per_weight"], 1e-9),
    }
    lines = [
        f"{name:15}{entry['weights']:>12,} weights {entry['seconds']:8.2f} s "
        f"{entry['nanoseconds_per_weight']:8.1f} ns/weight "
        f"{entry['extra_bytes'] / 1e9:7.3f} GB extra {entry['extra_bytes_per_weight']:7.2f} B/weight"
        for name, entry in (("radix select", radix), ("double argsort", argsort))
    ]
    time_ratio, memory_ratio = ratios["time_per_weight"], ratios["memory_per_weight"]
    lines.append(f"per weight, argsort / radix: time {time_ratio:.1f}, memory {memory_ratio:.1f}")
    return {"radix": radix, "double_argsort": argsort, "argsort_over_radix": ratios}, lines


def optimizer() -> tuple[Figures, list[str]]:
    """Compare steps on all weights and on selected ones; the figures, and lines that tell them."""
    figures: Figures = {"default": alone(optimizer_steps, False), "fused": alone(optimizer_steps, True)}
    lines = [
        f"AdamW {implementation:8}{name:13}{entry['seconds'] * 1e3:8.1f} ms (x{entry['time_ratio']:.2f}) "
        f"state {entry['state_bytes'] / 1e6:7.1f} MB (x{entry['state_ratio']:.2f})"
        for implementation, entries in figures.items()
        for name, entry in entries.items()
    ]
    return figures, lines


def end_to_end(quick: bool) -> tuple[Figures, list[str]]:
    """Erase a circle from the embedded model; the seconds of each stage."""
    from salun_diffusers import EraseConfig, erase

    started = time.perf_counter()
    few = {"num_forget_images": 8, "num_anchor_images": 8, "num_retain_images": 8, "num_validation_images": 1}
    small: dict[str, Any] = {**few, "num_inference_steps": 2, "max_train_steps": 2} if quick else {}
    result = erase(EraseConfig(concept="circle", pretrained_model_name_or_path="demo", **small))
    seconds = time.perf_counter() - started
    figures: Figures = {"seconds": seconds, "stages": dict(result.report.timings), "verdict": result.report.verdict}
    figures["receipt"] = bool(result.report.receipt)
    lines = [f"{name:24}{value:8.1f} s" for name, value in result.report.timings.items()]
    return figures, [*lines, f"{'all of it':24}{seconds:8.1f} s, {result.report.verdict}"]


def chosen(config: BenchmarkConfig) -> tuple[Figures, list[str]]:
    """Run the benchmark that was asked for."""
    match config.benchmark:
        case "threshold":
            return threshold(config.weights or UNET_WEIGHTS)
        case "optimizer":
            return optimizer()
        case "memory":
            from benchmark_memory import memory

            return memory(config.model, config.flags)
        case "step":
            from benchmark_step import step
            from step_references import StepSizes

            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            return step(
                StepSizes(config.model or "sd1", config.side, config.batch, config.repeats, device, config.compiled)
            )
        case "end-to-end":
            return end_to_end(config.quick)


def work(config: BenchmarkConfig, command: str) -> str:
    """Run one benchmark, write its figures and tell them.

    Raises:
        UserError: If a benchmark is told what it has no use for.
    """
    if config.benchmark == "memory" and config.model == "sd1-half":
        raise UserError("--model of memory must be sd1, sdxl or small, got sd1-half.")
    if config.benchmark != "threshold" and config.weights is not None:
        raise UserError(f"--weights is a setting of threshold, {config.benchmark} has none; got {config.weights}.")
    figures, lines = chosen(config)
    machine = {
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),  # Of the last minute: above the threads, others were at work, too.
    }
    if config.json:
        words = shlex.split(command)[2:]  # Without the interpreter and this file.
        content = {"machine": machine, "command": words, **figures}
        Path(config.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    lines.append(f"on {machine['cpus']} CPUs, torch {machine['torch']}, {machine['threads']} threads")
    return "\n".join(lines) + "\n"


main = Program("scripts/benchmark.py", BenchmarkConfig, work, __doc__ or "", interrupted="nothing was written.")


if __name__ == "__main__":
    sys.exit(main())

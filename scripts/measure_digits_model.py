"""Measure the digits DDPM: how often its samples of a digit are recognised as that digit.

    python scripts/measure_digits_model.py --num_images 100

The judge is the digit classifier beside the model, with a class for "none of these"; it saw four fifths of the real
digits, the DDPM saw all of them.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from salun_diffusers.arguments import ANY_SEED, setting
from salun_diffusers.diffusion.families.ddpm import ClassConditionalDDPM
from salun_diffusers.evaluation.detectors import GroupDetector
from salun_diffusers.files.pipeline_folder import EMBEDDED, embedded_detector
from salun_diffusers.programs.program import Program
from salun_diffusers.progress import Progress
from salun_diffusers.reports.measurement import Measurement
from salun_diffusers.seeds import stream_seed

DIGITS = tuple(map(str, range(10)))


@dataclass(frozen=True)
class MeasureConfig:
    """Settings of the measurement."""

    pipeline: str = setting(str(EMBEDDED["digits"]), "Pipeline folder to measure.")
    detector: str = setting(str(embedded_detector("digits")), "Folder of the classifier.")
    output_dir: str = setting("runs/digits-quality", "Where quality.json and samples.png go.")
    num_images: int = setting(100, "Pictures per digit.", minimum=1)
    num_inference_steps: int = setting(20, "Sampling steps.", minimum=1)
    guidance_scale: float = setting(2.0, "Classifier-free guidance.", minimum=0)
    batch_size: int = setting(50, "Pictures at once.", minimum=1)
    seed: int = setting(1, "Seed of the noise.", minimum=0, maximum=ANY_SEED)


def work(config: MeasureConfig, command: str) -> str:
    """Draw, judge, write."""
    detector = GroupDetector(Path(config.detector))
    family = ClassConditionalDDPM(Path(config.pipeline), device=torch.device("cpu"))
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    asked = [(digit, stream_seed(config.seed, digit, n)) for digit in DIGITS for n in range(config.num_images)]
    pictures: list[Image.Image] = []
    with Progress("sampling", len(asked)) as bar:
        for start in range(0, len(asked), config.batch_size):
            names, seeds = zip(*asked[start : start + config.batch_size], strict=True)
            pictures += family.decode(
                family.generate(
                    names, seeds, num_inference_steps=config.num_inference_steps, guidance_scale=config.guidance_scale
                )
            )
            bar.advance(len(names))
    found = [next(iter(labels)).removeprefix("digit:") for labels in detector.labels(pictures)]
    answers = [(asked_for, answer) for (asked_for, _), answer in zip(asked, found, strict=True)]
    rates, lines = [], []
    for digit in (*DIGITS, "all"):
        these = [pair for pair in answers if digit in (pair[0], "all")]
        wrong = Counter(answer for asked_for, answer in these if answer != asked_for)
        rate = Measurement.rate(digit, len(these) - wrong.total(), len(these), direction="higher",
                                protocol=detector.protocol, command=command)  # fmt: skip
        rates.append(rate)
        mistakes = ", ".join(f"{count} x {name}" for name, count in wrong.most_common())
        lines.append(
            f"{digit:<4} {rate.value:.3f}  [{rate.low:.3f}, {rate.high:.3f}]  n = {rate.n}  {mistakes}".rstrip()
        )
    (output / "quality.json").write_text(json.dumps([rate.to_json() for rate in rates], indent=2) + "\n")
    sheet(pictures, config.num_images).save(output / "samples.png")
    return "\n".join(lines) + "\n"


def sheet(pictures: Sequence[Image.Image], each: int, columns: int = 20) -> Image.Image:
    """One row per digit."""
    side = pictures[0].width + 2
    page = Image.new("L", (columns * side, len(DIGITS) * side), 128)
    for row in range(len(DIGITS)):
        for column, picture in enumerate(pictures[row * each : row * each + min(columns, each)]):
            page.paste(picture, (column * side + 1, row * side + 1))
    return page


main = Program("scripts/measure_digits_model.py", MeasureConfig, work, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())

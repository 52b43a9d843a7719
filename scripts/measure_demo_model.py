"""Measure the embedded demo model: how often it draws what was asked, judged by the demo detector.

    python scripts/measure_demo_model.py --num_images 60 --output_dir runs/demo-quality

Writes `quality.json` and a picture of samples; prints the table. The detector itself is measured on fresh renders.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from salun_diffusers.arguments import ANY_SEED, parse, setting
from salun_diffusers.demo.detector_training import GROUPS, detector_batch, group_slices
from salun_diffusers.demo.vocabulary import COLOURS, SHAPES, STYLE_PHRASES, STYLES, describe
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.detectors import GroupDetector
from salun_diffusers.files.pipeline_folder import EMBEDDED, embedded_detector
from salun_diffusers.progress import Progress
from salun_diffusers.reports.measurement import Measurement
from salun_diffusers.seeds import stream_seed


@dataclass(frozen=True)
class MeasureConfig:
    """Settings of the measurement."""

    pipeline: str = setting(str(EMBEDDED["demo"]), "Pipeline folder to measure.")
    detector: str | None = setting(None, "Detector folder; by default the embedded one.")
    output_dir: str = setting("runs/demo-quality", "Where quality.json and samples.png go.")
    num_images: int = setting(60, "Pictures per shape.", minimum=1)
    num_renders: int = setting(5000, "Fresh renders to measure the detector on.", minimum=1)
    num_inference_steps: int = setting(12, "Sampling steps.", minimum=1)
    guidance_scale: float = setting(3.0, "Classifier-free guidance.", minimum=0)
    seed: int = setting(1, "Seed of prompts and noise.", minimum=0, maximum=ANY_SEED)


def prompts(config: MeasureConfig) -> list[tuple[str, frozenset[str]]]:
    """Prompts with the labels they ask for; every second one says colour, background and style."""
    asked = []
    rng = np.random.default_rng(config.seed)
    for shape in SHAPES:
        for number in range(config.num_images):
            labels = {f"shape:{shape}"}
            if number % 2 == 0:
                asked.append((describe(shape), frozenset(labels | {"style:filled"})))
                continue
            colour, background = rng.choice(list(COLOURS), 2, replace=False)
            style = STYLES[(number // 2) % len(STYLES)]
            opening = STYLE_PHRASES[style][0]
            labels |= {f"colour:{colour}", f"background:{background}", f"style:{style}"}
            asked.append((describe(shape, str(colour), str(background), opening), frozenset(labels)))
    return asked


def measure_detector(config: MeasureConfig, detector: GroupDetector) -> dict[str, Measurement]:
    """Accuracy of each of the detector's groups on fresh, unaugmented renders and negatives."""
    images, labels = detector_batch(np.random.default_rng(config.seed + 10_000), config.num_renders, augment=False)
    pictures = [Image.fromarray(((image.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()) for image in images]
    slices = group_slices()
    found = detector.labels(pictures)
    rates = {}
    for column, group in enumerate(GROUPS):
        names = detector.names[slices[group]]
        known = [row for row in range(len(labels)) if labels[row, column] >= 0]
        hits = sum(names[int(labels[row, column])] in found[row] for row in known)
        rates[group] = Measurement.rate(group, hits, len(known), direction="higher", protocol="fresh renders")
    return rates


def main() -> int:
    """Measure and print."""
    try:
        config = parse(MeasureConfig, description=__doc__ or "")
        output = Path(config.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        detector = GroupDetector(Path(config.detector) if config.detector else embedded_detector("demo"))
        family = StableDiffusion(Path(config.pipeline), device=torch.device("cpu"))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    asked = prompts(config)
    pictures: list[Image.Image] = []
    with Progress("sampling", len(asked)) as bar:
        for start in range(0, len(asked), 60):
            texts = [text for text, _ in asked[start : start + 60]]
            seeds = [stream_seed(config.seed, "quality", start + item) for item in range(len(texts))]
            latents = family.generate(
                texts, seeds, num_inference_steps=config.num_inference_steps, guidance_scale=config.guidance_scale
            )
            pictures += family.decode(latents)
            bar.advance(len(texts))
    found = detector.labels(pictures)
    rows = [("detector, " + name, rate) for name, rate in measure_detector(config, detector).items()]
    for prefix in (*(f"shape:{shape}" for shape in SHAPES), "shape", "colour", "background", "style"):
        wanted = [
            (label in labels)
            for (_, asked_for), labels in zip(asked, found, strict=True)
            for label in asked_for
            if (label == prefix if ":" in prefix else label.startswith(prefix + ":"))
        ]
        rate = Measurement.rate(prefix, sum(wanted), len(wanted), direction="higher", protocol=detector.protocol)
        rows.append((prefix, rate))
    for name, rate in rows:
        print(f"{name:<22} {rate.value:.3f}  [{rate.low:.3f}, {rate.high:.3f}]  n = {rate.n}")
    (output / "quality.json").write_text(json.dumps({name: rate.to_json() for name, rate in rows}, indent=2))
    columns = 16
    sheet = Image.new("RGB", (columns * 66, len(SHAPES) * 66), "gray")
    for row in range(len(SHAPES)):
        for column in range(min(columns, config.num_images)):
            sheet.paste(pictures[row * config.num_images + column], (column * 66 + 1, row * 66 + 1))
    sheet.save(output / "samples.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

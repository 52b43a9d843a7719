"""Distance of a folder of pictures from a reference: FID or another Fréchet distance, KID, precision and recall.

    salun evaluate fid --images runs/after --reference runs/before --extractor demo
    salun evaluate fid --images runs/coco --reference coco/val2014 --resize 512 \
        --extractor inception --extractor_weights inception.safetensors

Features of every folder are kept under --cache_dir; such a file can stand in for the reference folder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from salun_diffusers.arguments import ANY_SEED, setting
from salun_diffusers.errors import UserError, tell
from salun_diffusers.evaluation.image_folder import read_image_folder, require_one_size
from salun_diffusers.evaluation.record import EvaluationRecord, writable_folder
from salun_diffusers.evaluation.record_page import write_record
from salun_diffusers.evaluation.sampling import folder_sampling
from salun_diffusers.files.output_places import require_writable
from salun_diffusers.programs.program import Program
from salun_diffusers.reports.measurement import Comparison


@dataclass(frozen=True)
class FidConfig:
    """Settings of the evaluation."""

    images: str = setting("", "Folder of pictures to evaluate.")
    reference: str = setting("", "Folder of the reference's pictures, or a .safetensors file of its features.")
    before: str | None = setting(None, "Folder of the model before erasing, measured against the same reference.")
    extractor: Literal["inception", "clip", "dinov2", "demo", "digits"] = setting(
        "inception", "Network of the features."
    )
    extractor_weights: str | None = setting(
        None, "Local folder or hub id; for inception a safetensors file. By default the published ones, where any are."
    )
    exclude: tuple[str, ...] = setting((), "Classes to leave out on every side, such as the forgotten one.")
    resize: int | None = setting(
        None, "Scale the shorter side to this and crop the centre, first.", minimum=8, maximum=16384
    )
    batch_size: int = setting(32, "Pictures at once.", minimum=1)
    bootstraps: int | None = setting(
        None, "Resamplings for the Fréchet distance's interval; by default 20 up to 512 dimensions, else 0.", minimum=0
    )
    seed: int = setting(0, "Seed of subsets and resampling.", minimum=0, maximum=ANY_SEED)
    cache_dir: str = setting("runs/features", "Where features are kept.")
    output_dir: str = setting("runs/evaluation", "Where fid.json and fid.html go.")


def check(config: FidConfig) -> dict[str, Any]:
    """Refuse what cannot work before a network is loaded; returns how the evaluated pictures were drawn."""
    for name in ("images", "reference"):
        if not getattr(config, name):
            raise UserError(f"--{name} is required (see --help).")
    from salun_diffusers.evaluation.feature_files import require_classes
    from salun_diffusers.evaluation.fidelity import require_enough, torchmetric

    torchmetric("fid")
    sources = [source for source in (config.before, config.images, config.reference) if source]
    require_classes(config.exclude, sources)
    evaluated = []
    for source in sources:
        if Path(source).suffix != ".safetensors":
            folder = read_image_folder(source)
            folder = folder.without([name for name in config.exclude if any(row.label == name for row in folder.rows)])
            require_enough(len(folder), source)
            if config.resize is None and folder.files:
                require_one_size(folder.files)
            if source != config.reference:
                evaluated.append(folder)
    sampling = folder_sampling(evaluated)
    writable_folder(config.output_dir)
    require_writable(config.cache_dir, "--cache_dir")
    return sampling


def work(config: FidConfig, command: str) -> str:
    """Measure and write."""
    config = replace(config, exclude=tuple(dict.fromkeys(config.exclude)))
    sampling = check(config)
    from salun_diffusers.evaluation.feature_extractors import make_extractor
    from salun_diffusers.evaluation.feature_files import FeatureSet, features_of
    from salun_diffusers.evaluation.fidelity import measure_fidelity, rank_warning

    extractor = make_extractor(config.extractor, config.extractor_weights)

    def features(source: str, stage: str) -> FeatureSet:
        return features_of(
            source,
            extractor,
            batch_size=config.batch_size,
            resize=config.resize,
            exclude=config.exclude,
            cache=Path(config.cache_dir).expanduser(),
            stage=stage,
        )

    reference = features(config.reference, "reference")
    bootstraps = config.bootstraps if config.bootstraps is not None else 20 if extractor.dimension <= 512 else 0
    subject = f"without {', '.join(sorted(config.exclude))}" if config.exclude else ""
    measured = []
    for source, stage in ((config.before, "before"), (config.images, "pictures")):
        if source:
            generated = features(source, stage)
            for count, what in ((len(generated.values), source), (len(reference.values), config.reference)):
                if warning := rank_warning(count, what, extractor):
                    tell("warning", warning)
            found = measure_fidelity(
                generated, reference, extractor, seed=config.seed, bootstraps=bootstraps, command=command
            )
            measured.append([item.of(subject) for item in found])
    pairs = tuple(Comparison(new.name, old, new) for old, new in zip(*measured, strict=True)) if config.before else ()
    record = EvaluationRecord(
        kind="fid",
        title=f"{measured[-1][0].name} against {config.reference}",
        pictures=config.images,
        before="" if config.before is None else config.before,
        measurements=() if pairs else tuple(measured[0]),
        comparisons=pairs,
        sampling=sampling,
        command=command,
    )
    return write_record(record, config.output_dir)


main = Program("evaluate fid", FidConfig, work, __doc__ or "")

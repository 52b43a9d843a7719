"""What is refused of a model on the hub before its weights are fetched: gigabytes that a refusal would waste."""

from __future__ import annotations

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.detection import chosen_detector, with_detector
from salun_diffusers.diffusion.families.erasable import require_erasable
from salun_diffusers.diffusion.joined import concept_of
from salun_diffusers.diffusion.presets.classes import class_concept
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.errors import UserError
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.pipeline_folder import CLASS_CONDITIONAL, class_name, denoiser_folder, locate, model_index


def check_unfetched(config: EraseConfig) -> None:
    """Refuse whatever can be refused by a model's `model_index.json`, in the order of what it costs to know.

    First the words, then the model's name and class, then the engine (precision, kind of distribution, tracker), and
    last the detector, which is loaded: its package may be missing, or be another than it was.

    Raises:
        UserError: At the first thing that cannot be.
    """
    words: UserError | None = None
    try:
        with_detector(concept_of(config, find_concept), config)
    except UserError as error:  # They may still name a class of the model.
        words = error
    try:
        base = locate(
            config.pretrained_model_name_or_path, revision=config.revision, cache_dir=config.cache_dir, download=False
        )
        index = model_index(base)
    except UserError as error:
        raise words or error from error
    classes = class_name(index) == CLASS_CONDITIONAL
    if words and not classes:
        raise words
    require_erasable(base, index)
    file = base / denoiser_folder(index, base) / "config.json"
    network = read_object(file) if file.is_file() else {}

    def find(one: EraseConfig) -> Concept:
        return class_concept(one, index, network) if classes else find_concept(one)

    concept = with_detector(concept_of(config, find), config)

    # Heavy imports wait until the words are known to be good.
    from salun_diffusers.accelerator import decided_by_main, engine
    from salun_diffusers.evaluation.detectors import make_detector

    with engine(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        report_to=config.report_to,
    ) as accelerator:
        decided_by_main(accelerator, lambda: bool(make_detector(chosen_detector(concept, config))))

"""Numbers for Stable Diffusion: of its presets and of free text, by kind of model and by recipe.

None of those of `frozen_teacher` has been measured on the weights of Stable Diffusion: where a comment says "the
demo's", the reason is a measurement on the embedded model (docs/results.md), which is far smaller.

Differs from the official code: fine-tuning begins at the weights of the given folder. That of Stable Diffusion 1.4 on
the hub is said to hold the averaged ones (EMA); the scripts load the others of sd-v1-4-full-ema.ckpt
(SD/train-scripts/dataset.py).

Differs from the official code: how the 800 + 800 pictures of nudity were drawn is not published; here it is 50 steps of
the model's own scheduler under `paper`, 20 of DPM-Solver++ otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from salun_diffusers.diffusion.config import Recipe
from salun_diffusers.diffusion.settings import Length, Numbers
from salun_diffusers.files.json_files import read_object

Tables = Literal["1.x or 2.x", "v-prediction", "XL", "XL, v-prediction"]
# By whether it is XL: where it predicts ε, and where it predicts v.
_TABLES_OF: dict[bool, tuple[Tables, Tables]] = {
    False: ("1.x or 2.x", "v-prediction"), True: ("XL", "XL, v-prediction")
}  # fmt: skip
_XL = "StableDiffusionXLPipeline"
# Second order and deterministic; diffusers' documentation recommends it for 20 to 25 steps of Stable Diffusion.
_DPM_SOLVER = "DPMSolverMultistepScheduler"
_LARGEST_BATCH, _ITS_SIDE = 8, 512
_LATENT = 8  # Pixels along the side of a latent.

# The official script's values (Unlearn-Saliency@a6e89fd, SD/train-scripts/nsfw_removal.py and SD/README.md).
# Σ of the learning rates: 100 steps · 1e-5 = 1.0e-3.
_PAPER = Numbers(
    num_forget_images=800,
    num_anchor_images=0,
    num_retain_images=800,
    num_inference_steps=50,  # Not published; of the model's own scheduler, as diffusers draws by default.
    guidance_scale=7.5,
    generation_batch_size=_LARGEST_BATCH,
    saliency_guidance=7.5,
    saliency_batch_size=8,
    train_batch_size=8,
    length=Length(1, "epochs"),
    learning_rate=1e-5,
    lr_scheduler="constant",
    retain_weight=0.1,
    snr_power=0.0,
    empty_prompt_share=0.0,
    num_validation_images=16,  # A verdict needs 16 pictures of a kind, and free text may have one prompt.
)

_FROZEN_TEACHER = Numbers(
    # As many latents as the paper's. Half of those that stand for the concept are the anchor's: the erased model passes
    # through such states on its way to the anchor's picture, and without them c is never trained there.
    num_forget_images=400,
    num_anchor_images=400,
    num_retain_images=800,
    # A set only has to be typical of the model; drawing it is nearly all of a run's work (docs/reproduce.md).
    scheduler=_DPM_SOLVER,
    num_inference_steps=20,
    guidance_scale=7.5,  # diffusers' default for these pipelines.
    generation_batch_size=_LARGEST_BATCH,
    saliency_guidance=7.5,  # Official.
    saliency_batch_size=8,  # Official.
    train_batch_size=8,  # Official.
    # Each of the 800 states four times. The rate's largest value is the official one, which other erasers of Stable
    # Diffusion share; Σ of the rates = 400 · 1e-5 / 2 = 2.0e-3: twice the paper's, a fifth of ESD's (1000 steps of
    # 1e-5) or of the demo's (9.1e-3). A retain term that begins at 0 holds what the longer way would cost.
    length=Length(400, "steps"),
    learning_rate=1e-5,
    lr_scheduler="cosine",  # As the demo's: the last steps are small ones.
    # The demo's: 0.1 is the weight of a noise target, whose loss is large from the first step on; this loss starts at 0
    # and only counts what has drifted.
    retain_weight=3.0,
    # The demo's: errors of ε hardly see the noisy states in which layout is decided.
    snr_power=0.5,
    # The demo's: every step of a guided picture asks for ε(∅), too.
    empty_prompt_share=0.2,
    num_validation_images=16,  # As above.
)

STABLE_DIFFUSION: dict[Recipe, Numbers] = {"paper": _PAPER, "frozen_teacher": _FROZEN_TEACHER}

# v-prediction (2.x at 768 pixels): a squared error of v is 1/ᾱ_t = 1 + 1/SNR times that of ε, so that a loss taken on v
# sees noisy states without a weight of its own.
STABLE_DIFFUSION_V: dict[Recipe, Numbers] = {
    "paper": _PAPER,
    "frozen_teacher": dataclasses.replace(_FROZEN_TEACHER, snr_power=0.0),
}

# XL: a pass of one latent takes 6.8 TFLOP (0.8 of 1.x) and the latent is four times as large, so half of everything:
# sets and batches, hence as many steps, each state is seen as often, and the rates are those above.
STABLE_DIFFUSION_XL: dict[Recipe, Numbers] = {
    "paper": _PAPER,
    "frozen_teacher": dataclasses.replace(
        _FROZEN_TEACHER,
        num_forget_images=200,
        num_anchor_images=200,
        num_retain_images=400,
        guidance_scale=5.0,  # diffusers' default for this pipeline.
        saliency_batch_size=4,
        train_batch_size=4,
    ),
}

# For the reason of 2.x.
STABLE_DIFFUSION_XL_V: dict[Recipe, Numbers] = {
    "paper": _PAPER,
    "frozen_teacher": dataclasses.replace(STABLE_DIFFUSION_XL["frozen_teacher"], snr_power=0.0),
}


@dataclass(frozen=True)
class Kind:
    """What the numbers of a Stable Diffusion depend on.

    Args:
        tables: Which numbers.
        resolution: Side of its pictures, in pixels.
    """

    tables: Tables = "1.x or 2.x"
    resolution: int = _ITS_SIDE

    def numbers(self, recipe: Recipe) -> Numbers:
        """The numbers of a recipe."""
        tables: dict[Tables, dict[Recipe, Numbers]] = {
            "1.x or 2.x": STABLE_DIFFUSION, "v-prediction": STABLE_DIFFUSION_V,
            "XL": STABLE_DIFFUSION_XL, "XL, v-prediction": STABLE_DIFFUSION_XL_V,
        }  # fmt: skip
        return dataclasses.replace(tables[self.tables][recipe], generation_batch_size=drawn_at_once(self.resolution))

    def __str__(self) -> str:
        return f"Stable Diffusion, {self.tables}, {self.resolution} pixels (not measured on its weights)"


SD_1 = Kind()


def drawn_at_once(resolution: int) -> int:
    """Pictures drawn at once: 8 of 512 pixels, fewer of larger ones by their area, at least one.

    The memory of the device does not count: a batch's size decides the rounding of what is drawn in it, and a command
    should draw the same set on every card.

    >>> [drawn_at_once(side) for side in (256, 512, 768, 1024, 2048)]
    [8, 8, 3, 2, 1]
    """
    return max(1, min(_LARGEST_BATCH, _LARGEST_BATCH * _ITS_SIDE**2 // resolution**2))


def kind_of(folder: Path, pipeline_class: str, prediction_type: str = "scheduler") -> Kind:
    """What a pipeline folder holds, by its configurations; what they do not say is that of 1.x.

    Args:
        folder: A pipeline folder, or what of it is there before its weights are fetched.
        pipeline_class: Its class.
        prediction_type: What the network predicts, where the scheduler's configuration is wrong about that.
    """
    denoiser, scheduler = (
        _configuration(folder / part) for part in ("unet/config.json", "scheduler/scheduler_config.json")
    )
    large = pipeline_class == _XL
    side = denoiser.get("sample_size")
    if not isinstance(side, int) or side < 1:
        side = 128 if large else 64
    told = scheduler.get("prediction_type") if prediction_type == "scheduler" else prediction_type
    of_epsilon, of_v = _TABLES_OF[large]
    return Kind(of_v if told == "v_prediction" else of_epsilon, _LATENT * side)


def _configuration(file: Path) -> Mapping[str, Any]:
    """A JSON object, or nothing where there is no such file."""
    return read_object(file, constants=float) if file.is_file() else {}

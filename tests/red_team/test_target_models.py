"""What a word names: a pipeline, a run, a LoRA, or a base with the file of another eraser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from eraser_outputs import esd, lora, moved, saved, text_of, unet_of
from tiny_models import build_pipeline

from salun_diffusers import UserError
from salun_diffusers.diffusion.base_model import BaseModel, FolderModel
from salun_diffusers.diffusion.edited_model import EditedModel
from salun_diffusers.red_team.config import ExaminedConfig
from salun_diffusers.red_team.opened import requested
from salun_diffusers.red_team.target_models import model_of


@pytest.fixture
def file(tiny_pipeline: Path, tmp_path: Path) -> Path:
    esd(tiny_pipeline, tmp_path / "esd.safetensors")
    return tmp_path / "esd.safetensors"


def named(name: str, known: Path, **flags: str) -> BaseModel:
    return model_of(name, FolderModel(known), ExaminedConfig(name, **flags))


def test_a_sum_is_the_base_that_is_known_and_the_file(tiny_pipeline, file):
    for name in (f"{tiny_pipeline}+{file}", f"{tiny_pipeline} + {file}"):
        assert named(name, tiny_pipeline) == EditedModel(FolderModel(tiny_pipeline), file)


def test_a_sum_may_be_of_another_base_of_its_kind(tiny_pipeline, file, tmp_path):
    """What is compared with is --base, what the file is put into is said before the plus."""
    other = build_pipeline(tmp_path / "other", seed=1)
    found = named(f"{other}+{file}", tiny_pipeline, base=str(tiny_pipeline))
    assert found == EditedModel(FolderModel(other), file)


def test_a_floor_may_be_a_sum_of_its_own(tiny_pipeline, file, tmp_path):
    """The base that is known is not taken for another that is named."""
    other = build_pipeline(tmp_path / "other", seed=1)
    config = ExaminedConfig(f"{tiny_pipeline}+{file}", floor=f"{other}+{file}")
    found = model_of(f"{other}+{file}", FolderModel(tiny_pipeline), config)
    assert found == EditedModel(FolderModel(other), file)


def test_a_runs_result_has_the_variant_of_its_base(tiny_pipeline, file, tmp_path):
    """Its record says it; a flag wins."""
    pipeline = Path(shutil.copytree(tiny_pipeline, tmp_path / "run" / "pipeline"))
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "config.json").write_text('{"variant": "fp16"}')
    assert named(str(tmp_path / "run"), tiny_pipeline) == FolderModel(pipeline, "fp16")
    assert named(str(tmp_path / "run"), tiny_pipeline, variant="bf16") == FolderModel(pipeline, "bf16")
    for place in (pipeline / "unet").glob("*.safetensors"):
        place.rename(place.with_name(place.name.replace(".safetensors", ".fp16.safetensors")))
    found = named(f"{tmp_path / 'run'}+{file}", tiny_pipeline, base=str(tiny_pipeline))
    assert found == EditedModel(FolderModel(pipeline, "fp16"), file)


def test_a_sum_of_another_kind_is_refused(tiny_pipeline, sdxl, file):
    with pytest.raises(UserError, match="must be of the base's kind, a StableDiffusionPipeline; it is a StableDiff"):
        named(f"{sdxl}+{file}", tiny_pipeline, base=str(tiny_pipeline))


def test_a_pipeline_with_a_plus_in_its_path_is_that_pipeline(tiny_pipeline, tmp_path):
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "a+b"))
    assert named(str(folder), tiny_pipeline) == FolderModel(folder)


def test_the_base_of_an_examination_is_what_stands_before_the_plus(file, tmp_path):
    request = requested(ExaminedConfig(f"demo+{file}", concept="star"), tmp_path)
    assert request.config.pretrained_model_name_or_path == "demo"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (lambda base, xl: {"strange.weight": torch.ones(1)}, "names of neither a U-Net nor a text encoder"),
        (lambda base, xl: moved(unet_of(xl)), "was not made of"),
        (lambda base, xl: text_of(xl, "text_encoder_2"), "was not made of"),
        (lambda base, xl: {f"unet.{layer}.lora_{half}.weight": tensor
                           for layer, two in lora(xl, lambda name: "attn" in name).items()
                           for half, tensor in zip("AB", two, strict=True)}, "was not made of"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_told_before_anything_is_loaded(tiny_pipeline, sdxl, tmp_path, tensors, words):
    path = saved(tensors(tiny_pipeline, sdxl), tmp_path / "file.safetensors")
    with pytest.raises(UserError, match=words):
        named(f"{tiny_pipeline}+{path}", tiny_pipeline)

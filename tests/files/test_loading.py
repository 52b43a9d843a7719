"""A pipeline folder is loaded under any diffusers, and no code that it carries is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from salun_diffusers import ClassConditionalDDPMPipeline
from salun_diffusers.diffusion.families.known import load_pipeline
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation import generation
from salun_diffusers.files import loading
from salun_diffusers.files.component_files import check_complete
from salun_diffusers.files.pipeline_folder import own_code

CPU = torch.device("cpu")


def change_index(folder: Path, **changes: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that foreign code would write."""
    return tmp_path / "was_here"


def code(marker: Path, name: str, base: str) -> str:
    """A module that leaves a mark when it is run, and would work."""
    return (
        f"from pathlib import Path\nfrom diffusers import {base} as Base\n"
        f"Path({str(marker)!r}).touch()\nclass {name}(Base):\n    pass\n"
    )


@pytest.fixture(params=["pipeline", "pipeline without a file", "component", "nobody's pipeline"])
def foreign(request: pytest.FixtureRequest, copied: Path, marker: Path) -> tuple[Path, str]:
    """A folder that would run its own code, and the file that is named."""
    if request.param.startswith("pipeline"):
        change_index(copied, _class_name=["mine", "StableDiffusionPipeline"])
        if request.param == "pipeline":
            (copied / "mine.py").write_text(code(marker, "StableDiffusionPipeline", "StableDiffusionPipeline"))
        return copied, "mine.py"
    if request.param == "component":
        change_index(copied, unet=["mine", "Mine"])
        (copied / "unet" / "mine.py").write_text(code(marker, "Mine", "UNet2DConditionModel"))
        return copied, "unet/mine.py"
    (copied / "None.py").write_text(code(marker, "Mine", "StableDiffusionPipeline"))
    return copied, "None.py"


class TestCodeOfAFolder:
    @pytest.mark.parametrize("loader", ["family", "pipeline", "evaluation", "check"])
    def test_is_refused_and_not_run(self, loader, foreign, marker):
        folder, file = foreign
        load: Any = {
            "family": lambda: StableDiffusion(folder, device=CPU),
            "pipeline": lambda: load_pipeline(folder),
            "evaluation": lambda: generation.load_pipeline(
                folder, device=CPU, dtype=torch.float32, variant=None, scheduler=None
            ),
            "check": lambda: check_complete(folder),
        }[loader]
        with pytest.raises(UserError, match=rf"carries code of its own \({file}\)"):
            load()
        assert not marker.exists()

    def test_stops_an_erasure_before_anything_is_made(self, foreign, refused, marker):
        folder, file = foreign
        refused("carries code of its own", file, pretrained_model_name_or_path=folder)
        assert not marker.exists()

    def test_is_nothing_in_the_folders_here(self, tiny_pipeline):
        assert own_code(tiny_pipeline) == []
        check_complete(tiny_pipeline)

    def test_of_our_own_class_is_not_run_either(self, tiny_ddpm, tmp_path, marker):
        folder = Path(shutil.copytree(tiny_ddpm, tmp_path / "ddpm"))
        (folder / "class_conditional_ddpm.py").write_text(code(marker, "ClassConditionalDDPMPipeline", "UNet2DModel"))
        check_complete(folder)
        assert type(load_pipeline(folder)) is ClassConditionalDDPMPipeline
        change_index(folder, _class_name=["mine", "ClassConditionalDDPMPipeline"])
        with pytest.raises(ValueError, match="A folder of ClassConditionalDDPMPipeline is required"):
            load_pipeline(folder)
        with pytest.raises(UserError, match="carries code of its own"):
            generation.load_pipeline(folder, device=CPU, dtype=torch.float32, variant=None, scheduler=None)
        assert not marker.exists()


class TestDataType:
    def test_is_that_which_is_asked_for(self, tiny_pipeline):
        """An argument that diffusers does not know is only logged, and the weights stay in fp32."""
        pipe = generation.load_pipeline(tiny_pipeline, device=CPU, dtype=torch.bfloat16, variant=None, scheduler=None)
        assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}
        family = StableDiffusion(tiny_pipeline, device=CPU, dtype=torch.bfloat16)
        assert family.pipe.unet.dtype == torch.float32
        assert {family.pipe.vae.dtype, family.pipe.text_encoder.dtype} == {torch.bfloat16}

    @pytest.mark.parametrize(
        ("version", "name"),
        [("0.35.0", "torch_dtype"), ("0.39.1", "torch_dtype"), ("0.40.0", "dtype"), ("1.0.0.dev0", "dtype")],
    )
    def test_goes_by_the_name_that_diffusers_knows(self, version, name, monkeypatch):
        monkeypatch.setattr(loading, "version", lambda package: version)
        assert loading.dtype_argument() == name

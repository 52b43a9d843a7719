"""Mistakes that the model's files already show are told before it is loaded, under --dry_run too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs.erase import main

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(params=[True, None], ids=["dry", "run"])
def told(request, refused, monkeypatch):
    """Refused, and no model was loaded for it."""

    def load(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(StableDiffusion, "__init__", load)
    return lambda *words, **flags: refused(*words, dry_run=request.param, **flags)


class TestTold:
    @pytest.mark.parametrize("method", ["attn9", "^$", "("])
    def test_a_train_method_that_matches_nothing(self, told, method):
        told("--train_method", train_method=method)

    def test_a_ratio_that_selects_nothing(self, told):
        """Of 64,796 weights 1e-5 is less than one."""
        told("--mask_ratio 1e-05 selects no weight of the 64,796", mask_ratio=1e-5)
        told("--mask_ratio 1e-05 selects no weight", mask_ratio=1e-5, mask="random")

    def test_a_ratio_that_selects_nothing_of_any_tensor(self, told):
        """The largest tensor has 4,608 weights: 2e-4 of it is less than one, of all of them it is twelve."""
        told("selects no weight", mask_ratio=2e-4, mask_scope="per_tensor")

    def test_a_mask_of_another_model(self, told, tmp_path):
        SaliencyMask.full({"another": (3, 4)}).save(tmp_path / "mask.safetensors")
        told("no tensor in common", mask=tmp_path / "mask.safetensors")

    def test_a_file_that_is_no_mask(self, told, tmp_path):
        save_file({"w": torch.ones(2)}, tmp_path / "mask.safetensors")
        told("is no mask file", mask=tmp_path / "mask.safetensors")

    def test_more_steps_than_the_model_has(self, told):
        told("--num_inference_steps must be at most 1000", num_inference_steps=1001)

    @pytest.mark.parametrize("steps", [10**9, 0, -1, 1.5, "many", True])
    def test_a_scheduler_without_end(self, told, copied, steps):
        path = copied / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": steps}))
        told("must say a number of timesteps", pretrained_model_name_or_path=copied)


def test_prompts_that_nothing_is_drawn_for_are_not_encoded(small_run, tmp_path, monkeypatch):
    """Ten thousand retain prompts and five pictures: five are encoded."""
    (tmp_path / "many.txt").write_text("".join(f"a star number {number}\n" for number in range(10_000)))
    encode, encoded = StableDiffusion.encode, []
    monkeypatch.setattr(
        StableDiffusion, "encode", lambda self, prompts: encoded.extend(prompts) or encode(self, prompts)
    )
    assert main(small_run(retain_prompts=tmp_path / "many.txt", output_dir=tmp_path / "run", mask="random")) == 0
    # Eight more are drawn for the report.
    assert len({prompt for prompt in encoded if "number" in prompt}) == 8


class TestExplicitLatents:
    @pytest.fixture
    def explicit(self, small_run, monkeypatch, tmp_path):
        """A run of an explicit concept."""
        import dataclasses

        from salun_diffusers.diffusion import request

        find = request.find_concept
        monkeypatch.setattr(request, "find_concept", lambda config: dataclasses.replace(find(config), explicit=True))
        return lambda **flags: main(small_run(output_dir=tmp_path / "run", **flags))

    def test_are_private_while_it_runs_and_gone_when_it_is_done(self, explicit, tmp_path, capsys, monkeypatch):
        from salun_diffusers.diffusion import run

        seen = []
        write = run.write_report

        def look(*arguments):
            seen.append(((tmp_path / "run" / "work").stat().st_mode & 0o777, len([*tmp_path.rglob("drawn/*/*")])))
            return write(*arguments)

        monkeypatch.setattr(run, "write_report", look)
        assert explicit() == 0
        [(mode, drawn)] = seen
        assert mode == 0o700 and drawn > 10
        left = {path.name for path in (tmp_path / "run" / "work").rglob("*")}
        assert left == {"mask.json", "pipeline.json"}
        assert "latents of the explicit concept were deleted" in capsys.readouterr().err
        assert "deleted when the run is done" in " ".join((tmp_path / "run" / "report.html").read_text().split())
        # The report can still be made anew.
        assert explicit(resume_from_checkpoint="latest", num_validation_images=1) == 0
        assert "fine-tuning" not in capsys.readouterr().err

    def test_stay_where_that_is_asked_for(self, explicit, tmp_path, capsys):
        assert explicit(keep_explicit_latents=True) == 0
        assert (tmp_path / "run" / "work" / "forget.safetensors").exists()
        page = (tmp_path / "run" / "report.html").read_text()
        assert "can make pictures, are kept in the run folder" in " ".join(page.split())

    def test_in_a_folder_of_the_users_are_named(self, explicit, tmp_path, capsys):
        assert explicit(generated_data_dir=tmp_path / "mine") == 0
        assert f"{tmp_path / 'mine'} still holds latents" in capsys.readouterr().err
        assert [*(tmp_path / "mine").rglob("*.safetensors")]


def test_other_runs_keep_their_latents(small_run, tmp_path):
    assert main(small_run(output_dir=tmp_path / "run")) == 0
    assert (tmp_path / "run" / "work" / "forget.safetensors").exists()
    shutil.rmtree(tmp_path / "run")


def test_the_sizes_that_the_tests_above_name(tiny_pipeline: Path) -> None:
    from safetensors.torch import load_file

    sizes = [t.numel() for t in load_file(tiny_pipeline / "unet/diffusion_pytorch_model.safetensors").values()]
    assert (sum(sizes), max(sizes)) == (64_796, 4_608)

"""Programs that take pipelines by hub id, each side with its own revision; the hub is a cache in its layout."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import build_ddpm, build_pipeline, in_hub_cache

from salun_diffusers.errors import UserError
from salun_diffusers.files.component_files import unreadable_parts
from salun_diffusers.files.pipeline_folder import locate
from salun_diffusers.programs.erase import main
from salun_diffusers.programs.patch import main as patch
from salun_diffusers.programs.verify import main as verify

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def cache(tiny_pipeline, small_run, tmp_path_factory) -> Path:
    """Both sides of a run on the hub: what is right lies at a revision, `main` is another model."""
    place = tmp_path_factory.mktemp("hub")
    assert main(small_run(output_dir=place / "run", save_patch=True)) == 0
    other = build_pipeline(place / "other", seed=1)
    for name, folder in (("someone/base", tiny_pipeline), ("someone/erased", place / "run" / "pipeline")):
        in_hub_cache(other, place / "cache", name, commit="b" * 40)
        in_hub_cache(folder, place / "cache", name, commit="c" * 40, revision="v1")
    return place


def words(cache: Path, *flags: str) -> list[str]:
    return [*flags, "--cache_dir", str(cache / "cache")]


class TestVerify:
    def ask(self, cache: Path, *flags: str) -> int:
        mask = ["--mask", str(cache / "run" / "mask.safetensors")]
        return verify(words(cache, "someone/base", "someone/erased", *mask, *flags))

    def test_each_side_has_its_revision(self, cache, capsys):
        assert self.ask(cache, "--base_revision", "v1", "--revision", "v1") == 0
        assert "ok: " in capsys.readouterr().out

    @pytest.mark.parametrize("side", ["--base_revision", "--revision"])
    def test_one_of_them_alone_is_of_that_side_alone(self, cache, capsys, side):
        """The other side is `main`, which is another model."""
        assert self.ask(cache, side, "v1") == 1
        assert "FAILED: " in capsys.readouterr().out

    def test_a_revision_that_is_not_there(self, cache, capsys):
        assert self.ask(cache, "--base_revision", "v9", "--revision", "v1") == 2
        err = capsys.readouterr().err
        assert "someone/base" in err and err.count("\n") == 1


class TestPatch:
    def test_make_apply_and_revert(self, cache, tiny_pipeline, tmp_path):
        made, there, back = (str(tmp_path / name) for name in ("p.safetensors", "there", "back"))
        both = ("--base_revision", "v1", "--revision", "v1")
        assert patch(words(cache, "make", "someone/base", "someone/erased", made, *both)) == 0
        assert patch(words(cache, "apply", "someone/base", made, there, "--base_revision", "v1")) == 0
        assert patch(words(cache, "revert", "someone/erased", made, back, "--revision", "v1")) == 0
        for folder, wanted in ((there, cache / "run" / "pipeline"), (back, tiny_pipeline)):
            ours, theirs = load_file(f"{folder}/{UNET}"), load_file(wanted / UNET)
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_main_is_another_model(self, cache, tmp_path, capsys):
        made = str(cache / "run" / "patch.safetensors")
        assert patch(words(cache, "apply", "someone/base", made, str(tmp_path / "there"))) == 2
        assert "they are those of another model" in capsys.readouterr().err
        assert not (tmp_path / "there").exists()

    @pytest.mark.parametrize(
        ("action", "flag", "right"),
        [("apply", "--revision", "--base_revision"), ("revert", "--base_revision", "--revision"),
         ("apply", "--base_variant", "--base_revision")],
    )  # fmt: skip
    def test_a_flag_of_the_side_that_is_made(self, cache, tmp_path, capsys, action, flag, right):
        made = str(cache / "run" / "patch.safetensors")
        assert patch(words(cache, action, "someone/base", made, str(tmp_path / "out"), flag, "v1")) == 2
        err = capsys.readouterr().err
        assert f"{flag} has no meaning for {action}" in err and f"its flags are {right} and" in err


def test_each_side_has_its_variant(tiny_pipeline, tmp_path, capsys):
    """A base of fp16 files by the name of the variant, and the same weights without it: not a weight moved."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, local_files_only=True)
    pipe.to(torch.float16).save_pretrained(tmp_path / "base", variant="fp16")
    pipe.save_pretrained(tmp_path / "plain")
    told = ["make", str(tmp_path / "base"), str(tmp_path / "plain"), str(tmp_path / "p.safetensors")]
    assert patch(told) == 2
    assert patch([*told, "--base_variant", "fp16"]) == 0
    assert "0 weights moved" in capsys.readouterr().out


class TestLocate:
    @pytest.fixture
    def hub(self, sd14, tmp_path, monkeypatch):
        """diffusers' own download, of a repository that is the sd14 fixture's; only the network is another."""
        from diffusers.pipelines import pipeline_utils

        names = [path.relative_to(sd14).as_posix() for path in sd14.rglob("*") if path.is_file()]

        def fetch(_name: str, allow_patterns: list[str], ignore_patterns: list[str], **_keywords: object) -> str:
            for name in names:
                allowed, ignored = (
                    any(fnmatch.fnmatch(name, pattern) for pattern in some)
                    for some in (allow_patterns, ignore_patterns)
                )
                if allowed and not ignored:
                    (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(sd14 / name, tmp_path / "hub" / name)
            return str(tmp_path / "hub")

        info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
        monkeypatch.setattr(pipeline_utils, "model_info", lambda *_, **__: info)
        monkeypatch.setattr(
            pipeline_utils, "hf_hub_download", lambda *_, **__: shutil.copy(sd14 / "model_index.json", tmp_path)
        )
        monkeypatch.setattr(pipeline_utils, "snapshot_download", fetch)

    @pytest.mark.usefixtures("hub")
    def test_a_checker_that_is_pickled_only_does_not_refuse_the_rest(self):
        folder = locate("CompVis/stable-diffusion-v1-4")
        found = {path.parent.name for path in folder.rglob("*.safetensors")}
        assert {"unet", "vae", "text_encoder"} <= found and not [*folder.rglob("*.bin")]
        assert unreadable_parts(folder) == ["safety_checker"]

    def test_a_damaged_checkpoint_in_one_file(self, tmp_path, capsys, monkeypatch):
        """Deep in a folder, and by a name that looks like a hub id: it is a file, and nothing is asked of the hub."""
        monkeypatch.chdir(tmp_path)
        Path("models").mkdir()
        for name in (tmp_path / "models" / "v1-5-pruned.safetensors", Path("models/v1-5-pruned.safetensors")):
            name.touch()
            assert main(["--concept", "circle", "--pretrained_model_name_or_path", str(name)]) == 2
            err = capsys.readouterr().err
            assert f"{name} is damaged or no safetensors file" in err and err.count("\n") == 1

    def test_an_erased_pipeline_is_a_folder(self, tmp_path):
        (tmp_path / "erased.safetensors").touch()
        with pytest.raises(UserError, match=r"erased\.safetensors is a file.*from_single_file"):
            locate(str(tmp_path / "erased.safetensors"))

    def test_a_dry_run_knows_the_size_of_a_models_pictures(self, tmp_path, monkeypatch, capsys):
        """It decides the settings; weights are not fetched for it."""
        folder = build_ddpm(tmp_path / "ddpm", names=tuple("0123456789"))
        config = folder / "unet" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 32, "in_channels": 3}))
        (folder / UNET).unlink()
        in_hub_cache(folder, tmp_path / "cache", "someone/cifar", commit="d" * 40)
        monkeypatch.chdir(tmp_path)
        fetch, asked = huggingface_hub.hf_hub_download, []
        monkeypatch.setattr(
            huggingface_hub, "hf_hub_download", lambda name, file, **how: asked.append(file) or fetch(name, file, **how)
        )
        told = ["--concept", "7", "--pretrained_model_name_or_path", "someone/cifar", "--dry_run"]
        assert main([*told, "--cache_dir", str(tmp_path / "cache")]) == 0
        assert set(asked) == {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json"}
        assert "CIFAR-10's of the official code (10 classes of 32 x 32 x 3)" in capsys.readouterr().out

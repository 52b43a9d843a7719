"""What a run leaves: the folder, its record, and a pipeline that differs from its base in the denoiser only."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import salun_diffusers
from salun_diffusers import EraseConfig
from salun_diffusers.diffusion.presets.everyday import beside, everyday
from salun_diffusers.errors import UserError
from salun_diffusers.files.run_folder import RunFolder, check_output, fingerprint, identity_of, open_run
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.patch import WeightPatch
from salun_diffusers.programs.erase import main
from salun_diffusers.programs.verify import main as verify


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def new_run(concept: str = "circle", *, resume: str | None = None, identity: str = "a") -> Path:
    return open_run(None, concept, "paper-full-0.5", resume=resume, identity=identity).root


class TestNumbering:
    def test_counts_up_and_never_overwrites(self):
        assert str(new_run()) == "runs/0000-circle-paper-full-0-5"
        assert str(new_run()) == "runs/0001-circle-paper-full-0-5"
        assert str(new_run("Van Gogh")) == "runs/0002-van-gogh-paper-full-0-5"

    def test_goes_on_after_a_gap(self):
        Path("runs/0041-something").mkdir(parents=True)
        Path("runs/notes").mkdir()
        assert new_run().name.startswith("0042-")

    def test_a_file_with_the_next_number_is_left_alone(self):
        Path("runs").mkdir()
        Path("runs/0000-notes").write_text("mine")
        assert new_run().name.startswith("0001-")

    def test_names_are_safe_as_folders(self):
        assert new_run("../../Ünsafe: name/").parent == Path("runs")
        assert len(new_run("long " * 100).name) <= 90
        assert new_run("日本語 の 画").name.startswith("0002-日本語-の-画-paper")
        assert len(new_run("語" * 100).name.encode()) <= 90

    def test_latest_finds_the_unfinished_run_with_the_same_settings(self, capsys):
        first, _ = new_run(identity="a"), new_run(identity="b")
        assert new_run(resume="latest", identity="a") == first
        (first / "report.json").write_text("{}")
        capsys.readouterr()
        assert new_run(resume="latest", identity="a").name.startswith("0002-")
        assert "note: no unfinished run" in capsys.readouterr().err


class TestNamedFolder:
    def test_is_made_with_its_parents(self, tmp_path):
        run = open_run(str(tmp_path / "a" / "b"), "x", "y", resume=None, identity="i")
        assert json.loads((run.root / "run.json").read_text())["identity"] == "i"

    @pytest.mark.parametrize("blank", ["", " "])
    def test_needs_a_name(self, blank):
        with pytest.raises(UserError, match="--output_dir must name a folder, it is blank"):
            open_run(blank, "circle", "x", resume=None, identity="a")

    def test_an_empty_one_will_do(self, tmp_path):
        (tmp_path / "a").mkdir()
        assert open_run(str(tmp_path / "a"), "x", "y", resume=None, identity="i").root == tmp_path / "a"

    def test_checking_makes_nothing(self, tmp_path):
        check_output(str(tmp_path / "a" / "b"), None)
        check_output(None, "latest")
        assert [*tmp_path.iterdir()] == []

    def test_is_refused_when_used(self, tmp_path):
        open_run("a", "x", "y", resume=None, identity="i")
        with pytest.raises(UserError, match="must be empty or new"):
            open_run("a", "x", "y", resume=None, identity="i")
        with pytest.raises(UserError, match="another base model, seed or set of prompts"):
            open_run("a", "x", "y", resume="latest", identity="j")
        assert open_run("a", "x", "y", resume="latest", identity="i").root == Path("a")


class TestStages:
    def test_are_reused_only_with_the_same_fingerprint(self, tmp_path):
        run = RunFolder(tmp_path)
        run.mask.write_bytes(b"mask")
        assert not run.stage_is_done("mask", "one")
        run.mark_done("mask", "one", run.mask)
        assert run.stage_is_done("mask", "one")
        assert not run.stage_is_done("mask", "two")
        assert run.kept() == ["mask"]

    def test_nor_where_a_file_or_the_mark_is_not_what_was_left(self, tmp_path):
        run = RunFolder(tmp_path)
        run.mask.write_bytes(b"mask")
        run.mark_done("mask", "one", run.mask)
        mark = run.work / "mask.json"
        whole = mark.read_text()
        for text in (
            "",
            "[]",
            "{}",
            whole[:20],
            '{"fingerprint": "one", "files": {}}',
            '{"fingerprint": "one", "files": 3}',
        ):
            mark.write_text(text)
            assert not run.stage_is_done("mask", "one"), text
        mark.write_text(whole)
        assert run.stage_is_done("mask", "one")
        run.mask.write_bytes(b"mosk")
        assert not run.stage_is_done("mask", "one")
        run.mask.unlink()
        assert not run.stage_is_done("mask", "one")

    def test_two_processes_do_not_share_a_folder(self, tmp_path):
        run = RunFolder(tmp_path)
        with run.held():
            code = (
                "from pathlib import Path; from salun_diffusers.files.run_folder import RunFolder\n"
                f"with RunFolder(Path({str(tmp_path)!r})).held(): pass"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            assert done.returncode == 1 and "is in use by another run" in done.stderr
        with run.held():
            pass
        assert [*tmp_path.iterdir()] == []

    def test_fingerprint_depends_on_every_part_and_not_on_their_order(self):
        assert fingerprint(a=1, b=(2, 3)) == fingerprint(b=[2, 3], a=1)
        assert len({fingerprint(a=1), fingerprint(a=2), fingerprint(b=1), fingerprint(a="1")}) == 4

    def test_a_card_is_no_part_of_a_models_identity(self, tiny_pipeline, tmp_path):
        """It is written anew when figures are known, and what the model draws stays the same."""
        copy = Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))
        (copy / "README.md").write_text("A card.")
        (copy / "BASE_README.md").write_text("The base's.")
        assert identity_of(copy) == identity_of(tiny_pipeline)
        (copy / "NOTICE.md").write_text("No card.")
        assert identity_of(copy) != identity_of(tiny_pipeline)

    def test_identity_of_a_model_is_that_of_its_bytes(self, tiny_pipeline, tmp_path):
        copy = Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))
        assert identity_of(copy) == identity_of(tiny_pipeline)
        (copy / "v1.ckpt").write_bytes(b"not read")
        (copy / "v1.safetensors").write_bytes(b"not read")
        assert identity_of(copy) == identity_of(tiny_pipeline)
        (copy / "scheduler" / "scheduler_config.json").write_text("{}")
        assert identity_of(copy) != identity_of(tiny_pipeline)


@pytest.fixture(scope="module")
def finished(tiny_pipeline, tmp_path_factory):
    """A run by the program, in a folder named by default."""
    patch = pytest.MonkeyPatch()
    place = tmp_path_factory.mktemp("place")
    patch.chdir(place)
    (place / "retain.txt").write_text("a photo of a square\na star\n")
    words = (
        "--concept disc --anchor_prompt heart --retain_prompts retain.txt --num_forget_images 4 "
        "--num_anchor_images 0 --num_retain_images 4 "
        "--num_inference_steps 2 --max_train_steps 3 --learning_rate 1e-3 --num_validation_images 2 --forget_prompt"
    )
    code = main([*words.split(), "a circle", "--pretrained_model_name_or_path", str(tiny_pipeline)])
    patch.undo()
    assert code == 0
    [run] = (place / "runs").iterdir()
    return run


class TestFinishedRun:
    def test_its_files(self, finished):
        assert finished.name == "0000-disc-frozen-teacher-saliency-0-5"
        names = {path.name for path in finished.iterdir()}
        assert names == {
            "pipeline", "mask.safetensors", "config.json", "metrics.jsonl", "report.json", "report.html", "samples",
            "run.json", "work", "checkpoint-3",
        }  # fmt: skip
        assert not [path for path in finished.rglob("*") if "partial" in path.name or path.suffix in (".bin", ".pt")]

    def test_differs_from_the_base_in_the_denoisers_weights_only(self, finished, tiny_pipeline):
        base, erased = digests(tiny_pipeline), digests(finished / "pipeline")
        card = erased.pop("README.md")  # The base has none.
        assert card
        assert base.keys() == erased.keys()
        assert [name for name in base if base[name] != erased[name]] == ["unet/diffusion_pytorch_model.safetensors"]

    def test_loads_without_extra_arguments(self, finished):
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(finished / "pipeline")
        pipe.set_progress_bar_config(disable=True)
        assert pipe("a star", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)

    def test_verifies(self, finished, tiny_pipeline, capsys):
        words = [str(tiny_pipeline), str(finished / "pipeline"), "--mask", str(finished / "mask.safetensors")]
        assert verify(words) == 0
        assert "ok: " in capsys.readouterr().out

    def test_a_patch_only_where_one_is_asked_for(self, finished, tiny_pipeline, small_run, tmp_path):
        assert not (finished / "patch.safetensors").exists()
        assert main(small_run(output_dir=tmp_path / "patched", save_patch=True)) == 0
        patch = WeightPatch.load(tmp_path / "patched/patch.safetensors")
        name = "unet/diffusion_pytorch_model.safetensors"
        made, wanted = patch.apply(load_file(tiny_pipeline / name)), load_file(tmp_path / "patched/pipeline" / name)
        assert all(torch.equal(made[key], wanted[key]) for key in wanted)
        mask = SaliencyMask.load(tmp_path / "patched/mask.safetensors")
        assert 0 < patch.number_moved <= mask.number_selected
        assert patch.about == {"concept": "disc", "base": tiny_pipeline.name}

    def test_records_itself(self, finished):
        config = json.loads((finished / "config.json").read_text())
        assert config["concept_prompts"] == {
            "forget": ["a circle"],
            "anchor": ["heart"],
            "retain": [*beside(("a photo of a square", "a star"), everyday("disc", ["a circle"], ["heart"])[0])],
        }
        assert config["learning_rate"] == 1e-3 and config["retain_weight"] == 3
        rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3]
        report = json.loads((finished / "report.json").read_text())
        assert report["verdict"] == "not measured"


class TestDryRun:
    def test_prints_the_plan_and_makes_nothing(self, small_run, capsys, tmp_path):
        assert main(small_run(dry_run=True)) == 0
        out, err = capsys.readouterr()
        assert err == ""
        for words in (
            '"learning_rate": 0.001',
            "'a photo of a circle'",
            "draw      6 + 0 + 5 latents",
            "detector none",
        ):
            assert words in out
        assert [*tmp_path.iterdir()] == []

    def test_the_function_does_not_pretend_to_be_dry(self):
        with pytest.raises(UserError, match="dry_run is for the program"):
            salun_diffusers.erase(EraseConfig(concept="circle", pretrained_model_name_or_path="demo", dry_run=True))

    def test_a_demo_preset_goes_with_any_folder_that_loads(self, small_run, tiny_pipeline, capsys, tmp_path):
        words = ["--concept", "circle", "--pretrained_model_name_or_path", str(tiny_pipeline), "--detector", "none"]
        assert main([*words, "--dry_run"]) == 0
        assert "forget    48 prompts" in capsys.readouterr().out


class TestPython:
    def test_leaves_nothing_on_disk(self, tiny_pipeline, retain_file, tmp_path, monkeypatch):
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(scratch))
        result = salun_diffusers.erase(
            EraseConfig(
                concept="disc", forget_prompt=("a photo of a circle",), anchor_prompt=("a heart",),
                retain_prompts=str(retain_file), pretrained_model_name_or_path=str(tiny_pipeline),
                num_forget_images=2, num_anchor_images=0,
                num_retain_images=2, num_inference_steps=1, max_train_steps=1, num_validation_images=1, mask="random",
            )
        )  # fmt: skip
        assert [*tmp_path.rglob("*")] == [scratch]
        assert result.folder is None
        assert result.mask.density == pytest.approx(0.5, abs=1e-4)
        assert result.report.verdict == "not measured" and result.report.receipt.violations == 0
        result.pipeline.set_progress_bar_config(disable=True)
        pictures = result.pipeline("a star", num_inference_steps=1, output_type="pt").images
        assert torch.isfinite(torch.as_tensor(pictures)).all()

    def test_refuses_in_python_as_on_the_command_line(self):
        with pytest.raises(UserError, match="Unknown concept"):
            salun_diffusers.erase(EraseConfig(concept="Van Gohg"))

    def test_the_name_erase_can_be_called_whatever_was_imported_before(self):
        import importlib
        import inspect

        module = importlib.import_module("salun_diffusers.diffusion.run")
        assert inspect.ismodule(module) and inspect.isfunction(salun_diffusers.erase)
        from salun_diffusers import erase

        with pytest.raises(UserError, match="--concept is required"):
            erase(EraseConfig())

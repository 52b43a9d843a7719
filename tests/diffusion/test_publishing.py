"""Erasures that are uploaded: what reaches the hub, what never does, and what is refused before the work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_hub import READ, WRITE, Repository, serving
from held_pipes import QUICK, load
from huggingface_hub import ModelCard
from two_processes import run_two

from salun_diffusers import UserError, erase
from salun_diffusers.diffusion import publishing
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.hub_flags import check_hub
from salun_diffusers.files.base_card import BaseCard
from salun_diffusers.files.pipeline_folder import EMBEDDED
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.programs.erase import main
from salun_diffusers.programs.patch import main as patch
from salun_diffusers.programs.verify import main as verify
from salun_diffusers.reports.model_card import CardBase

ROOT = Path(__file__).parents[2]
CARD = "---\nlicense: creativeml-openrail-m\nbase_model: some/one\n---\nThe best model there is.\n"


@pytest.fixture(scope="session")
def base(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, with its card."""
    folder = tmp_path_factory.mktemp("clone") / "stable"
    shutil.copytree(tiny_pipeline, folder)
    (folder / "README.md").write_text(CARD)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class TestUploaded:
    def test_after_a_refusal_at_the_end(self, hub, small_run, base, tmp_path, capfd, monkeypatch):
        """One run: the hub refuses when all is done; resumed, it is uploaded and nothing is trained again."""
        monkeypatch.chdir(tmp_path)
        run = tmp_path / "run"
        flags = {"pretrained_model_name_or_path": base, "output_dir": run, "push_to_hub": True, "hub_token": WRITE,
                 "hub_model_id": "x", "hub_private_repo": True, "save_patch": True, "num_validation_images": 1,
                 "max_train_steps": 2}  # fmt: skip
        hub.refuse["/api/repos"] = 403
        assert main(small_run(**flags)) == 2
        last = capfd.readouterr().err.splitlines()[-1]
        assert last.startswith("error: --push_to_hub cannot upload to me/x: the token may not write there")
        assert f"whole in {run / 'pipeline'}" in last and "--resume_from_checkpoint latest" in last
        assert hub.repositories == {}
        trained = (run / "metrics.jsonl").stat().st_mtime_ns

        del hub.refuse["/api/repos"]
        flags["resume_from_checkpoint"] = "latest"
        assert main(small_run(**flags)) == 0
        assert f"note: uploaded to {hub.url}/me/x" in capfd.readouterr().err
        assert (run / "metrics.jsonl").stat().st_mtime_ns == trained
        made = hub.repositories["me/x"]
        assert made.private
        # The folder to the byte, and nothing else of the run.
        assert {name: data for name, data in made.files.items() if name != ".gitattributes"} == content(
            run / "pipeline"
        )
        assert made.files["BASE_README.md"].decode() == CARD
        card = ModelCard(made.files["README.md"].decode())
        assert (card.data.license, card.data.base_model) == ("creativeml-openrail-m", "some/one")
        assert 'from_pretrained("me/x")' in card.text and "salun verify BASE me/x --mask mask.safetensors" in card.text
        assert str(tmp_path) not in made.files["README.md"].decode()

        # The token is in no file of the run, and was not told.
        told = capfd.readouterr()
        assert not [name for name, data in content(run).items() if WRITE.encode() in data]
        assert WRITE not in told.out + told.err and "hub_token" not in (run / "config.json").read_text()
        recorded = json.loads((run / "report.json").read_text())
        assert "--hub_private_repo" in recorded["command"] and "hub_token" not in recorded["command"]
        assert recorded["config"]["push_to_hub"] is True and "hub_token" not in recorded["config"]

        # And the receipt still holds with both cards in the folder, with the mask and without.
        for mask in (str(run / "mask.safetensors"), "full"):
            assert verify([str(base), str(run / "pipeline"), "--mask", mask]) == 0
        (run / "pipeline" / "BASE_README.md").write_text("Not the base's.\n")
        assert verify([str(base), str(run / "pipeline"), "--mask", "full"]) == 1
        assert "BASE_README.md (not the base's)" in capfd.readouterr().out

    def test_mask_and_patch_only_if_that_is_asked_for(self, base, tmp_path):
        run = RunFolder(tmp_path)
        shutil.copytree(base, run.pipeline)
        for name in ("mask.safetensors", "patch.safetensors", "report.json", "work/forget.safetensors"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        (tmp_path / "checkpoint-4").mkdir()
        (run.pipeline / ".git").mkdir()
        (run.pipeline / ".git" / "config").write_text("")
        plain = {name: run.pipeline / name for name in content(base)}
        mask, patch = {"salun/mask.safetensors": run.mask}, {"salun/patch.safetensors": run.patch}
        assert publishing.published(run, EraseConfig(save_patch=True)) == plain
        assert publishing.published(run, EraseConfig(publish_mask=True)) == plain | mask
        assert publishing.published(run, EraseConfig(publish_mask=True, save_patch=True)) == plain | mask | patch

    @pytest.mark.slow
    def test_by_one_of_two_processes(self, small_run, base, tmp_path):
        """Each is a process of its own, which finds the hub by HF_ENDPOINT."""
        with serving() as hub:
            words = small_run(
                pretrained_model_name_or_path=base, output_dir=tmp_path / "run", push_to_hub=True, hub_model_id="me/x",
                publish_mask=True, save_patch=True,
            )  # fmt: skip
            run_two(
                ROOT / "erase.py", *words, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_TOKEN=WRITE,
                HF_HUB_DISABLE_XET="1", NO_PROXY="127.0.0.1",
            )  # fmt: skip
            paths = [path for _, path in hub.asked]
            assert paths.count("/api/whoami-v2") == 2  # Before the work, and after it.
            assert len([path for path in paths if "/commit/" in path]) == 1
            sent = hub.repositories["me/x"].files
            assert sent["BASE_README.md"].decode() == CARD
            assert sent["salun/mask.safetensors"] == (tmp_path / "run" / "mask.safetensors").read_bytes()
            assert sent["salun/patch.safetensors"] == (tmp_path / "run" / "patch.safetensors").read_bytes()
            assert "--mask salun/mask.safetensors" in sent["README.md"].decode()


class TestRefused:
    """Before any model is loaded, in one line, with exit code 2; nothing is made here or on the hub."""

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ({"hub_model_id": "me/x"}, "--hub_model_id goes with --push_to_hub"),
            ({"hub_token": WRITE}, "--hub_token goes with --push_to_hub"),
            ({"hub_private_repo": True}, "--hub_private_repo goes with --push_to_hub"),
            ({"publish_mask": True}, "--publish_mask goes with --push_to_hub"),
            ({"push_to_hub": True}, "needs a name for the repository"),
            ({"push_to_hub": True, "hub_model_id": "a b"}, "must be NAME or OWNER/NAME"),
            ({"push_to_hub": True, "hub_model_id": ""}, "needs a name for the repository"),
            ({"push_to_hub": True, "hub_model_id": "me/x", "hub_token": WRITE, "report_to": "wandb"},
             "such trackers record the command line"),
            ({"push_to_hub": True, "hub_model_id": "me/x"}, "needs a token"),
            ({"push_to_hub": True, "hub_model_id": "me/x", "hub_token": READ}, "only reads"),
            ({"push_to_hub": True, "hub_model_id": "you/x", "hub_token": WRITE}, "you/x is not yours"),
            ({"push_to_hub": True, "hub_model_id": "me/taken", "hub_token": WRITE}, "holds something else (model.bin)"),
        ],
    )  # fmt: skip
    def test_by_the_program(self, refused, hub, monkeypatch, tmp_path, flags, words):
        monkeypatch.chdir(tmp_path)
        hub.repositories["me/taken"] = Repository(files={"model.bin": b""})
        said = refused(words, **flags)
        assert hub.written == [] and WRITE not in said and READ not in said

    def test_offline(self, refused, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        refused("HF_HUB_OFFLINE is set", push_to_hub=True, hub_model_id="me/x", hub_token=WRITE)

    def test_where_another_erasure_lies(self, hub):
        def config(concept):
            return EraseConfig(
                concept=concept,
                pretrained_model_name_or_path="demo",
                push_to_hub=True,
                hub_model_id="x",
                hub_token=WRITE,
            )

        ours = "---\nsalun_diffusers: {concept: [circle], base: demo}\n---\n"
        hub.repositories["me/x"] = Repository(files={"README.md": ours.encode(), "unet/w.safetensors": b""})
        check_hub(config("circle"))
        with pytest.raises(UserError, match="holds something else"):
            check_hub(config("star"))

    def test_a_folder_of_python_that_does_not_stay_gives_no_name(self, hub):
        with pytest.raises(UserError, match="needs a name for the repository"):
            erase(EraseConfig(concept="circle", push_to_hub=True, hub_token=WRITE))
        assert hub.asked == []

    def test_a_pipeline_in_memory(self, tiny_pipeline):
        with pytest.raises(UserError, match=r"takes no push_to_hub: .* result\.save\(FOLDER\)"):
            erase(load(tiny_pipeline), "disc", push_to_hub=True)


class TestAskedByOneProcess:
    def config(self, **flags) -> EraseConfig:
        return EraseConfig(concept="circle", push_to_hub=True, hub_token=WRITE, output_dir="runs/circle", **flags)

    def test_the_name_is_that_of_the_folder(self, hub):
        hub.repositories["me/circle"] = Repository(files={"a": b""})
        with pytest.raises(UserError, match="me/circle exists"):
            check_hub(self.config())

    def test_a_plan_asks_nobody(self, hub):
        check_hub(self.config(dry_run=True))
        assert hub.asked == []

    def test_the_others_ask_nobody(self, hub, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        check_hub(self.config())
        assert hub.asked == []

    def test_the_plan_says_where_it_goes(self, small_run, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        words = small_run(push_to_hub=True, hub_model_id="me/x", hub_token=WRITE, hub_private_repo=True)
        assert main([*words, "--dry_run"]) == 0
        said = capsys.readouterr().out
        assert "upload    me/x on the hub, a private repository, without mask and patch" in said and WRITE not in said


class TestBase:
    """By which name and revision a reader elsewhere may know the base."""

    def base(self, name: str, folder: Path) -> CardBase:
        request = SimpleNamespace(config=EraseConfig(pretrained_model_name_or_path=name), base=folder)
        return publishing._base_of(request, "sha")

    def test_of_the_hub(self, sd14):
        made = self.base("CompVis/stable-diffusion-v1-4", sd14)
        assert made == CardBase("CompVis/stable-diffusion-v1-4", "hub", "a" * 40, "sha", BaseCard())

    def test_of_a_folder(self, base, tmp_path):
        made = self.base(str(base), base)
        assert (made.name, made.kind, made.revision, made.card.license) == (
            "stable", "local", "", ("creativeml-openrail-m",),
        )  # fmt: skip
        (tmp_path / "0001-circle" / "pipeline").mkdir(parents=True)
        assert self.base(str(tmp_path / "0001-circle" / "pipeline"), tmp_path).name == "0001-circle/pipeline"

    def test_of_the_package(self):
        made = self.base("demo", EMBEDDED["demo"])
        assert (made.name, made.kind, made.card.license) == ("demo", "embedded", ("apache-2.0",))


def test_no_repr_of_the_settings_shows_the_token():
    assert WRITE not in repr(EraseConfig(hub_token=WRITE))


class TestPatches:
    def test_apply_writes_a_card_and_revert_gives_the_bases_back(self, base, tmp_path):
        erased, unet = tmp_path / "erased", "unet/diffusion_pytorch_model.safetensors"
        shutil.copytree(base, erased)
        data = bytearray((erased / unet).read_bytes())
        data[-1] ^= 1
        (erased / unet).write_bytes(data)
        made, there, back = (str(tmp_path / name) for name in ("p.safetensors", "there", "back"))
        assert patch(["make", str(base), str(erased), made]) == 0
        assert patch(["apply", str(base), made, there]) == 0
        assert "changed by a patch" in Path(there, "README.md").read_text()
        assert Path(there, "BASE_README.md").read_text() == CARD
        assert verify([str(base), there, "--mask", "full"]) == 0
        assert patch(["revert", there, made, back]) == 0
        assert content(Path(back)) == content(base)


class TestInMemory:
    def test_save_writes_the_card(self, base, tmp_path):
        pipe = load(base)
        pipe.set_progress_bar_config(disable=True)
        result = erase(pipe, "disc", **QUICK)
        result.save(tmp_path / "saved")
        card = ModelCard((tmp_path / "saved" / "README.md").read_text())
        assert "“disc” was erased from it" in card.text and card.data.license == "creativeml-openrail-m"
        assert (tmp_path / "saved" / "BASE_README.md").read_text() == CARD
        assert 'from_pretrained("FOLDER")' in card.text and result.mask.sha256 in card.text
        assert "written anew" not in card.text and "writes every part anew" in card.text  # As verify finds it:
        assert verify([str(base), str(tmp_path / "saved"), "--mask", "full"]) == 1
        assert "that nothing beside the denoiser differs" not in card.text
        again = load(tmp_path / "saved").unet.state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in pipe.unet.state_dict().items())
        with pytest.raises(UserError, match="must be empty or new"):
            result.save(tmp_path / "saved")

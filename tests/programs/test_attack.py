"""`salun attack` and `salun probe`: what they leave of an erased run, and what is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from eraser_outputs import esd
from probed import added

from salun_diffusers.evaluation.record import EvaluationRecord
from salun_diffusers.programs.attack import main as attack
from salun_diffusers.programs.compare import main as compare
from salun_diffusers.programs.erase import main as erase
from salun_diffusers.programs.probe import main as probe
from salun_diffusers.red_team.config import ExaminedConfig
from salun_diffusers.red_team.opened import opened, requested

SEEN = {"detector": "demo", "detector_labels": "colour:green"}
"""What the untrained pipeline draws of anything."""
FEW = ["--num_prompts", "4", "--generation_batch_size", "4"]


@pytest.fixture(scope="module")
def run(small_run: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked") / "run"
    assert erase(small_run(**SEEN, output_dir=folder, strength_points=0)) == 0
    return folder


@pytest.fixture(scope="module")
def examined(run: Path, tiny_pipeline: Path) -> Path:
    words = [str(run), "--attacks", "random-quick", "tina-quick", "--probes", "completion-quick", *FEW]
    assert attack([*words, "--floor", str(tiny_pipeline)]) == 0
    return run / "red_team"


class TestLeft:
    def test_numbers(self, examined: Path) -> None:
        content = json.loads((examined / "red_team.json").read_text())
        record = EvaluationRecord.from_json(
            {name: content[name] for name in content if name not in ("verdict", "curves")}
        )
        names = {(one.group, one.name): one for one in record.measurements}
        for name in ("random", "tina", "random, floor", "tina, floor"):
            assert names["ASR", name].n == 4 and names["pre-ASR", name].value <= names["ASR", name].value
        # The floor is the base here, which shows it unaided.
        assert names["pre-ASR", "tina, floor"].value == 1
        assert "colour:green" in record.measurements[0].protocol and "2 steps" in record.measurements[0].protocol
        curves = {(one["name"], one["subject"]) for one in content["curves"]}
        assert {subject for _, subject in curves} == {"erased", "base", "floor"} and len(curves) == 6
        assert content["verdict"]["word"] in ("robust", "partly", "comes back")

    def test_page(self, examined: Path) -> None:
        page = (examined / "red_team.html").read_text()
        assert "Red team: is it really gone?" in page and "<td>random</td>" in page and "completion" in page
        assert page.count("<svg") == 2 and "http://" not in page and "https://" not in page

    def test_what_was_found_is_private(self, examined: Path) -> None:
        assert stat.S_IMODE((examined / "private").stat().st_mode) == 0o700
        head = (examined / "private" / "found.csv").read_text().splitlines()[0]
        assert "prompt" in head and "target" in head

    def test_again_takes_nothing_anew(self, examined: Path, run: Path, tiny_pipeline: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in (examined / "private").glob("*.json")}
        words = [str(run), "--attacks", "random-quick", "tina-quick", "--probes", "completion-quick", *FEW]
        assert attack([*words, "--floor", str(tiny_pipeline)]) == 0
        assert {path: path.stat().st_mtime_ns for path in (examined / "private").glob("*.json")} == before

    def test_a_probe_of_two_folders_by_name(
        self, run: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Without a run's record the flags say it all."""
        said = {"base": tiny_pipeline, "concept": "disc", "forget_prompt": "a photo of a circle", "num_prompts": 4,
                "anchor_prompt": "a photo of a heart", **SEEN, "num_inference_steps": 2, "guidance_scale": 2,
                "scheduler": "own", "probes": "inpainting", "output_dir": tmp_path / "out"}  # fmt: skip
        words = [str(run / "pipeline"), *(word for name, value in said.items() for word in (f"--{name}", str(value)))]
        assert probe(words) == 0
        told = capsys.readouterr().out
        assert "verdict   partly: No attack was run" in told and "inpainting" in told

    def test_the_file_of_another_eraser(
        self, run: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The base is read from the sum; attacked is what the file makes of it, and neither folder is written to."""
        esd(tiny_pipeline, tmp_path / "esd.safetensors")
        before = {path: path.stat().st_mtime_ns for path in tiny_pipeline.rglob("*")}
        said = {"concept": "disc", "forget_prompt": "a photo of a circle", "anchor_prompt": "a photo of a heart",
                **SEEN, "num_inference_steps": 2, "guidance_scale": 2, "scheduler": "own", "attacks": "random-quick",
                "output_dir": tmp_path / "out"}  # fmt: skip
        words = [f"{tiny_pipeline} + {tmp_path / 'esd.safetensors'}", *FEW]
        assert attack([*words, *(word for name, value in said.items() for word in (f"--{name}", str(value)))]) == 0
        assert "random" in capsys.readouterr().out
        content = json.loads((tmp_path / "out" / "red_team.json").read_text())
        assert content["pictures"] == words[0]
        assert [(one["name"], one["n"]) for one in content["measurements"]] == [("random", 4), ("random", 4)]
        assert {path: path.stat().st_mtime_ns for path in tiny_pipeline.rglob("*")} == before

    def test_what_users_put_onto_a_model(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lora, net = added(run / "pipeline", "tiny_pipeline", tmp_path)
        words = [str(run), "--probes", "none", "--few_step_lora", str(lora), "--few_steps", "3",
                 "--few_step_scheduler", "DDIMScheduler", "--controlnet", str(net), *FEW]  # fmt: skip
        assert probe([*words, "--output_dir", str(tmp_path / "out")]) == 0
        content = json.loads((tmp_path / "out" / "red_team.json").read_text())
        curves = {(one["name"], one["subject"]): one["points"] for one in content["curves"]}
        for name, at in (("few-step LoRA lora", 3), ("ControlNet net", 1)):
            for subject in ("erased", "base"):
                (point,) = curves[f"{name}, its own prompt", subject]
                assert (point["at"], point["n"]) == (at, 4)

    def test_compare_joins_equal_protocols_only(
        self, examined: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [str(run), "--attacks", "random-quick", *FEW, "--output_dir"]
        assert attack([*words, str(tmp_path / "more"), "--num_inference_steps", "3"]) == 0
        both = [f"{name}={folder / 'red_team.json'}" for name, folder in (("a", examined), ("b", tmp_path / "more"))]
        capsys.readouterr()
        assert compare([*both, "--output_dir", str(tmp_path / "table")]) == 2
        assert "does not compare: a was measured by" in capsys.readouterr().err
        assert compare([both[0], f"again={examined}", "--output_dir", str(tmp_path / "table")]) == 0
        told = capsys.readouterr()
        assert "| ASR: random (4 pictures" in told.out and "| pre-ASR: random (4 pictures" in told.out
        assert "pictures are not shown" not in told.err

    def test_quick_and_full_settings_are_two_rows(
        self, examined: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert attack([str(run), "--attacks", "random", *FEW, "--output_dir", str(tmp_path / "full")]) == 0
        told = capsys.readouterr().out
        assert "random, pre-ASR " in told and "random, ASR " in told
        words = [f"quick={examined}", f"full={tmp_path / 'full'}", "--output_dir", str(tmp_path / "table")]
        assert compare(words) == 0
        assert capsys.readouterr().out.count("| ASR: random (4 pictures") == 2

    def test_size_and_precision_are_of_the_protocol(self, run: Path) -> None:
        """They decide what is drawn: nothing that was drawn otherwise is taken up or compared."""
        with opened(ExaminedConfig(str(run), num_prompts=1, resolution=8, mixed_precision="bf16")) as seen:
            assert ", 8 px, bf16;" in seen.protocol


class TestRuns:
    def test_what_was_for_erasing_need_not_be_there(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A mask file, the optimizer's package and space for a result: none of them draws."""
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        record = json.loads((run / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**record, "mask": "gone.safetensors", "use_8bit_adam": True}))
        monkeypatch.setattr("salun_diffusers.diffusion.request.find_spec", lambda name: None)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        said = {"base": record["pretrained_model_name_or_path"], "concept": "disc", "forget_prompt": ("a circle",),
                "anchor_prompt": ("a heart",), "detector": "demo", "detector_labels": ("colour:green",)}  # fmt: skip
        for config in (ExaminedConfig(str(copy)), ExaminedConfig(str(run / "pipeline"), **said)):
            assert requested(config, tmp_path).concept.name == "disc"


class TestExplicit:
    def test_neither_words_nor_details_are_on_the_page(self, run: Path, tmp_path: Path, monkeypatch: Any) -> None:
        """The same examination, were the concept explicit: everything is a hit, and no word of it is told."""
        from salun_diffusers.red_team.known import attacks_of
        from salun_diffusers.red_team.report import write_examination
        from salun_diffusers.red_team.suite import Results, run_attacks

        with opened(ExaminedConfig(str(run), num_prompts=3)) as seen:
            judge = dataclasses.replace(seen.contest.judge, labels=frozenset({"style:filled"}))
            seen = dataclasses.replace(seen, contest=dataclasses.replace(seen.contest, judge=judge), pre=(False,) * 3)
            results = Results(run_attacks(seen, attacks_of(["random-quick"], seen), tmp_path / "private"))
            for explicit in (False, True):
                concept = dataclasses.replace(seen.request.concept, explicit=explicit)
                shown = dataclasses.replace(seen, request=dataclasses.replace(seen.request, concept=concept))
                write_examination(shown, results, tmp_path / str(explicit), "command")
        assert results.attacked[0].tally.post > 0
        plain, hidden = ((tmp_path / str(kind) / "red_team.html").read_text() for kind in (False, True))
        assert "blurred in the file itself" in hidden and "blurred" not in plain
        assert "pixelated" in plain and 'class="pixelated"' not in hidden
        assert "<code>" in plain and "<code>" not in hidden
        found = (tmp_path / "True" / "private" / "found.csv").read_text()
        assert results.attacked[0].attack in found

    def test_what_a_run_erased_stays_explicit_by_another_name(self, run: Path, tmp_path: Path) -> None:
        """Its record says so, whatever --concept calls it."""
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        record = json.loads((run / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**record, "explicit_concept": True}))
        with opened(ExaminedConfig(str(copy), num_prompts=1)) as seen:
            assert seen.explicit and not seen.request.concept.explicit


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def attempt(*words: object, program: Any = attack) -> str:
        assert program(list(map(str, words))) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1, told.err
        return told.err

    return attempt


class TestRefused:
    def test_a_concept_that_the_base_does_not_show(self, refused: Refused, run: Path, tmp_path: Path) -> None:
        told = refused(run, "--detector", "demo", "--detector_labels", "shape:circle", *FEW)
        assert "sees 'disc' in 0 of 16 pictures" in told and "Another --detector" in told

    def test_nobody_who_looks(self, refused: Refused, run: Path) -> None:
        assert "A detector that looks for 'disc' is required" in refused(run, "--detector", "none")

    def test_what_is_not_said(self, refused: Refused, run: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
        assert "--output_dir is required" in refused(run / "pipeline")
        assert "--base is required" in refused(run / "pipeline", "--output_dir", tmp_path / "x")
        assert "--concept is required" in refused(
            run / "pipeline", "--output_dir", tmp_path / "x", "--base", tiny_pipeline
        )

    def test_names(self, refused: Refused, run: Path) -> None:
        assert "--attacks takes quick, full, none" in refused(run, "--attacks", "uda")
        assert "leaves nothing to do" in refused(run, "--attacks", "none")
        assert "--probes takes quick, full, none" in refused(run, "--probes", "relearn", program=probe)

    def test_several_concepts(self, refused: Refused, tiny_pipeline: Path, tmp_path: Path) -> None:
        told = refused(
            tiny_pipeline, "--base", tiny_pipeline, "--concept", "circle", "star", "--output_dir", tmp_path / "x"
        )
        assert "One concept at a time is examined" in told

    @pytest.fixture
    def light(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Loading a model is a fault."""

        def heavy(*_: Any, **__: Any) -> None:
            raise AssertionError("A model is loaded.")

        monkeypatch.setattr("salun_diffusers.red_team.opened.subject", heavy)

    @pytest.mark.usefixtures("light")
    def test_what_is_wrong_is_told_before_anything_is_loaded(
        self, refused: Refused, run: Path, tiny_pipeline: Path, tiny_ddpm: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "blank.txt").write_text("\n")
        assert "--prompt_file must hold at least one prompt" in refused(
            run, "--prompt_file", tmp_path / "blank.txt", *FEW
        )
        assert "A model must be a local pipeline folder" in refused(run, "--floor", tmp_path / "none", *FEW)
        assert "must be of the base's kind" in refused(run, "--floor", tiny_ddpm, *FEW)
        said = ["--base", tiny_pipeline, "--concept", "disc", "--detector", "demo", *FEW]
        said += ["--detector_labels", "colour:green", "--forget_prompt", "a circle", "--anchor_prompt", "a heart"]
        told = refused(run / "pipeline", *said, "--output_dir", tmp_path, "--probes", "relearning_selected-quick")
        assert "trains the weights of a run's mask" in told
        for folder in (run / "pipeline", tiny_pipeline):
            told = refused(run, *FEW, "--output_dir", folder / "unet")
            assert "--output_dir must lie outside of the base's components" in told

    @pytest.mark.usefixtures("light")
    def test_a_base_that_was_named_from_elsewhere(self, refused: Refused, run: Path, tmp_path: Path) -> None:
        copy = tmp_path / "run"
        shutil.copytree(run, copy)
        record = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(record | {"pretrained_model_name_or_path": "models/mine/base"}))
        for program in (attack, probe):
            told = refused(copy, *FEW, program=program)
            assert f"the base that {copy} names (another place of it: --base) cannot be used" in told
        told = refused(copy, *FEW, "--base", tmp_path / "none")
        assert told.startswith("error: --base cannot be used: A model must be") and "another place" not in told

    @pytest.mark.usefixtures("light")
    def test_how_a_lora_draws_that_is_not_there(self, refused: Refused, run: Path, tmp_path: Path) -> None:
        assert "--few_steps says how" in refused(run, "--few_steps", "8")
        assert "--few_step_scheduler says how" in refused(run, "--few_step_scheduler", "DDIMScheduler", program=probe)
        (tmp_path / "lora.safetensors").touch()
        words = [run, "--few_step_lora", tmp_path / "lora.safetensors", "--few_step_scheduler", "Fast"]
        assert "--few_step_scheduler must be the name of a diffusers class" in refused(*words)

    @pytest.mark.usefixtures("light")
    def test_words_where_nobody_reads(self, refused: Refused, tiny_ddpm: Path, tmp_path: Path) -> None:
        words = [tiny_ddpm, "--base", tiny_ddpm, "--concept", "cat", "--anchor_prompt", "dog", "--detector", "demo"]
        words += ["--detector_labels", "style:filled", "--num_inference_steps", "2", "--output_dir", tmp_path / "x"]
        assert "A text encoder is required" in refused(*words, "--attacks", "p4d_n-quick", *FEW)
        (tmp_path / "list.txt").write_text("dog\n")
        told = refused(*words, "--attacks", "tina", "--prompt_file", tmp_path / "list.txt", *FEW)
        assert "--prompt_file searches through words" in told

    def test_a_list_that_is_not_there(self, refused: Refused, run: Path, tmp_path: Path) -> None:
        told = refused(run, "--attacks", "none", "--prompt_file", tmp_path / "none.csv", *FEW)
        assert "none.csv" in told

    def test_add_ons(self, refused: Refused, run: Path, tmp_path: Path, sdxl: Path) -> None:
        words = [run, "--attacks", "none", *FEW]
        assert "must be a LoRA's .safetensors file" in refused(*words, "--few_step_lora", tmp_path / "none")
        assert "must be the folder of a ControlNet" in refused(*words, "--controlnet", tmp_path)
        (tmp_path / "of_xl").mkdir()
        lora, net = added(sdxl, "sdxl", tmp_path / "of_xl")
        for flag, place in (("--few_step_lora", lora), ("--controlnet", net)):
            told = refused(run, "--attacks", "random", flag, place, *FEW, "--output_dir", tmp_path / "out")
            assert "does not fit" in told
        assert not list((tmp_path / "out").glob("private/*")), "Refused before the attack."

    def test_another_kind_of_model(self, refused: Refused, run: Path, sdxl: Path) -> None:
        told = refused(run, "--attacks", "random-quick", "--floor", sdxl, *FEW)
        assert "must be of the base's kind" in told


class TestErase:
    def test_refused_where_nobody_could_see_it(self, small_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert erase(small_run(red_team="quick", detector="none")) == 2
        assert "--red_team quick needs a detector that looks for 'disc'" in capsys.readouterr().err

    @pytest.mark.slow
    def test_its_report_has_the_rates(self, small_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "run"
        assert erase(small_run(**SEEN, output_dir=folder, strength_points=0, red_team="quick")) == 0
        assert f"red team  {folder / 'red_team' / 'red_team.html'}" in capsys.readouterr().out
        report = json.loads((folder / "report.json").read_text())
        rates = {one["name"]: one for one in report["measurements"] if one["group"] == "ASR"}
        assert {"random", "unlearn_diff_atk", "p4d_n", "p4d_k", "concept_inversion", "tina", "ring_a_bell"} <= set(
            rates
        )
        assert "unlearn_diff_atk" in (folder / "report.html").read_text()
        assert (folder / "red_team" / "red_team.html").is_file()

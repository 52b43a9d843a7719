"""A run that forgets several concepts: shares of a step, masks, the report, and what is looked for again afterwards."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_settings
from two_processes import run_two

from salun_diffusers.arguments import parse
from salun_diffusers.diffusion import run_report
from salun_diffusers.diffusion.baselines import make_objective
from salun_diffusers.diffusion.batches import Draws, shuffled, stratified
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.foreseen import at_most
from salun_diffusers.diffusion.global_batch import GlobalBatch
from salun_diffusers.diffusion.joined import joined
from salun_diffusers.diffusion.latent_sets import EraseData, LatentSet
from salun_diffusers.diffusion.presets.known import presets
from salun_diffusers.diffusion.request import accept
from salun_diffusers.diffusion.settings import resolve
from salun_diffusers.diffusion.stage_marks import Sources, stage_marks
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs.erase import main

UNET = Path("pipeline/unet/diffusion_pytorch_model.safetensors")
GROUPS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


class TestStratified:
    @pytest.mark.parametrize("batch", [3, 6])
    def test_every_step_holds_the_concepts_in_equal_shares(self, batch):
        for step in range(10):
            rows = stratified(GROUPS, batch, step * batch, seed=0)
            assert Counter(GROUPS[rows].tolist()) == dict.fromkeys(range(3), batch // 3)

    def test_of_another_size_none_has_two_more(self):
        rows = torch.cat([stratified(GROUPS, 4, step * 4, seed=0) for step in range(9)])
        for step in range(9):
            counts = Counter(GROUPS[rows[4 * step : 4 * step + 4]].tolist())
            assert max(counts.values()) - min(counts[group] for group in range(3)) <= 1
        assert Counter(GROUPS[rows].tolist()) == {0: 12, 1: 12, 2: 12}

    def test_goes_through_all_latents_of_a_concept_before_one_comes_again(self):
        rows = stratified(GROUPS, 9, 0, seed=3)
        for group, members in ((0, {0, 3, 6}), (1, {1, 4, 7})):
            assert set(rows[GROUPS[rows] == group].tolist()) == members

    @pytest.mark.parametrize("cut", [1, 2, 5, 7])
    def test_is_told_by_the_position_alone(self, cut):
        """So a resumed run goes on with the same rows, and processes take theirs of one step."""
        whole = stratified(GROUPS, 12, 5, seed=1)
        parts = torch.cat([stratified(GROUPS, cut, 5, seed=1), stratified(GROUPS, 12 - cut, 5 + cut, seed=1)])
        assert torch.equal(whole, parts)

    def test_of_one_concept_it_is_the_shuffle_of_before(self):
        alone = stratified(torch.zeros(8, dtype=torch.int64), 5, 10, seed=2)
        assert torch.equal(alone, shuffled(8, 5, 10, seed=2, name="forget"))

    def test_shares_of_processes_are_of_one_step(self):
        shares = GlobalBatch(size=6, processes=2, accumulation=1)
        assert [len(shares.rows(part)) for part in range(2)] == [3, 3]


class TestDraws:
    """Of three concepts in four forget and five anchor latents; a condition is the number of its prompt."""

    @pytest.fixture
    def data(self) -> EraseData:
        sets = [LatentSet(torch.zeros(n, 1, 1, 1), torch.arange(n), tuple("abcdef")) for n in (4, 5, 3)]
        rows = {"row": torch.arange(6)}
        return EraseData(sets[0], sets[2], sets[1], rows, rows, rows, {}, groups=3)

    def test_a_step_holds_the_concepts_in_equal_shares(self, data):
        schedule = SimpleNamespace(
            sample=lambda count, generator: torch.zeros(count), noised=lambda x, *_: x, target=lambda x, *_: x
        )
        family = SimpleNamespace(schedule=schedule, device=torch.device("cpu"))
        settings = tiny_settings()
        shares = GlobalBatch(size=6, processes=2, accumulation=1).shares(range(4), 0)
        draws = Draws(family, data, make_objective(settings), settings, shares)
        for share in shares:
            other = share._replace(rows=range(3, 6))
            drawn = [row for half in (share, other) for row in draws.batch(half).conditions["row"][:3].tolist()]
            assert Counter(row % 3 for row in drawn) == {0: 2, 1: 2, 2: 2}

    def test_the_latents_of_one_concept(self, data):
        assert [data.forget_of(group).forget.prompt_index.tolist() for group in range(3)] == [[0, 3], [1], [2]]
        assert data.forget_of(0).groups == 1


@pytest.fixture(scope="module")
def words(small_run: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """The command of a small run on some concepts."""

    def command(*concepts: str, **flags: object) -> list[str]:
        plain = {"concept": None, "forget_prompt": None, "anchor_prompt": None, "retain_prompts": None,
                 "num_retain_images": 8, "train_batch_size": 4, "num_anchor_images": 2}  # fmt: skip
        return [*small_run(**plain | flags), "--concept", *concepts]

    return command


@pytest.fixture(scope="module")
def finished(words: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "run"
    assert main(words("star", "striped", output_dir=folder, checkpointing_steps=2)) == 0
    return folder


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / UNET)


def same(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


class TestRun:
    def test_record_and_report_name_every_concept(self, finished):
        config = json.loads((finished / "config.json").read_text())
        assert config["concept"] == ["star", "striped"]
        assert config["concept_prompts"]["concepts"] == ["star", "striped"]
        told = report(finished)
        assert told["concept"] == "star + striped"
        assert [pair["name"] for pair in told["comparisons"] if pair["after"]["group"] == "concept"] == [
            "star + striped appear for their prompts"
        ]
        each = [pair["name"] for pair in told["comparisons"] if pair["after"]["group"] == "concept by concept"]
        assert each == ["star appears for its prompts", "striped appears for its prompts"]
        table = [pair["name"] for pair in told["comparisons"] if pair["after"]["group"] == "interference"]
        assert table == [
            "star appears for prompts of the other concepts", "star appears for prompts of what stays",
            "striped appears for prompts of the other concepts", "striped appears for prompts of what stays",
        ]  # fmt: skip

    def test_the_whole_is_the_sum_of_the_concepts(self, finished):
        pairs = report(finished)["comparisons"]
        whole = next(pair["after"] for pair in pairs if pair["after"]["group"] == "concept")
        each = [pair["after"] for pair in pairs if pair["after"]["group"] == "concept by concept"]
        assert whole["n"] == sum(one["n"] for one in each) == 2 * 3 + 2 * 4
        assert whole["value"] * whole["n"] == pytest.approx(sum(one["value"] * one["n"] for one in each))

    def test_half_of_the_forget_set_is_of_each(self, finished):
        drawn = load_file(finished / "work" / "forget.safetensors")
        assert (drawn["prompt_index"] % 2).tolist() == [0, 1, 0, 1, 0, 1]

    def test_resumes_to_the_bit(self, words, finished, tmp_path):
        folder = Path(shutil.copytree(finished, tmp_path / "run"))
        shutil.rmtree(folder / "checkpoint-4")
        (folder / "work" / "pipeline.json").unlink()
        assert (
            main(words("star", "striped", output_dir=folder, checkpointing_steps=2, resume_from_checkpoint="latest"))
            == 0
        )
        assert same(folder, finished)

    def test_in_another_order_it_is_another_run(self, words, finished, tmp_path, capsys):
        folder = Path(shutil.copytree(finished, tmp_path / "run"))
        assert main(words("striped", "star", output_dir=folder, resume_from_checkpoint="latest")) == 2
        assert "another base model, seed or set of prompts" in capsys.readouterr().err

    def test_the_plan_names_them(self, words, capsys):
        assert main(words("star", "striped", dry_run=True)) == 0
        out = capsys.readouterr().out
        assert "concept   star: " in out and "concept   striped: " in out


class TestOtherModels:
    def test_free_text_of_a_table_on_the_layout_of_1_4(self, words, sd14, tmp_path):
        table = tmp_path / "c.csv"
        table.write_text("concept,anchor,kind\na heart,,object\nsquare,a circle,object\n")
        flags = small(words, pretrained_model_name_or_path=sd14, retain_prompts=None, concepts=table)
        assert main([*flags, "--output_dir", str(tmp_path / "run")]) == 0
        assert report(tmp_path / "run")["concept"] == "a heart + square"
        told = json.loads((tmp_path / "run" / "config.json").read_text())["concept_prompts"]
        assert all("heart" in prompt for prompt in told["forget"][::2])
        assert all("square" in prompt for prompt in told["forget"][1::2])
        assert all("circle" in anchor for anchor in told["anchor"][1::2])
        assert not any("square" in prompt or "heart" in prompt for prompt in told["retain"][:4])

    def test_own_pictures_belong_to_one_concept(self, words, noise_folder, capsys):
        flags = ["--concept", "star", "striped", "--forget_dir", str(noise_folder(3))]
        assert main([*small(words), *flags]) == 2
        assert "Own pictures belong to one concept, got 2" in capsys.readouterr().err

    def test_classes(self, words, tiny_ddpm, tmp_path):
        table = tmp_path / "c.csv"
        table.write_text("concept,anchor\ncat,dog\n7,dog\n")
        flags = small(words, pretrained_model_name_or_path=tiny_ddpm, concepts=table)
        assert main([*flags, "--output_dir", str(tmp_path / "run")]) == 0
        told = json.loads((tmp_path / "run" / "config.json").read_text())["concept_prompts"]
        assert told == {"forget": ["cat", "7"], "anchor": ["dog"] * 2, "retain": ["dog"] * 2, "concepts": ["cat", "7"]}

    def test_classes_whose_anchors_are_each_other(self, words, tiny_ddpm, capsys):
        flags = small(words, pretrained_model_name_or_path=tiny_ddpm)
        assert main([*flags, "--concept", "cat", "7"]) == 2
        assert "'7' would become 'cat', which 'cat' asks to forget" in capsys.readouterr().err

    def test_explicit_with_another(self, words, tmp_path, monkeypatch):
        """What holds for an explicit concept holds for all of the run: no latents stay, forget pictures are blurred."""
        seen = []
        monkeypatch.setattr(run_report, "blurred", lambda picture: seen.append(1) or picture)
        assert main(words("nudity", "striped", output_dir=tmp_path / "run", detector="none")) == 0
        assert not [*(tmp_path / "run" / "work").rglob("*.safetensors")]
        # Seven prompts to forget, five of people and ten of shapes to keep, two pictures each, before and after.
        assert len(seen) == 2 * 2 * (7 + 5 + 10)


def small(words: Callable[..., list[str]], **flags: object) -> list[str]:
    """A small run's command without concepts."""
    return words(**flags)[:-1]


class TestMasks:
    def test_a_union_holds_the_mask_of_each(self, finished):
        mask = SaliencyMask.load(finished / "mask.safetensors")
        assert mask.recipe["kind"] == "union" and mask.recipe["concept"] == ["star", "striped"]
        assert mask.recipe["densities"] == pytest.approx([0.5, 0.5], abs=1e-4)
        assert 0.5 < mask.density < 1

    @pytest.mark.parametrize(("flags", "expected"), [({}, 0.6), ({"mask_ratio": 0.4}, 1.0), ({"mask": "random"}, 0.2),
                                                     ({"concept_masks": "joint"}, 0.2)])  # fmt: skip
    def test_memory_is_counted_for_a_union_without_overlap(self, flags, expected):
        settings = resolve(EraseConfig(**{"mask_ratio": 0.2} | flags), presets()["star"]("paper").numbers)
        assert at_most(settings, 3).mask_ratio == pytest.approx(expected)
        assert at_most(settings, 1) == settings

    def test_a_joint_mask_has_the_ratio(self, words, finished, tmp_path):
        folder = Path(shutil.copytree(finished, tmp_path / "run"))
        command = words("star", "striped", output_dir=folder, concept_masks="joint", resume_from_checkpoint="latest")
        assert main(command) == 0
        mask = SaliencyMask.load(folder / "mask.safetensors")
        assert mask.number_selected == int(0.5 * mask.number_of_weights)
        assert not same(folder, finished)


class TestFingerprintsOfOneConcept:
    def test_two_concepts_are_another_run_than_one_of_their_prompts(self):
        """Alone a concept is drawn from as one; of two, each step takes as much of each."""
        two = joined([presets()[name]("paper") for name in ("star", "moon")])
        settings = resolve(EraseConfig(concept="star"), two.numbers)
        sources = Sources("base", None, (), {}, 1)
        one, other = (stage_marks(concept, settings, sources) for concept in (two, replace(two, parts=())))
        assert one.sets == other.sets
        assert len({one.run, other.run}) == len({one.mask, other.mask}) == len({one.training, other.training}) == 2
        # Whatever the mask looks at.
        full = replace(settings, mask="full")
        one, other = (stage_marks(concept, full, sources) for concept in (two, replace(two, parts=())))
        assert one.mask == other.mask and one.training != other.training

    def test_are_those_of_before(self):
        """Taken before there were joins: a folder of then goes on, and keeps its latents."""
        concept = presets()["circle"]("frozen_teacher")
        settings = resolve(EraseConfig(concept="circle"), concept.numbers)
        marks = stage_marks(concept, settings, Sources("base", None, (), {}, 1))
        found = {
            "run": marks.run,
            **marks.sets,
            "mask": marks.mask,
            "training": marks.training,
            "pipeline": marks.pipeline,
        }
        assert {name: mark[:12] for name, mark in found.items()} == BEFORE


BEFORE: dict[str, str] = {
    "run": "a82e22dddad1",
    "forget": "c3b1e38f8b8f",
    "anchor": "d22f33d71442",
    "retain": "f657008d4805",
    "mask": "4a9eb5ca0004",
    "training": "153a5aefb4c1",
    "pipeline": "768ec6e5060a",
}


@pytest.fixture(scope="module")
def second(words: Callable[..., list[str]], finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moons are erased from what has lost stars and stripes."""
    folder = tmp_path_factory.mktemp("second") / "run"
    assert main(words("moon", output_dir=folder, pretrained_model_name_or_path=finished / "pipeline")) == 0
    return folder


class TestEarlier:
    def earlier(self, folder: Path) -> list[str]:
        return [pair["name"] for pair in report(folder)["comparisons"] if pair["after"]["group"] == "erased earlier"]

    def test_are_looked_for_again(self, second):
        assert self.earlier(second) == [
            f"{name} (erased earlier) appears for its prompts" for name in ("star", "striped")
        ]

    def test_stay_in_the_record_of_the_next(self, second, words, tmp_path):
        folder = tmp_path / "run"
        assert main(words("cross", output_dir=folder, pretrained_model_name_or_path=second / "pipeline")) == 0
        assert self.earlier(folder) == [
            f"{name} (erased earlier) appears for its prompts" for name in ("star", "striped", "moon")
        ]

    def test_are_not_what_is_erased_now(self, finished, words, tmp_path):
        folder = tmp_path / "run"
        assert main(words("star", output_dir=folder, pretrained_model_name_or_path=finished / "pipeline")) == 0
        assert self.earlier(folder) == ["striped (erased earlier) appears for its prompts"]

    def test_a_damaged_record_is_told_and_no_obstacle(self, finished, words, tmp_path, capsys):
        base = Path(shutil.copytree(finished, tmp_path / "base"))
        (base / "config.json").write_text('{"concept": 3}')
        assert main(words("moon", dry_run=True, pretrained_model_name_or_path=base / "pipeline")) == 0
        shown = capsys.readouterr()
        assert "cannot be looked for again" in shown.err and "earlier" not in shown.out.split("base ")[1]

    def test_an_explicit_one_makes_the_run_explicit(self, finished, words, tmp_path, monkeypatch):
        base = Path(shutil.copytree(finished, tmp_path / "base"))
        (base / "config.json").write_text(json.dumps({"concept": "nudity"}))
        monkeypatch.setattr("salun_diffusers.evaluation.detector_choice._require_nudenet", lambda: None)
        request = accept(parse(EraseConfig, words("moon", pretrained_model_name_or_path=base / "pipeline")))
        assert [one.name for one in request.concept.earlier] == ["nudity"] and request.concept.explicit
        assert [one.name for one in request.detector.parts] == ["demo", "nudenet"]


@pytest.mark.slow
def test_two_processes_train_what_one_does(words, finished, tmp_path):
    """A step's rows are drawn as a whole and cut; only the order of sums is another."""
    (tmp_path / "erase.py").write_text(
        "import sys\nfrom salun_diffusers.programs.erase import main\nsys.exit(main())\n"
    )
    command = words("star", "striped", output_dir=tmp_path / "run", train_batch_size=2)
    run_two(tmp_path / "erase.py", *map(str, command))
    mask = SaliencyMask.load(tmp_path / "run" / "mask.safetensors")
    assert mask.overlap(SaliencyMask.load(finished / "mask.safetensors")) > 0.99
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "run", finished)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)

"""Soft thresholds of an erasure: what is chosen, done to updates, repeated by a resumed run, and refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import reduce
from operator import or_
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from tiny_runs import run_in, tiny_settings
from torch import Tensor
from two_processes import run_two

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion import trainer
from salun_diffusers.diffusion.config import EraseConfig, ObjectiveName
from salun_diffusers.diffusion.fitting import _for_training
from salun_diffusers.diffusion.foreseen import at_most
from salun_diffusers.diffusion.model_shape import ModelShape
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.settings import resolve, soft_in_words
from salun_diffusers.diffusion.sharding import refuse_unshardable
from salun_diffusers.diffusion.soft_masks import MaskChoice, soft_updates
from salun_diffusers.diffusion.stage_marks import Sources, stage_marks
from salun_diffusers.errors import UserError
from salun_diffusers.masks.inclusion import Inclusion
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.saliency import Saliency
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.programs.erase import main
from salun_diffusers.seeds import stream

SOFT = {
    "proximal": {"soft_threshold": "proximal", "soft_share": 0.9},
    "official": {"soft_threshold": "proximal", "soft_share": 0.9, "soft_rule": "official"},
    "continuous": {"soft_threshold": "continuous"},
    "step": {"soft_threshold": "probabilistic", "mask_draws": "step"},
}
SCORES = Saliency({"a": torch.tensor([[1.0, 4.0], [0.0, 2.0]]), "b": torch.tensor([3.0, 0.5])})
Trained = Callable[..., tuple[list[dict[str, Any]], dict[str, Tensor]]]


def probabilities(pipeline: Path, folder: Path) -> Inclusion:
    """Random ones for the denoiser of a pipeline, written where a run has them."""
    shapes = ModelShape.of(pipeline).denoiser_shapes()
    generator = torch.Generator().manual_seed(2)
    made = Inclusion({name: torch.rand(shape, generator=generator).half() for name, shape in shapes.items()}, {})
    folder.mkdir(parents=True, exist_ok=True)
    made.save(folder / "inclusion.safetensors")
    return made


class TestChoice:
    """From scores to a mask."""

    def test_hard(self) -> None:
        choice = MaskChoice(tiny_settings())
        assert choice.of(SCORES, {}) == SaliencyMask.from_saliency(SCORES, 0.5)
        assert choice.save(SimpleNamespace()) == ()  # type: ignore[arg-type]

    def test_drawn_once(self) -> None:
        """By the run's seed, anew for every concept; the recipe says how."""
        choice = MaskChoice(tiny_settings(soft_threshold="probabilistic", mask_temperature=0.5))
        made = Inclusion.from_saliency(SCORES, 0.5, 0.5)
        first, second = choice.of(SCORES, {"concept": "star"}), choice.of(SCORES, {})
        assert first == made.draw(stream(7, "mask draw", 1)) and second == made.draw(stream(7, "mask draw", 2))
        assert choice.save(SimpleNamespace()) == ()  # type: ignore[arg-type]
        assert first.recipe["kind"] == "drawn" and first.recipe["concept"] == "star"
        assert first.recipe["temperature"] == 0.5 and first.recipe["expected_density"] == pytest.approx(0.5, abs=1e-3)

    @pytest.mark.parametrize("kind", ["continuous", "step"])
    def test_every_weight_with_a_score_may_move(self, kind: str, tmp_path: Path) -> None:
        """The mask is what has any probability; of two concepts the file has that of being in a draw of either."""
        choice = MaskChoice(tiny_settings(**SOFT[kind]))
        assert choice.of(SCORES, {})["a"].tolist() == [[True, True], [False, True]]
        other = Saliency({name: tensor.flip(0) for name, tensor in SCORES.items()})
        choice.of(other, {})
        with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
            [file] = choice.save(run_in(tmp_path, accelerator))
        read = Inclusion.load(file)
        expected = reduce(or_, [Inclusion.from_saliency(one, 0.5, 0.25) for one in (SCORES, other)])
        assert file.name == "inclusion.safetensors" and all(torch.equal(read[name], expected[name]) for name in read)

    def test_all_weights_are_all_weights(self) -> None:
        assert MaskChoice(tiny_settings(**SOFT["continuous"], mask_ratio=1.0)).of(SCORES, {}).density == 1


class TestTraining:
    @pytest.mark.parametrize("kind", SOFT)
    def test_resumed_it_ends_with_the_same_bits(
        self, kind: str, trained: Trained, tiny_pipeline: Path, tmp_path: Path
    ) -> None:
        """Changes go on being measured from the base, and draws are those of the steps."""
        folder = tmp_path / "run"
        probabilities(tiny_pipeline, folder)
        common = {"learning_rate": 1e-3, "max_train_steps": 5, "checkpointing_steps": 3, "adam_weight_decay": 0.1}
        history, whole = trained(folder, **common, **SOFT[kind])
        again, resumed = trained(folder, folder / "checkpoint-3", **common, **SOFT[kind])
        assert again == history and all(torch.equal(resumed[name], whole[name]) for name in whole)
        _, hard = trained(**common)
        assert any(not torch.equal(hard[name], whole[name]) for name in whole)

    @pytest.mark.parametrize(
        ("kind", "objective"),
        [*(("official", name) for name in get_args(ObjectiveName)), ("step", "relabel"), ("step", "esd")],
    )
    def test_frozen_weights_stay_to_the_bit_and_so_do_some_of_the_others(
        self, kind: str, objective: str, trained: Trained, tiny_pipeline: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """Also under weight decay. The official share is 0.9 · 4/5 of all weights then, half of which are frozen."""
        monkeypatch.setattr(ModelShape, "weights_beside", lambda _: 0)
        probabilities(tiny_pipeline, tmp_path)
        base = dict(StableDiffusionPipeline.from_pretrained(tiny_pipeline).unet.named_parameters())
        steps = {"max_train_steps": 1, "learning_rate": 1e-3, "adam_weight_decay": 0.1, "objective": objective}
        steps |= {"recipe": "paper"} if objective == "relabel" else {}
        _, after = trained(tmp_path, **steps, **SOFT[kind])
        mask = SaliencyMask.random(base, 0.5, torch.Generator().manual_seed(1))
        selected = moved = 0
        for name, weights in base.items():
            changed = weights.detach() != after[name]
            assert not (changed & ~mask[name]).any()
            selected, moved = selected + int(mask[name].sum()), moved + int(changed.sum())
        # 0.72 - 0.5 of all that can move, or all but half of them: some got no gradient besides.
        assert 0.4 * selected < moved < 0.6 * selected

    def test_every_step_is_told_once_and_surrounded(self, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[object] = []
        recorder = SimpleNamespace(
            begin=lambda step, done: told.append((step, done)),
            before=lambda: told.append("before"),
            after=lambda: told.append("after"),
        )
        monkeypatch.setattr(trainer, "soft_updates", lambda *_: recorder)
        trained(max_train_steps=4, gradient_accumulation_steps=2)
        assert told == [one for n in range(1, 5) for one in ((n, n / 4), "before", "after")]


class TestShares:
    """Which share a proximal run takes back after which step, and of what."""

    @pytest.fixture
    def made(self, tiny_pipeline: Path, tmp_path: Path) -> Callable[..., Any]:
        def make(**changes: object) -> Any:
            from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion

            family = StableDiffusion(tiny_pipeline, device=torch.device("cpu"))
            parameters = dict(family.denoiser.named_parameters())
            mask = SaliencyMask.random(parameters, 0.5, torch.Generator().manual_seed(1))
            data = SimpleNamespace(forget=[0] * 5, anchor=[0] * 2, retain=[0] * 9)
            with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
                selected, run = SelectedWeights(parameters, mask), run_in(tmp_path, accelerator)
                settings = tiny_settings(soft_threshold="proximal", **changes)
                return soft_updates(run, family, selected, data, settings, 8), selected  # type: ignore[arg-type]

        return make

    def test_exact(self, made: Callable[..., Any]) -> None:
        updates, _ = made(soft_share=0.4)
        assert [updates._share(step, step / 8) for step in (2, 4, 8)] == pytest.approx([0.3, 0.2, 0])
        assert updates._others == 0

    def test_official(self, made: Callable[..., Any], tiny_pipeline: Path) -> None:
        """7 forget and 9 retain latents in batches of 2 are 4 and 5: 8 steps are 2 epochs that count 9 each."""
        updates, selected = made(soft_share=0.9, soft_rule="official")
        assert [updates._share(step, 0.0) for step in (1, 4, 5, 8)] == pytest.approx(
            [0.9 * (1 - s / 18) for s in (1, 4, 10, 13)]
        )
        pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
        networks = (pipe.unet, pipe.vae, pipe.text_encoder)
        everything = sum(weight.numel() for network in networks for weight in network.parameters())
        assert updates._others == everything - selected.number_selected


class TestErasure:
    def test_is_verified_and_goes_on_from_its_file(
        self, small_run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The receipt holds, and the file of probabilities is part of the stage: where it is gone it is made anew."""
        flags = {"output_dir": tmp_path / "run", **SOFT["continuous"], "mask_ratio": 0.1, "checkpointing_steps": 2}
        assert main(small_run(**flags)) == 0
        run = tmp_path / "run"
        report = json.loads((run / "report.json").read_text())
        mask = SaliencyMask.load(run / "mask.safetensors")
        assert mask.recipe["kind"] == "support" and mask.recipe["expected_density"] == pytest.approx(0.1, abs=1e-3)
        assert mask == Inclusion.load(run / "inclusion.safetensors").support() and 0.1 < mask.density <= 1
        assert report["receipt"]["violations"] == 0 and 0.1 < report["receipt"]["moved_share"] <= mask.density
        unet = (run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        (run / "inclusion.safetensors").unlink()
        shutil.rmtree(run / "pipeline")
        capsys.readouterr()
        assert main(small_run(**flags, resume_from_checkpoint="latest")) == 0
        assert "saliency" in capsys.readouterr().err
        assert (run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == unet


def test_chance_has_one_probability_for_all(small_run: Callable[..., list[str]], tmp_path: Path) -> None:
    """--mask random: every weight is drawn as often in every step, the control of what scores are worth."""
    flags = {"mask": "random", "mask_ratio": 0.25, "max_train_steps": 1, **SOFT["step"]}
    assert main(small_run(output_dir=tmp_path / "run", **flags)) == 0
    inclusion = Inclusion.load(tmp_path / "run" / "inclusion.safetensors")
    assert {float(p) for tensor in inclusion.values() for p in tensor.unique()} == {0.25}
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["mask"]["density"] == 1 and report["receipt"]["moved_share"] == pytest.approx(0.25, abs=0.03)


@pytest.mark.slow  # 15 to 30 s, most of it two imports of torch and diffusers at once.
@pytest.mark.parametrize("kind", ["proximal", "step", "continuous"])
def test_two_processes_end_with_the_weights_of_one(
    kind: str, small_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Each takes the same draws and finds the same threshold; sums of two numbers have no order."""
    (tmp_path / "erase.py").write_text(
        "import sys\nfrom salun_diffusers.programs.erase import main\nsys.exit(main())\n"
    )
    flags = {"saliency_micro_batch_size": 1, **SOFT[kind]}
    run_two(tmp_path / "erase.py", *small_run(output_dir=tmp_path / "two", **flags))
    assert main(small_run(output_dir=tmp_path / "one", gradient_accumulation_steps=2, **flags)) == 0
    weights = "pipeline/unet/diffusion_pytorch_model.safetensors"
    two, one = (load_file(tmp_path / run / weights) for run in ("two", "one"))
    far = sum(int(((tensor - one[name]).abs() > 1e-4).sum()) for name, tensor in two.items())
    assert far < 1e-2 * SaliencyMask.load(tmp_path / "one" / "mask.safetensors").number_selected
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["receipt"]["violations"] == 0


def test_a_stage_depends_on_the_flags_that_it_heeds() -> None:
    """Hard masks have the fingerprints that they had; a flag of another soft threshold changes none."""
    asked = EraseConfig(concept="circle")
    concept = find_concept(asked)
    settings, sources = resolve(asked, concept.numbers), Sources("base", None, (), {}, 1)

    def marks(**changes: object) -> tuple[str, str]:
        made = stage_marks(concept, dataclasses.replace(settings, **changes), sources)  # type: ignore[arg-type]
        return made.mask, made.training

    hard = marks()
    assert marks(soft_share=0.1, mask_temperature=2.0, mask_draws="step", soft_rule="official") == hard
    proximal = [marks(**SOFT["proximal"], **more) for more in ({}, {"soft_rule": "official"}, {"mask_draws": "step"})]
    assert {mask for mask, _ in proximal} == {hard[0]}
    assert proximal[0] == proximal[2] and len({hard[1], *(training for _, training in proximal)}) == 3
    drawn = [
        marks(soft_threshold="probabilistic", **more)
        for more in ({}, {"mask_draws": "step"}, {"mask_temperature": 1.0}, {"soft_share": 0.1})
    ]
    assert len({hard[0], *(mask for mask, _ in drawn)}) == 4 and drawn[0] == drawn[3]


def test_what_may_move_at_most() -> None:
    assert (
        at_most(tiny_settings(**SOFT["step"]), 1).mask_ratio
        == at_most(tiny_settings(**SOFT["continuous"]), 1).mask_ratio
    )
    assert at_most(tiny_settings(**SOFT["step"]), 1).mask_ratio == 1
    assert at_most(tiny_settings(**SOFT["proximal"]), 1).mask_ratio == 0.5
    assert at_most(tiny_settings(soft_threshold="probabilistic"), 1).mask_ratio == 0.5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, ""),
        (SOFT["official"], "proximal, share 0.9 at the start, official"),
        (SOFT["step"], "probabilistic, temperature 0.25, one draw for each step"),
        ({"soft_threshold": "probabilistic"}, "probabilistic, temperature 0.25, drawn once"),
        ({**SOFT["continuous"], "mask_temperature": 2.0}, "continuous, temperature 2"),
    ],
)
def test_the_plan_says_it(flags: dict[str, Any], words: str) -> None:
    assert soft_in_words(tiny_settings(**flags)) == words


def test_a_smaller_ratio_is_no_remedy_where_every_weight_may_move() -> None:
    """Neither in the search for flags that fit, nor in the account of what is selected."""
    ratios = [
        any("mask_ratio" in remedy for remedy in _for_training(tiny_settings(**flags), "no"))
        for flags in ({}, SOFT["proximal"], SOFT["step"], SOFT["continuous"])
    ]
    assert ratios == [True, True, False, False]


@pytest.mark.usefixtures("empty_folder")
class TestRefusals:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ({"soft_share": 0.5}, "--soft_share goes with --soft_threshold proximal, got --soft_threshold none"),
            ({"soft_rule": "exact", **SOFT["continuous"]}, "--soft_rule goes with --soft_threshold proximal"),
            ({"mask_temperature": 1}, "--mask_temperature goes with --soft_threshold probabilistic or continuous"),
            ({"mask_draws": "step", **SOFT["continuous"]}, "--mask_draws goes with --soft_threshold probabilistic"),
            ({"soft_threshold": "proximal", "soft_share": 1.5}, "--soft_share must be"),
            ({"soft_threshold": "continuous", "mask_temperature": 0}, "--mask_temperature must be"),
            ({"soft_threshold": "soft"}, "invalid choice: 'soft'"),
        ],
    )
    def test_flags(self, refused: Callable[..., str], flags: dict[str, object], words: str) -> None:
        refused(words, **flags)

    @pytest.mark.parametrize("kind", ["continuous", "step"])
    def test_masks_without_scores(self, refused: Callable[..., str], kind: str, tmp_path: Path) -> None:
        refused("makes the mask from scores, got --mask full", mask="full", **SOFT[kind])
        SaliencyMask.full({"w": (2,)}).save(tmp_path / "mask.safetensors")
        refused("which has none: use one of saliency", mask=tmp_path / "mask.safetensors", **SOFT[kind])

    @pytest.mark.parametrize("kind", ["proximal", "continuous", "step"])
    def test_shared_out_tensors(self, kind: str) -> None:
        sharded = SimpleNamespace(state=SimpleNamespace(), distributed_type="FSDP")
        from salun_diffusers.diffusion import sharding

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "sharding_plugin", lambda _: object())
            with pytest.raises(UserError, match="looks at whole tensors in every step"):
                refuse_unshardable(sharded, tiny_settings(**SOFT[kind]))  # type: ignore[arg-type]
            refuse_unshardable(sharded, tiny_settings(soft_threshold="probabilistic"))  # type: ignore[arg-type]

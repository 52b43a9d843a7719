"""Soft thresholds of classifiers: every trained method under them, what may move, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from salun_diffusers.arguments import check
from salun_diffusers.classification.classifier import Classifier
from salun_diffusers.classification.config import UnlearnConfig
from salun_diffusers.classification.hyper_parameters import Training
from salun_diffusers.classification.methods import METHODS, default_mask
from salun_diffusers.classification.run import run_unlearning
from salun_diffusers.classification.soft_masks import check_soft, masked
from salun_diffusers.classification.training import Task, hard
from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.soft_updates import HardUpdates, ProximalUpdates

SHORT = Training(epochs=2, learning_rate=0.05, batch_size=8)
QUICK: dict[str, dict[str, int]] = {"l2ul": {"copies": 2, "attack_steps": 3}}
STEPS = ("proximal", "continuous", "step")
Snapshot = Callable[[Classifier], dict[str, Tensor]]


def config(kind: str, **flags: Any) -> UnlearnConfig:
    """The flags of a kind of soft threshold; `step` and `fixed` say how probabilistic masks are drawn."""
    draws = {"step": {"mask_draws": "step"}, "fixed": {"mask_draws": "fixed"}}
    asked = {"soft_threshold": "probabilistic", **draws[kind]} if kind in draws else {"soft_threshold": kind}
    return UnlearnConfig(**{"forget_class": "2", **asked, **flags})


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("name", ["rl", "ft", "ga", "bs", "l1_sparse", "l2ul", "scrub"])
def test_every_method_that_trains(make_task: Callable[..., Task], snapshot: Snapshot, name: str, kind: str) -> None:
    """Weights outside the mask stay to the bit, others move, and not as they would under the mask alone."""
    ends = []
    for soften in (True, False):
        task = make_task()
        mask, softening = masked(config(kind, mask_ratio=0.3), "saliency", task.classifier, task.split.forget)
        task = dataclasses.replace(task, mask=mask, soften=softening if soften else hard)
        before = snapshot(task.classifier)
        METHODS[name](training=SHORT, **QUICK.get(name, {}))(task)
        ends.append(snapshot(task.classifier))
        changed = {key: ends[-1][key] != before[key] for key in before}
        assert not any((changed[key] & ~mask[key]).any() for key in before)
        assert any(flags.any() for flags in changed.values())
    assert any(not torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_masks(make_task: Callable[..., Task]) -> None:
    """Drawn once: a mask of about the ratio and hard updates. By steps: whatever has a score."""
    task = make_task()
    model, forget = task.classifier, task.split.forget
    drawn, soften = masked(config("fixed", mask_ratio=0.3), "magnitude", model, forget)
    assert soften is hard and 0.2 < drawn.density < 0.4 and drawn.recipe["kind"] == "drawn"
    again, _ = masked(config("fixed", mask_ratio=0.3), "magnitude", model, forget)
    other, _ = masked(config("fixed", mask_ratio=0.3, seed=1), "magnitude", model, forget)
    assert again == drawn != other
    for kind in ("continuous", "step"):
        support, soften = masked(config(kind, mask_ratio=0.3), "magnitude", model, forget)
        assert support.density > 0.5 and soften is not hard
    chance, _ = masked(config("step", mask_ratio=0.3), "random", model, forget)
    assert chance == SaliencyMask.full(model.parameters) and chance.recipe["expected_density"] == pytest.approx(
        0.3, 1e-3
    )
    assert masked(config("none"), "full", model, forget)[1] is hard


def test_the_share_falls_from_epoch_to_epoch(make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 36 retained pictures in batches of 8, 5 steps an epoch: 0.6 in the first of three epochs, then 0.3, then 0."""
    task = make_task()
    mask, soften = masked(config("proximal", soft_share=0.6, mask="full"), "full", task.classifier, task.split.forget)
    shares: list[float] = []
    after = ProximalUpdates.after

    def spied(updates: ProximalUpdates) -> None:
        shares.append(updates._share(*updates._now))
        after(updates)

    monkeypatch.setattr(ProximalUpdates, "after", spied)
    three = dataclasses.replace(SHORT, epochs=3)
    METHODS["ft"](training=three)(dataclasses.replace(task, mask=mask, soften=soften))
    assert shares == pytest.approx([0.6] * 5 + [0.3] * 5 + [0.0] * 5)


def test_steps_are_numbered_from_one(make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(HardUpdates, "begin", lambda _, step, done: told.append(step))
    task = dataclasses.replace(make_task(), soften=lambda _: HardUpdates())
    METHODS["ft"](training=SHORT)(task)
    assert told == list(range(1, 11))


def test_a_run(trained: Path, tmp_path: Path) -> None:
    """From the flags to the receipt."""
    flags = {"model": str(trained), "output_dir": str(tmp_path / "run"), "epochs": 2, "learning_rate": 0.02}
    run, report = run_unlearning(config("continuous", mask_temperature=0.5, mask_ratio=0.2, **flags))
    mask = SaliencyMask.load(run.mask)
    assert mask.recipe["temperature"] == 0.5 and mask.recipe["expected_density"] == pytest.approx(0.2, abs=1e-3)
    assert report.receipt.violations == 0 and 0.2 < report.receipt.moved_share <= mask.density


class TestRefusals:
    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            (config("none", soft_share=0.5), "--soft_share has no effect with --soft_threshold none"),
            (config("continuous", mask_draws="step"), "--mask_draws has no effect with --soft_threshold continuous"),
            (
                config("proximal", mask_temperature=1.0),
                "--mask_temperature has no effect with",
            ),
            (
                config("step", mask="full"),
                "makes the mask of scores: --mask must be one of saliency",
            ),
            (config("fixed", mask="mask.safetensors"), "got mask.safetensors"),
            (config("proximal", method="iu"), "--method iu does not train"),
            (config("step", method="ssd", mask="saliency"), "--method ssd does not train"),
            (config("proximal", method="salun_soft"), "has a proximal step of its own"),
            (config("proximal", method="retrain"), "starts from new weights"),
            (config("continuous", method="be", mask="saliency"), "trains a layer that has no scores"),
            (config("proximal", epochs=1), "--epochs must be 2 or more"),
        ],
    )
    def test_before_anything_is_loaded(self, asked: UnlearnConfig, words: str, trained: Path) -> None:
        check(asked)
        with pytest.raises(UserError) as told:
            run_unlearning(dataclasses.replace(asked, model=str(trained)))
        assert words in str(told.value) and "\n" not in str(told.value)

    def test_drawn_once_it_goes_with_every_method(self) -> None:
        for name in METHODS:
            check_soft(config("fixed", method=name, mask="saliency"), "saliency", None)
        assert default_mask("salun") == "saliency"

    def test_too_few_scores(self, make_task: Callable[..., Task]) -> None:
        task = make_task()
        with torch.no_grad():
            for weight in task.classifier.parameters.values():
                weight.zero_()
        with pytest.raises(UserError, match="weights have a score above 0"):
            masked(config("step"), "magnitude", task.classifier, task.split.forget)

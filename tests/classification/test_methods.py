"""Every method under every mask: frozen weights stay, selected ones move; acceptance tests 1, 2, 7 and 11."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from salun_diffusers.classification.batches import Augmentation, in_order
from salun_diffusers.classification.classifier import predict
from salun_diffusers.classification.hyper_parameters import Training
from salun_diffusers.classification.masks import make_mask
from salun_diffusers.classification.methods import METHODS, default_mask
from salun_diffusers.classification.methods.boundary import BoundaryExpanding, BoundaryShrinking
from salun_diffusers.classification.methods.finetune import FineTune, Retrain
from salun_diffusers.classification.methods.l2ul import L2UL
from salun_diffusers.classification.methods.random_label import RandomLabel, SalUnSoft
from salun_diffusers.classification.training import Task, cross_entropy, fit
from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights

SHORT = Training(epochs=2, learning_rate=0.05, batch_size=8)
QUICK = {"l2ul": {"copies": 2, "attack_steps": 3}, "iu": {"samples": 10, "iterations": 3}}


def method(name: str, **settings):
    kind = METHODS[name]
    if "training" in {field.name for field in dataclasses.fields(kind)}:
        settings["training"] = SHORT
    return kind(**QUICK.get(name, {}), **settings)


def learn_all(task: Task, epochs: int) -> None:
    """Train on all pictures but one, those to be forgotten among them."""
    split = dataclasses.replace(task.split, forget_indices=torch.tensor([0]))
    FineTune(Training(epochs=epochs, learning_rate=0.1, batch_size=8))(dataclasses.replace(task, split=split))


@pytest.mark.parametrize("mask", ["saliency", "random", "random_like", "magnitude", "full"])
@pytest.mark.parametrize("name", METHODS)
def test_only_selected_weights_move(make_task, snapshot, name, mask):
    """Acceptance test 1 for whole methods: bit-equal outside the mask, changed within."""
    task = make_task()
    task = dataclasses.replace(task, mask=make_mask(mask, task.classifier, task.split.forget, ratio=0.5))
    before = snapshot(task.classifier)
    settings = {"selection": 0.5} if name == "ssd" else {}
    unlearned = method(name, **settings)(task)
    moved = 0
    for parameter, weight in unlearned.classifier.parameters.items():
        changed = weight.detach() != before[parameter]
        assert not (changed & ~task.mask[parameter]).any(), parameter
        moved += int(changed.sum())
    assert moved > 0


def test_dropout_draws_by_the_seed(make_task, snapshot):
    """Whatever was drawn before, and nobody's numbers are used up."""

    def tuned(seed: int) -> dict[str, torch.Tensor]:
        task = make_task(seed=seed)
        task.classifier.model[3] = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5))
        before = torch.get_rng_state()
        fit(task, SHORT, lambda epoch: in_order(task.split.retain, 8), cross_entropy(task.classifier))
        assert torch.equal(torch.get_rng_state(), before)
        return snapshot(task.classifier)

    first = tuned(0)
    torch.rand(5)
    again, other = tuned(0), tuned(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("inverse", ["official", "diag", "cg"])
def test_influence_unlearning_takes_a_mask(make_task, snapshot, inverse):
    task = make_task()
    before = snapshot(task.classifier)
    method("iu", inverse=inverse)(task)
    for name, weight in task.classifier.parameters.items():
        assert torch.equal((weight.detach() != before[name]) & ~task.mask[name], torch.zeros_like(task.mask[name]))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizers_leave_frozen_weights_bit_equal(make_task, snapshot, optimizer):
    """Acceptance test 1: momentum and weight decay have nothing to act on outside the mask."""
    task = make_task()
    before, selected = snapshot(task.classifier), SelectedWeights(task.classifier.parameters, task.mask)
    kinds = {
        "sgd": lambda: torch.optim.SGD(selected.weights, 0.1, momentum=0.9, weight_decay=0.1),
        "adamw": lambda: torch.optim.AdamW(selected.weights, 0.1, weight_decay=0.1),
    }
    steps = kinds[optimizer]()
    for batch in task.batches(task.split.retain, 8, "test", 0):
        torch.nn.functional.cross_entropy(task.classifier.logits(batch.pixels), batch.labels).backward()
        selected.gather_gradients()
        steps.step()
        steps.zero_grad()
        selected.scatter()
    for name, weight in task.classifier.parameters.items():
        moved = weight.detach() != before[name]
        assert not (moved & ~task.mask[name]).any()
        assert moved[task.mask[name]].float().mean() > 0.9


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_masks_hold_exactly_the_ratio(make_task, tmp_path, ratio):
    """Acceptance test 2: int(p·n) ones, also with ties (batch norm's weights are all 1) and after loading."""
    task = make_task()
    for kind in ("saliency", "random", "random_like", "magnitude"):
        mask = make_mask(kind, task.classifier, task.split.forget, ratio=ratio)
        assert mask.number_selected == int(ratio * mask.number_of_weights)
        mask.save(tmp_path / "mask.safetensors")
        assert SaliencyMask.load(tmp_path / "mask.safetensors").number_selected == mask.number_selected
    with pytest.raises(UserError, match=r"ratio must lie in \(0, 1\]"):
        make_mask("saliency", task.classifier, task.split.forget, ratio=0.0)


def test_random_like_has_the_counts_of_the_saliency_mask(make_task):
    task = make_task()
    salient = make_mask("saliency", task.classifier, task.split.forget, ratio=0.3)
    drawn = make_mask("random_like", task.classifier, task.split.forget, ratio=0.3)
    assert drawn.stats() == salient.stats()
    assert drawn != salient


@pytest.mark.parametrize(("norm_stats", "moved"), [("freeze", False), ("update", True)])
def test_norm_statistics(make_task, norm_stats, moved):
    """Acceptance test 11: buffers are unchanged with ``freeze``; ``update`` moves them under any mask."""
    task = make_task(norm_stats=norm_stats)
    before = {name: buffer.clone() for name, buffer in task.classifier.model.named_buffers()}
    FineTune(SHORT)(task)
    same = all(torch.equal(buffer, before[name]) for name, buffer in task.classifier.model.named_buffers())
    assert same != moved


def test_a_batch_of_one_picture_does_not_break_batch_norm(make_task, pools):
    from salun_diffusers.classification.forget_split import forget_instances

    task = dataclasses.replace(make_task(), split=forget_instances(pools, [5]))
    # Over a map of 4 × 4 one picture has statistics; over a vector it has none.
    task.classifier.model[3] = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(48, affine=False))
    assert len(METHODS["ga"](SHORT)(task).history) == SHORT.epochs


class TestL2UL:
    def test_stops_on_the_first_step_without_a_correct_picture(self, make_task):
        """Acceptance test 7: with a large rate the forget set is lost long before the cap, and training ends there."""
        task = make_task(SaliencyMask.full(make_task().classifier.parameters))
        learn_all(task, epochs=1)
        cap = Training(epochs=50, learning_rate=0.05, batch_size=32)
        done = L2UL(cap, goal="misclassify", adversarial=False, importance=False)(task)
        assert 0 < len(done.history) < 50
        task.classifier.eval()
        logits = task.classifier.logits(task.split.forget.pixels)
        assert not (logits.argmax(1) == task.split.forget.labels).any()

    def test_stops_at_the_cap_otherwise(self, make_task):
        """Acceptance test 7: a rate too small to forget anything runs through all epochs."""
        task = make_task(SaliencyMask.full(make_task().classifier.parameters))
        learn_all(task, epochs=20)
        never = Training(epochs=3, learning_rate=1e-7)
        capped = L2UL(never, goal="misclassify", adversarial=False, importance=False)(task)
        assert len(capped.history) == 3

    def test_relabelling_ends_when_all_have_their_labels(self, make_task):
        task = make_task(SaliencyMask.full(make_task().classifier.parameters))
        cap = Training(epochs=200, learning_rate=0.1, batch_size=32)
        done = L2UL(cap, goal="relabel", adversarial=False, importance=False)(task)
        assert len(done.history) < 200

    def test_weights_of_the_two_terms(self, make_task):
        """w_f = n_f / (n_f + n_adv): 12 forget rows and 24 adversarial ones weigh 1/3 and 2/3."""
        seen = {}
        for weighting in ("batch_size", "sum"):
            one = L2UL(
                Training(epochs=1, learning_rate=1e-12, batch_size=12, momentum=0, weight_decay=0),
                copies=2,
                attack_steps=1,
                adversarial_batch_size=24,
                importance=False,
                goal="misclassify",
                weighting=weighting,
            )
            seen[weighting] = one(make_task()).history[0]["loss"]
        task = make_task()
        made = L2UL(copies=2, attack_steps=1).adversaries(task)
        task.classifier.train()
        forget = task.split.forget
        logits = task.classifier.logits(torch.cat([forget.pixels, made.pixels]))
        of_forget = -torch.nn.functional.cross_entropy(logits[:12], forget.labels).item()
        of_others = torch.nn.functional.cross_entropy(logits[12:], made.labels).item()
        assert seen["sum"] == pytest.approx(of_forget + of_others, abs=1e-5)
        assert seen["batch_size"] == pytest.approx(of_forget / 3 + of_others * 2 / 3, abs=1e-5)


class TestRetrain:
    def test_full_mask_forgets_the_start(self, make_task):
        """Two different starts end at the same weights."""
        ends = []
        for shift in (0.0, 1.0):
            task = make_task(SaliencyMask.full(make_task().classifier.parameters), seed=3)
            with torch.no_grad():
                for weight in task.classifier.parameters.values():
                    weight += shift
            ends.append(Retrain(SHORT)(task).classifier)
        for first, second in zip(ends[0].model.state_dict().values(), ends[1].model.state_dict().values(), strict=True):
            assert torch.equal(first, second)


def test_default_masks():
    assert default_mask("salun") == "saliency"
    assert {default_mask(name) for name in METHODS if name != "salun"} == {"full"}


def test_mixed_order_has_no_retain_weight():
    with pytest.raises(UserError, match="--retain_weight must be 1 with --order mixed, got 2"):
        RandomLabel(order="mixed", retain_weight=2.0)


@pytest.mark.parametrize("order", ["together", "sequential", "mixed"])
@pytest.mark.parametrize("kind", [RandomLabel, SalUnSoft])
def test_orders(make_task, kind, order):
    task = make_task()
    relabel = RandomLabel(SHORT, order=order)
    batches = list(relabel.passes(task, 0))
    assert len(batches) == relabel.steps(task)
    assert len(kind(SHORT, order=order)(task).history) == SHORT.epochs * len(batches)
    # All 36 retained pictures and the 12 others once.
    assert sum(len(batch.labels) for batch in batches) == 36 + 12


@pytest.mark.parametrize("forgotten", [1, 3, 11, 12, 29, 40])
def test_together_goes_exactly_once_through_each_set(make_task, pools, forgotten):
    """Whether the forget set has fewer pictures than the retain set has batches, or many more: each picture once.

    The forget rows of the batches differ by one at most, so that the sets end together.
    """
    from salun_diffusers.classification.forget_split import forget_instances

    task = dataclasses.replace(make_task(), split=forget_instances(pools, range(forgotten)))
    relabel = RandomLabel(SHORT)
    batches = list(relabel.passes(task, 0))
    assert len(batches) == relabel.steps(task) == -(-(48 - forgotten) // 8)
    for rows, data in (
        ([batch.pixels[: batch.forget] for batch in batches], task.split.forget),
        ([batch.pixels[batch.forget :] for batch in batches], task.split.retain),
    ):
        seen = sorted(picture.sum().item() for picture in torch.cat(rows))
        assert seen == sorted(picture.sum().item() for picture in data.pixels)
    counts = [batch.forget for batch in batches]
    assert max(counts) - min(counts) <= 1
    again = list(relabel.passes(dataclasses.replace(task, augmentation=Augmentation(shift=1, flip=True)), 0))
    assert [batch.forget for batch in again] == counts


def test_soft_threshold_ends_with_changes_everywhere(make_task, snapshot):
    """The share taken back falls to 0 at the last step, which changes every weight that it reaches."""
    task = make_task(SaliencyMask.full(make_task().classifier.parameters))
    before = snapshot(task.classifier)
    SalUnSoft(SHORT, frozen_share=0.99)(task)
    moved = sum(int((w.detach() != before[n]).sum()) for n, w in task.classifier.parameters.items())
    assert moved > 0.5 * task.mask.number_of_weights


LAST_STEP = {"iu": {"step": 1e30}, "l1_sparse": {"penalty": 1e30}}


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ssd"}))  # SSD multiplies by at most 1.
def test_divergence_in_the_last_step_is_told(make_task, make_network, name):
    """One step, after which nothing asks for a loss any more: the model would have answered with NaN."""
    settings = {**QUICK.get(name, {}), **LAST_STEP.get(name, {})}
    if name != "iu":
        settings["training"] = Training(epochs=1, learning_rate=1e38, batch_size=64)
    for classifier in (make_network(), make_network(norm=False)):
        task = dataclasses.replace(make_task(), classifier=classifier)
        task = dataclasses.replace(task, mask=SaliencyMask.full(classifier.parameters))
        with pytest.raises(UserError, match=r"NaN or infinity|The loss became") as told:
            METHODS[name](**settings)(task)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["ga", "salun", "bs"])
def test_finite_weights_that_answer_with_infinity(make_task, make_network, name):
    """Convolution and head of 1e28 and more each: both are numbers, and their product is none."""
    classifier = make_network(norm=False)
    task = dataclasses.replace(make_task(), classifier=classifier, mask=SaliencyMask.full(classifier.parameters))
    with pytest.raises(UserError, match="answers 12 of 12 pictures with NaN or infinity"):
        METHODS[name](training=Training(epochs=1, learning_rate=1e30, batch_size=64))(task)
    assert all(weight.isfinite().all() for weight in classifier.parameters.values())


def test_a_damaged_model_is_told_before_anything_is_done(make_task):
    task = make_task()
    with torch.no_grad():
        task.classifier.parameters["0.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="answers 12 of 12 pictures with NaN or infinity"):
        predict(task.classifier, task.split.forget.pixels)


def test_divergence_is_told(make_task):
    with pytest.raises(UserError, match=r"The loss became .* use a lower --learning_rate"):
        METHODS["ga"](Training(epochs=50, learning_rate=1e20))(make_task())


def test_expanding_drops_or_keeps_the_new_class(make_task):
    task = make_task()
    shapes = {name: weight.shape for name, weight in task.classifier.parameters.items()}
    dropped = BoundaryExpanding(SHORT)(task)
    assert dropped.classifier.num_classes == 4
    assert {name: weight.shape for name, weight in dropped.classifier.parameters.items()} == shapes
    kept = BoundaryExpanding(SHORT, keep_output=True)(make_task())
    assert kept.classifier.num_classes == 5
    assert kept.mask["4.weight"].shape == (5, 48)
    assert kept.mask["4.weight"][-1].all() and kept.mask["4.bias"][-1]
    assert kept.classifier.logits(task.split.forget.pixels).shape == (12, 5)


def test_shrinking_never_aims_at_the_truth(make_task):
    """With a step of 0 the adversarial picture is the picture: the nearest class would be the true one."""
    task = make_task()
    forget = task.split.forget
    batch = next(iter(task.batches(forget, 12, "test", 0)))
    task.classifier.eval()
    assert (BoundaryShrinking(fgsm_step=0.1).neighbours(task.classifier, batch) != batch.labels).all()
    allowed = BoundaryShrinking(fgsm_step=1e-9, exclude_true=False).neighbours(task.classifier, batch)
    rounded = (batch.pixels * 255).round() / 255
    assert torch.equal(allowed, task.classifier.logits(rounded).argmax(1))


def test_stop_and_history(make_task):
    task: Task = make_task()
    batches = lambda epoch: task.batches(task.split.retain, 8, "retain", epoch)  # noqa: E731
    history = fit(
        task, SHORT, batches, lambda batch: task.classifier.logits(batch.pixels).square().mean(), stop=lambda: True
    )
    assert [row["step"] for row in history] == [1.0]

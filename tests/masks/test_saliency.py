"""What a saliency is, and that its values are the official ones."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor, nn

from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.saliency import Saliency, gradient_saliency, saliency_ratio


def linear_loss(weight: nn.Parameter):
    """A loss whose gradient with respect to `weight` is the batch itself."""
    return lambda batch: (weight * batch).sum()


class TestSaliency:
    def test_is_an_ordered_mapping_of_float32_scores(self):
        saliency = Saliency({"b": torch.ones(2, 3, dtype=torch.float64), "a": torch.tensor([0.5, 1.5])})
        assert list(saliency) == ["b", "a"]
        assert saliency["b"].dtype == torch.float32
        assert saliency.shapes == {"b": (2, 3), "a": (2,)}
        assert saliency.number_of_weights == 8
        assert repr(saliency) == "Saliency(2 tensors, 8 weights)"

    def test_does_not_copy_what_already_fits(self):
        scores = torch.ones(3)
        assert Saliency({"a": scores})["a"].data_ptr() == scores.data_ptr()

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (math.nan, "saliency of down.1 holds NaN"),
            (math.inf, "saliency of down.1 holds infinite values"),
            (-0.5, r"saliency of down.1 holds negative values \(down to -0.5\)"),
        ],
    )
    def test_refuses_bad_scores_and_names_the_tensor(self, value, words):
        with pytest.raises(UserError, match=words):
            Saliency({"down.0": torch.ones(2), "down.1": torch.tensor([[1.0, value]])})

    def test_refuses_to_be_empty(self):
        with pytest.raises(UserError, match="at least one tensor, got none"):
            Saliency({})


class TestGradientSaliency:
    # The gradients of the two batches below; their sum is [0, 5, -3], the sum of absolute values [2, 5, 5].
    batches = (torch.tensor([1.0, 2.0, -4.0]), torch.tensor([-1.0, 3.0, 1.0]))

    @pytest.mark.parametrize(("accumulate", "expected"), [("signed", [0.0, 5.0, 3.0]), ("absolute", [2.0, 5.0, 5.0])])
    def test_adds_up_over_batches(self, accumulate, expected):
        weight = nn.Parameter(torch.zeros(3))
        saliency = gradient_saliency({"w": weight}, self.batches, linear_loss(weight), accumulate=accumulate)
        assert saliency["w"].tolist() == expected

    def test_clips_each_batch_over_all_parameters_before_adding(self):
        first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        parameters = {"first": first, "second": second}
        # (3, 4) has norm 5 and becomes (0.6, 0.8); (0, 0.5) is short enough to stay.
        saliency = gradient_saliency(
            parameters, [(3.0, 4.0), (0.0, 0.5)], lambda batch: first * batch[0] + second * batch[1], max_grad_norm=1.0
        )
        assert saliency["first"].item() == pytest.approx(0.6, abs=1e-5)
        assert saliency["second"].item() == pytest.approx(1.3, abs=1e-5)

    def test_reduces_the_signed_sum_before_the_absolute_value(self):
        weight = nn.Parameter(torch.zeros(3))
        # Another rank whose sum is [1, -5, -1].
        other = torch.tensor([1.0, -5.0, -1.0])
        saliency = gradient_saliency(
            {"w": weight}, self.batches, linear_loss(weight), reduce=lambda total: total + other
        )
        assert saliency["w"].tolist() == [1.0, 0.0, 4.0]

    def test_reduces_every_tensor_in_order_also_those_without_gradient(self):
        parameters = {name: nn.Parameter(torch.zeros(size)) for name, size in (("c", 3), ("a", 1), ("b", 2))}
        sizes: list[int] = []

        def reduce(total: Tensor) -> Tensor:
            sizes.append(total.numel())
            return total

        gradient_saliency(parameters, [None], lambda _: parameters["a"].sum(), reduce=reduce)
        assert sizes == [3, 1, 2]

    def test_scores_nothing_where_no_gradient_comes_and_says_so(self, caplog):
        used, unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))
        with caplog.at_level(logging.WARNING):
            saliency = gradient_saliency({"used": used, "unused": unused}, [1.0], lambda batch: used * batch)
        assert saliency["unused"].tolist() == [0.0, 0.0]
        assert "1 of 2 tensors got no gradient" in caplog.text
        assert "unused" in caplog.text

    @pytest.mark.parametrize("max_grad_norm", [math.inf, 1.0])
    def test_neither_uses_nor_leaves_gradients_nor_hooks(self, max_grad_norm):
        weight = nn.Parameter(torch.zeros(3))
        weight.grad = torch.full((3,), 100.0)
        loss = linear_loss(weight)
        saliency = gradient_saliency({"w": weight}, [torch.tensor([0.0, 0.5, 0.0])], loss, max_grad_norm=max_grad_norm)
        assert saliency["w"].tolist() == [0.0, 0.5, 0.0]
        assert weight.grad is None
        loss(torch.ones(3)).backward()
        assert weight.grad.tolist() == [1.0, 1.0, 1.0]

    def test_leaves_nothing_behind_when_a_batch_fails(self):
        weight = nn.Parameter(torch.zeros(3))
        with pytest.raises(RuntimeError):
            gradient_saliency({"w": weight}, [torch.ones(3), torch.ones(4)], linear_loss(weight))
        assert weight.grad is None
        linear_loss(weight)(torch.ones(3)).backward()
        assert weight.grad.tolist() == [1.0, 1.0, 1.0]

    def test_sums_low_precision_gradients_in_float32(self):
        weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
        # In bfloat16 256 + 1 is 256: only the wider sum gets to 258.
        batches = [torch.tensor([value], dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0)]
        assert gradient_saliency({"w": weight}, batches, linear_loss(weight))["w"].item() == 258.0

    @pytest.mark.parametrize("max_grad_norm", [math.inf, 1.0, 100.0])
    @pytest.mark.parametrize("accumulate", ["signed", "absolute", "squared"])
    @pytest.mark.parametrize("offload", [False, True])
    def test_of_a_loss_in_parts_is_that_of_the_whole(self, accumulate, max_grad_norm, offload):
        """Also where a batch's gradient is clipped, squared or made absolute: that of all parts together is."""
        first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))
        parameters = {"first": first, "second": second}
        alive = []

        def loss(batch: Tensor) -> Tensor:
            return (first * batch).sum() + second.sum() * batch[0]

        def in_parts(batch: Tensor):
            for number in range(3):
                alive.append([parameter.grad is not None for parameter in parameters.values()])
                yield (first[number] * batch[number]) + (second.sum() * batch[0] if number == 1 else 0)

        how = {"accumulate": accumulate, "max_grad_norm": max_grad_norm, "offload": offload}
        whole = gradient_saliency(parameters, self.batches, loss, **how)
        parts = gradient_saliency(parameters, self.batches, in_parts, **how)
        assert all(torch.equal(parts[name], whole[name]) for name in parameters)
        assert any(map(any, alive)) == (math.isfinite(max_grad_norm) or accumulate != "signed")

    def test_one_part_is_differentiated_before_the_next_is_asked_for(self):
        weight = nn.Parameter(torch.zeros(2))
        seen = []

        def in_parts(batch: Tensor):
            for value in batch:
                graph = weight * value
                graph.register_hook(lambda gradient: seen.append("backward"))
                seen.append("asked")
                yield graph.sum()

        gradient_saliency({"w": weight}, [torch.ones(3)], in_parts)
        assert seen == ["asked", "backward"] * 3

    @pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinite")])
    def test_names_the_tensor_whose_gradient_is_not_finite(self, value, word):
        fine, bad = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        with pytest.raises(UserError, match=f"saliency of mid.bad holds {word}"):
            gradient_saliency({"fine": fine, "mid.bad": bad}, [value], lambda batch: (fine + bad * batch).sum())

    def test_refuses_no_batches_no_parameters_and_unknown_words(self):
        weight = nn.Parameter(torch.zeros(3))
        with pytest.raises(UserError, match="at least one batch"):
            gradient_saliency({"w": weight}, [], linear_loss(weight))
        with pytest.raises(UserError, match="at least one parameter"):
            gradient_saliency({}, self.batches, linear_loss(weight))
        with pytest.raises(UserError, match='must be "signed", "absolute" or "squared", got \'both\''):
            gradient_saliency({"w": weight}, self.batches, linear_loss(weight), accumulate="both")


class TestOfficialRule:
    """The rule of OPTML-Group/Unlearn-Saliency@a6e89fd: the int(r N) largest of |sum of signed batch gradients|."""

    @pytest.fixture
    def net(self) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3)).eval()

    @pytest.fixture
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        # The last batch is smaller, as in the official loaders: it weighs as much as the others.
        return [(torch.randn(size, 1, 6, 6), torch.randint(3, (size,))) for size in (8, 8, 3)]

    @staticmethod
    def mask(net, batches, scale=1.0, ratio=0.5, accumulate="signed") -> SaliencyMask:
        def loss(batch):
            return scale * nn.functional.cross_entropy(net(batch[0]), batch[1])

        saliency = gradient_saliency(dict(net.named_parameters()), batches, loss, accumulate=accumulate)
        return SaliencyMask.from_saliency(saliency, ratio)

    @pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
    def test_mask_is_the_official_one(self, net, batches, ratio):
        # Signed gradients summed per batch, one absolute value, one ranking over biases and norms as well.
        total = torch.zeros(sum(parameter.numel() for parameter in net.parameters()))
        for images, labels in batches:
            net.zero_grad()
            (-nn.functional.cross_entropy(net(images), labels)).backward()
            total += torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
        count = int(ratio * total.numel())
        expected = torch.zeros(total.numel(), dtype=torch.bool)
        expected[total.abs().topk(count).indices] = True

        mask = self.mask(net, batches, ratio=ratio)
        flat = torch.cat([mask[name].flatten() for name, _ in net.named_parameters()])
        assert flat.sum().item() == count
        assert torch.equal(flat, expected)

    def test_sign_and_scale_of_the_loss_do_not_matter(self, net, batches):
        mask = self.mask(net, batches)
        # Powers of two scale floats exactly, so not even a tie can turn out differently.
        assert self.mask(net, batches, scale=-1.0) == mask
        assert self.mask(net, batches, scale=-1024.0) == mask

    def test_differs_from_the_sum_of_absolute_gradients(self, net, batches):
        assert self.mask(net, batches, accumulate="absolute") != self.mask(net, batches)


class TestRatio:
    def test_by_hand(self):
        """R = 1, 5, 0, 2 has the mean 2: 4/3, 4/7, 1/2, 0."""
        forget = Saliency({"a": torch.tensor([[4.0, 4.0]]), "b": torch.tensor([1.0, 0.0])})
        found = saliency_ratio(forget, Saliency({"a": torch.tensor([[1.0, 5.0]]), "b": torch.tensor([0.0, 2.0])}))
        assert list(found) == ["a", "b"]
        torch.testing.assert_close(found["a"], torch.tensor([[4 / 3, 4 / 7]]))
        torch.testing.assert_close(found["b"], torch.tensor([0.5, 0.0]))

    def test_a_factor_of_either_changes_no_rank(self):
        of = [torch.rand(50, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]

        def order(forget: float, retain: float) -> list[int]:
            scores = saliency_ratio(Saliency({"a": forget * of[0]}), Saliency({"a": retain * of[1]}))
            return scores["a"].argsort().tolist()

        assert order(1, 1) == order(1e-6, 1) == order(1, 1e5)

    @pytest.mark.parametrize(
        ("retain", "told"),
        [
            ({"b": torch.ones(2)}, "of the same tensors in the same shapes"),
            ({"a": torch.ones(3)}, "of the same tensors in the same shapes"),
            ({"a": torch.zeros(2)}, "retain scores above 0, all are 0"),
        ],
    )
    def test_is_refused(self, retain, told):
        with pytest.raises(UserError, match=told):
            saliency_ratio(Saliency({"a": torch.ones(2)}), Saliency(retain))

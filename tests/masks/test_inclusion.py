"""Soft masks: probabilities from scores, by hand, and what is drawn of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from salun_diffusers.errors import UserError
from salun_diffusers.files.whole_files import check_whole
from salun_diffusers.masks.inclusion import Inclusion, drawn
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.saliency import Saliency
from salun_diffusers.seeds import stream


def scores(**values: list[float]) -> Saliency:
    return Saliency({name: torch.tensor(value) for name, value in values.items()})


class TestProbabilities:
    def test_by_hand(self) -> None:
        """p = 1/(1 + c/s) at T = 1. Of scores 1 and 4 half: 1/(1+c) + 4/(4+c) = 1 gives c = 2, p = 1/3 and 2/3."""
        found = Inclusion.from_saliency(scores(a=[1.0], b=[4.0]), 0.5, 1.0)
        assert found["a"].item() == pytest.approx(1 / 3, rel=1e-3)
        assert found["b"].item() == pytest.approx(2 / 3, rel=1e-3)

    def test_temperature_by_hand(self) -> None:
        """At T = 1/2: (c/s)² with the same c = 2, p = 1/(1+4) and 1/(1+1/4)."""
        found = Inclusion.from_saliency(scores(a=[1.0, 4.0]), 0.5, 0.5)["a"]
        assert found.tolist() == pytest.approx([0.2, 0.8], rel=1e-3)

    def test_a_weight_without_a_score_never_moves(self) -> None:
        found = Inclusion.from_saliency(scores(a=[0.0, 1.0, 4.0]), 1 / 3, 1.0)
        assert found["a"].tolist() == pytest.approx([0, 1 / 3, 2 / 3], rel=1e-3) and found["a"][0] == 0
        assert found.support()["a"].tolist() == [False, True, True]

    @pytest.mark.parametrize("scope", ["global", "per_tensor"])
    @pytest.mark.parametrize("temperature", [0.01, 0.25, 2.0, 100.0])
    def test_the_expected_density_is_the_ratio(self, scope: str, temperature: float) -> None:
        generator = torch.Generator().manual_seed(0)
        saliency = Saliency(
            {"w": torch.rand(80, 50, generator=generator) ** 4, "v": torch.rand(500, generator=generator)}
        )
        found = Inclusion.from_saliency(saliency, 0.3, temperature, scope)  # type: ignore[arg-type]
        assert found.density == pytest.approx(0.3, abs=1e-4)
        if scope == "per_tensor":
            assert float(found["v"].double().mean()) == pytest.approx(0.3, abs=1e-4)

    def test_cold_is_the_hard_mask_and_hot_is_chance(self) -> None:
        saliency = scores(w=[0.1 * (1.5**n) for n in range(20)])
        cold = Inclusion.from_saliency(saliency, 0.5, 0.01)
        assert cold.draw(stream(0)) == SaliencyMask.from_saliency(saliency, 0.5)
        hot = Inclusion.from_saliency(saliency, 0.5, 100.0)
        assert hot["w"].tolist() == pytest.approx([0.5] * 20, abs=0.02)

    def test_scores_of_another_scale_give_the_same(self) -> None:
        values = [0.3, 1.7, 2.0, 9.0]
        one, other = (Inclusion.from_saliency(scores(w=[f * v for v in values]), 0.5, 0.5)["w"] for f in (1.0, 1024.0))
        assert one.tolist() == pytest.approx(other.tolist(), rel=2e-3)

    def test_too_few_scores(self) -> None:
        with pytest.raises(UserError, match=r"Only 1 of 4 weights have a score above 0, a ratio of 0.5 needs more"):
            Inclusion.from_saliency(scores(w=[0.0, 0.0, 0.0, 1.0]), 0.5, 1.0)

    def test_two_concepts(self) -> None:
        """1 - (1 - 1/4)(1 - 1/2) = 5/8: as often as a draw of one or of the other holds the weight."""
        one = Inclusion({"w": torch.tensor([0.25, 0.0, 1.0]).half()}, {"concept": "a"})
        other = Inclusion({"w": torch.tensor([0.5, 0.0, 0.5]).half()}, {"concept": "b"})
        assert (one | other)["w"].tolist() == [0.625, 0.0, 1.0]
        assert (one | other).recipe["of"] == [{"concept": "a"}, {"concept": "b"}]

    @pytest.mark.parametrize("wrong", [torch.tensor([1.5]).half(), torch.tensor([float("nan")]).half(), torch.ones(1)])
    def test_refuses_what_is_no_probability(self, wrong: torch.Tensor) -> None:
        with pytest.raises(UserError, match=r"probabilities of w must be float16 in \[0, 1\]"):
            Inclusion({"w": wrong}, {})


class TestDraws:
    def test_as_often_as_the_probabilities_say(self) -> None:
        """20,000 draws of each: within five standard deviations of p."""
        found = Inclusion(
            {"w": torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).half().repeat_interleave(20_000)}, {"ratio": 0.5}
        )
        mask = found.draw(stream(3))
        shares = mask["w"].view(5, -1).float().mean(1)
        assert shares[0] == 0 and shares[-1] == 1
        assert shares[1:4].tolist() == pytest.approx([0.1, 0.5, 0.9], abs=5 * 0.5 / 20_000**0.5)
        assert mask.recipe["kind"] == "drawn" and mask.recipe["expected_density"] == pytest.approx(0.5, abs=1e-3)

    def test_depends_on_the_generator_alone(self) -> None:
        found = Inclusion({"w": torch.full((1000,), 0.5).half()}, {})
        torch.manual_seed(0)
        one = found.draw(stream(1, "draw"))
        torch.manual_seed(1)
        assert found.draw(stream(1, "draw")) == one != found.draw(stream(2, "draw"))
        assert drawn(found["w"], stream(1, "draw")).float().mean() == pytest.approx(0.5, abs=0.1)


class TestFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        made = Inclusion.from_saliency(scores(b=[1.0, 2.0, 3.0, 5.0], a=[0.5]), 0.5, 0.5, recipe={"concept": "円"})
        made.save(tmp_path / "inclusion.safetensors")
        return tmp_path / "inclusion.safetensors"

    def test_comes_back(self, file: Path) -> None:
        made = Inclusion.from_saliency(scores(b=[1.0, 2.0, 3.0, 5.0], a=[0.5]), 0.5, 0.5, recipe={"concept": "円"})
        read = Inclusion.load(file)
        assert list(read) == ["b", "a"] and dict(read.recipe) == dict(made.recipe)
        assert all(torch.equal(read[name], made[name]) for name in made)

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda path: path.unlink(), "does not exist"),
            (lambda path: path.write_bytes(path.read_bytes()[:-2]), "truncated or damaged"),
            (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x3c"), "has been altered"),
            (lambda path: SaliencyMask.full({"b": (4,)}).save(path), "no file of inclusion probabilities"),
            (lambda path: _rewrite(path, recipe='{"concept": "dog"}'), "has been altered"),
            (lambda path: _rewrite(path, names='["a"]'), "has been altered"),
            (lambda path: _rewrite(path, recipe="["), "is damaged"),
            (lambda path: _without_type(path), "is damaged|truncated"),
            (lambda path: _rewrite(path, names=""), "is damaged"),
        ],
    )
    def test_anything_else_is_refused_in_one_line(
        self, file: Path, spoil: Callable[[Path], object], words: str
    ) -> None:
        spoil(file)
        with pytest.raises(UserError, match=words) as told:
            Inclusion.load(file)
        assert str(file) in str(told.value) and "\n" not in str(told.value)


def _without_type(path: Path) -> None:
    """A header that is JSON and describes no tensor."""
    path.write_bytes(path.read_bytes().replace(b'"dtype":"F16"', b'"ctype":"F16"', 1))


def _rewrite(path: Path, **changes: str) -> None:
    metadata = {**check_whole(path)["__metadata__"], **changes}
    save_file(load_file(path), path, metadata={name: value for name, value in metadata.items() if value})

"""Vectors in the place of tokens: what the encoders make of them, and the gradient that comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from salun_diffusers import UserError
from salun_diffusers.diffusion.families.ddpm import ClassConditionalDDPM
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from salun_diffusers.red_team.token_space import TokenSpace

CPU = torch.device("cpu")
PROMPT = "a photo of a star"


@pytest.fixture(scope="module", params=["tiny", "sd14", "sdxl"])
def family(request: pytest.FixtureRequest, tiny_pipeline: Path, sd14: Path, sdxl: Path):
    kind = StableDiffusionXL if request.param == "sdxl" else StableDiffusion
    folder = {"tiny": tiny_pipeline, "sd14": sd14, "sdxl": sdxl}[request.param]
    made = kind(folder, device=CPU)
    for part in ("text_encoder", "text_encoder_2"):
        if getattr(made.pipe, part, None) is not None:
            getattr(made.pipe, part).requires_grad_(False)
    return made


def test_words_in_free_places_are_the_prompt(family):
    """“a photo [of] a star” with the free token set to “of” is what the prompt itself is to the encoders."""
    space = TokenSpace(family)
    own = family.tokens(PROMPT).input_ids[0].tolist()
    sentence = space.sentence(["a photo a star"], [2])
    assert sentence.places.tolist() == [[3]]
    found = space.of_ids(sentence, torch.tensor([[own[3]]]))
    expected = family.encode([PROMPT])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_several_words_mean_the_middle_of_their_tokens(family):
    space, own = TokenSpace(family), family.tokens(PROMPT).input_ids[0].tolist()
    for matrix, found in zip(space.matrices, space.meaning("a photo"), strict=True):
        torch.testing.assert_close(found, (matrix[own[1]] + matrix[own[2]]) / 2)


def test_gradients_are_finite_differences(family):
    """Central differences in fp64 along a random direction."""
    space = TokenSpace(family)
    sentence = space.sentence([PROMPT, "red"], [0, 0, 1])
    encoders = [getattr(family.pipe, f"text_encoder{suffix}").double() for suffix in family.encoders]
    generator = torch.Generator().manual_seed(0)
    vectors = [
        torch.randn(2, 3, matrix.shape[1], generator=generator, dtype=torch.float64) for matrix in space.matrices
    ]
    way = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in vectors]
    probe: dict[str, torch.Tensor] = {}

    def value(at):
        """A fixed linear reading of all conditions; fp32 casts are undone by a step that they can resolve."""
        states = space.conditions(sentence, at)
        for name, tensor in states.items():
            probe.setdefault(name, torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        return sum((probe[name] * tensor.double()).sum() for name, tensor in states.items())

    leaves = [tensor.clone().requires_grad_() for tensor in vectors]
    step = 1e-3
    moved = [[tensor + sign * step * along for tensor, along in zip(vectors, way, strict=True)] for sign in (1, -1)]
    try:
        torch.set_default_dtype(torch.float64)  # transformers 4.56 fills its causal mask by the default.
        gradient = torch.autograd.grad(value(leaves), leaves)
        measured = float(value(moved[0]) - value(moved[1])) / (2 * step)
    finally:
        torch.set_default_dtype(torch.float32)
        for encoder in encoders:
            encoder.float()
    slope = float(sum((one * other).sum() for one, other in zip(gradient, way, strict=True)))
    assert abs(slope) > 1e-3
    assert measured == pytest.approx(slope, rel=2e-2)


def test_the_hook_is_gone_afterwards(family):
    space = TokenSpace(family)
    before = family.encode([PROMPT])
    space.of_ids(space.sentence([PROMPT], [0]), torch.tensor([[int(space.words[5])]]))
    for name, tensor in family.encode([PROMPT]).items():
        assert torch.equal(tensor, before[name])


def test_free_places_stand_where_they_were_asked_for(family):
    space = TokenSpace(family)
    own = family.tokens(PROMPT).input_ids[0].tolist()
    end = own.index(family.pipe.tokenizer.eos_token_id, 1)
    sentence = space.sentence([PROMPT], [0, 3, 99])
    ids, places = sentence.ids[0][0].tolist(), sentence.places[0].tolist()
    assert places == [1, 5, end + 2]
    left = [token for place, token in enumerate(ids) if place not in places]
    assert left[: end + 1] == own[: end + 1]
    assert len(ids) == space.limit


def test_a_long_prompt_gives_way(family):
    space = TokenSpace(family)
    sentence = space.sentence([" ".join(["star"] * 200)], [0] * 5)
    assert sentence.ids[0].shape == (1, space.limit)
    assert int(sentence.ids[0][0, -1]) == family.pipe.tokenizer.eos_token_id
    assert sentence.places.tolist() == [[1, 2, 3, 4, 5]]


def test_too_many_free_places_are_refused(family):
    space = TokenSpace(family)
    with pytest.raises(UserError, match="too many"):
        space.sentence([PROMPT], [0] * (space.limit - 1))


def test_the_nearest_word_of_a_word_is_itself(family):
    space = TokenSpace(family)
    ids = space.words[[3, 50, 200]]
    for number, matrix in enumerate(space.matrices):
        assert torch.equal(space.nearest(2.5 * matrix[ids], number), ids)
    assert not space.special & set(space.words.tolist())


def test_a_family_without_words_is_refused(tiny_ddpm):
    with pytest.raises(UserError, match="text encoder is required"):
        TokenSpace(ClassConditionalDDPM(tiny_ddpm, device=CPU))

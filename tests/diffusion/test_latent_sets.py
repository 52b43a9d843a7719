"""Latent sets depend on prompts and seeds, not on processes or interruptions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_settings

from salun_diffusers.accelerator import ALONE, Processes
from salun_diffusers.diffusion.latent_cache import kept_in
from salun_diffusers.diffusion.latent_sets import LatentSet, generate_latents
from salun_diffusers.diffusion.sampler import Sampler
from salun_diffusers.files import stored_weights
from salun_diffusers.seeds import stream_seed

PROMPTS = ("a star", "a square", "a heart")


class Painter:
    """Draws noise of the item's seed, shifted by the length of its prompt; counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def generate(self, prompts, seeds, *, num_inference_steps, guidance_scale):
        self.asked += zip(prompts, seeds, strict=True)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = [torch.randn(4, 2, 2, generator=generator) for generator in generators]
        return torch.stack([one + len(prompt) for one, prompt in zip(drawn, prompts, strict=True)])


def latent(path: Path) -> torch.Tensor:
    return load_file(path)["latent"]


def generate(painter: Painter, kept: Path, processes: Processes = ALONE, **changes: object) -> LatentSet:
    settings = tiny_settings(
        seed=5, num_inference_steps=2, guidance_scale=1.0, **{"generation_batch_size": 2} | changes
    )
    accelerator = SimpleNamespace(mixed_precision="no", is_main_process=True, device=torch.device("cpu"))
    run = SimpleNamespace(accelerator=accelerator, main=False, processes=processes)
    return generate_latents(Sampler(painter, settings, run, kept, "base"), PROMPTS, 7, "forget")


def test_survives_a_file(tmp_path):
    original = generate(Painter(), tmp_path / "drawn")
    original.save(tmp_path / "set.safetensors")
    loaded = LatentSet.load(tmp_path / "set.safetensors")
    assert torch.equal(loaded.latents, original.latents)
    assert torch.equal(loaded.prompt_index, original.prompt_index)
    assert loaded.prompts == PROMPTS
    assert len(loaded) == 7


def test_items_go_round_the_prompts_with_a_seed_each(tmp_path):
    painter = Painter()
    result = generate(painter, tmp_path)
    assert result.prompt_index.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert painter.asked == [(PROMPTS[i % 3], stream_seed(5, "forget", i)) for i in range(7)]
    assert len({seed for _, seed in painter.asked}) == 7


def test_kept_latents_are_not_drawn_again(tmp_path):
    """A batch that lacks one is drawn whole, one that lacks none is not; another guidance, seed or base is drawn."""
    painter = Painter()
    look_first = kept_in(tmp_path / "kept", painter.generate, base="one")
    how = {"num_inference_steps": 2, "guidance_scale": 1.0}
    first = look_first(["a star", "a square"], [1, 2], **how)
    both = look_first(["a heart", "a star", "a square"], [3, 1, 2], **how)
    assert painter.asked == [("a star", 1), ("a square", 2), ("a heart", 3), ("a star", 1), ("a square", 2)]
    look_first(["a square", "a heart"], [2, 3], **how)
    assert torch.equal(both, Painter().generate(["a heart", "a star", "a square"], [3, 1, 2], **how))
    assert torch.equal(both[1:], first)
    look_first(["a star"], [1], **(how | {"guidance_scale": 2.0}))
    look_first(["a star"], [2], **how)
    kept_in(tmp_path / "kept", painter.generate, base="two")(["a star"], [1], **how)
    assert len(painter.asked) == 5 + 3


def test_a_damaged_latent_is_drawn_again(tmp_path):
    painter = Painter()
    look_first = kept_in(tmp_path, painter.generate, base="one")
    how = {"num_inference_steps": 2, "guidance_scale": 1.0}
    first = look_first(["a star"], [1], **how)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    assert torch.equal(look_first(["a star"], [1], **how), first)
    assert len(painter.asked) == 2


def test_seed_streams_are_told_apart():
    seeds = {stream_seed(0, "forget", 1), stream_seed(1, "forget", 1), stream_seed(0, "retain", 1), stream_seed(0)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("change", [{"generation_batch_size": 3}, {"generation_batch_size": 100}])
def test_batch_size_does_not_matter(tmp_path, change):
    expected = generate(Painter(), tmp_path / "a")
    assert torch.equal(generate(Painter(), tmp_path / "b", **change).latents, expected.latents)


def test_two_processes_make_the_set_of_one(tmp_path):
    """Four batches of 2, 2, 2, 1: rank 0 draws the first and third, rank 1 the others."""
    expected = generate(Painter(), tmp_path / "one")
    first, second = Painter(), Painter()
    results = []

    def other_process() -> None:  # Runs to its end while the first one waits at the barrier.
        results.append(generate(second, tmp_path / "two", Processes(1, 2)))

    results.append(generate(first, tmp_path / "two", Processes(0, 2, other_process)))
    assert [len(first.asked), len(second.asked)] == [4, 3]
    assert all(torch.equal(result.latents, expected.latents) for result in results)


def test_finished_batches_are_taken_up(tmp_path):
    expected = generate(Painter(), tmp_path)
    lost = next(path for path in tmp_path.rglob("*.safetensors") if torch.equal(latent(path), expected.latents[3]))
    lost.unlink()
    painter = Painter()
    assert torch.equal(generate(painter, tmp_path).latents, expected.latents)
    assert [seed for _, seed in painter.asked] == [stream_seed(5, "forget", 2), stream_seed(5, "forget", 3)]


def test_a_half_written_batch_is_drawn_again(tmp_path, monkeypatch):
    expected = generate(Painter(), tmp_path / "whole")

    def interrupted(tensors, path, **_):
        Path(path).write_bytes(b"half of a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stored_weights, "save_file", interrupted)
        generate(Painter(), tmp_path / "cut")
    assert torch.equal(generate(Painter(), tmp_path / "cut").latents, expected.latents)


def test_anchor_latents_stand_in_for_forget_latents() -> None:
    """Row i of both sets' prompts is one pair: the sum keeps the rows, this set first."""
    forget = LatentSet(torch.zeros(2, 1, 1, 1), torch.tensor([0, 1]), ("a disc", "a red disc"))
    anchor = LatentSet(torch.ones(2, 1, 1, 1), torch.tensor([1, 0]), ("a box", "a red box"))
    both = forget + anchor
    assert both.latents.flatten().tolist() == [0, 0, 1, 1]
    assert both.prompt_index.tolist() == [0, 1, 1, 0]
    assert (forget + LatentSet.empty(("a box", "a red box"))).latents is forget.latents


def test_prompts_that_stand_more_than_once_are_one_row() -> None:
    latents = torch.arange(4.0).view(4, 1, 1, 1)
    drawn = LatentSet(latents, torch.tensor([0, 1, 2, 3]), ("a dog", "a cup", "a dog", "a car")).distinct()
    assert drawn.prompts == ("a dog", "a cup", "a car")
    assert drawn.prompt_index.tolist() == [0, 1, 0, 2]
    assert torch.equal(drawn.latents, latents)

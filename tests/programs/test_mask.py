"""`salun mask`: look at masks, compare and combine them; what goes wrong is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs.erase import main as erase
from salun_diffusers.programs.mask import main

SHAPES = {"conv_in.weight": (8, 4, 3, 3), "mid_block.attentions.0.to_q.weight": (20, 20), "conv_out.bias": (7,)}


def made(path: Path, seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES, base: str = "a") -> str:
    """A random mask in a file."""
    recipe = {"concept": f"concept {seed}", "base": "demo", "base_sha256": base * 64, "train_method": "full"}
    SaliencyMask.random(shapes, 0.5, torch.Generator().manual_seed(seed), recipe=recipe).save(path)
    return str(path)


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    return made(tmp_path / "one.safetensors", 1), made(tmp_path / "two.safetensors", 2)


def test_info(two: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["info", two[0], "--output", str(tmp_path / "info.json")]) == 0
    out = capsys.readouterr().out
    mask = SaliencyMask.load(two[0])
    assert "random of 'concept 1'" in out and f"base      demo, sha256 {'a' * 64}" in out and mask.sha256 in out
    assert f"347 of 695 weights ({347 / 695:.2%}) in 3 tensors" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line and line.split()[-1].isdigit()}
    density = mask["mid_block.attentions.0.to_q.weight"].float().mean().item()
    assert rows["mid_block"] == [f"{density:.1%}", f"{density:.1%}", "400"]
    assert rows["all"][-2:] == [f"{347 / 695:.1%}", "695"]
    told = json.loads((tmp_path / "info.json").read_text())
    assert told["recipe"] == dict(mask.recipe) and sum(cell["selected"] for cell in told["cells"]) == 347


def test_compare(two: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["compare", *two, "--output", str(tmp_path / "c.json")]) == 0
    out = capsys.readouterr().out
    one, other = map(SaliencyMask.load, two)
    both, told = (one & other).number_selected, json.loads((tmp_path / "c.json").read_text())
    assert told["both"] == both and told["jaccard"] == one.overlap(other)
    assert told["either"] == (one | other).number_selected
    chance = sum(a.selected * b.selected / a.size for a, b in zip(one.stats(), other.stats(), strict=True))
    assert told["both_by_chance"] == pytest.approx(chance) and told["lift"] == pytest.approx(both / chance)
    assert f"lift {both / chance:.3f}" in out and f"Jaccard       {one.overlap(other):.4f}; by chance" in out
    assert [row["block"] for row in told["blocks"]] == ["conv_in", "mid_block", "conv_out"]


@pytest.mark.parametrize("given", ["map", "map.png", "map.svg", "map.v2"])
def test_plot_writes_both_kinds(two: tuple[str, str], tmp_path: Path, given: str) -> None:
    assert main(["plot", two[0], "--output", str(tmp_path / given)]) == 0
    stem = "map.v2" if given == "map.v2" else "map"
    with Image.open(tmp_path / f"{stem}.png") as picture:
        assert picture.width > 400
    assert "mid_block" in (tmp_path / f"{stem}.svg").read_text(encoding="utf-8")


def test_operators_on_files(two: tuple[str, str], tmp_path: Path) -> None:
    one, other = map(SaliencyMask.load, two)
    third = made(tmp_path / "three.safetensors", 3)
    for action, files, expected in (
        ("union", [*two, third], one | other | SaliencyMask.load(third)),
        ("intersect", two, one & other),
        ("invert", two[:1], ~one),
    ):
        output = tmp_path / f"{action}.safetensors"
        assert main([action, *files, "--output", str(output)]) == 0
        assert SaliencyMask.load(output) == expected and SaliencyMask.load(output).recipe == expected.recipe


def test_an_erasure_takes_the_union(
    small_run: Callable[..., list[str]], tmp_path: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two concepts' masks, and of no other model's; the run's mask has exactly its bits."""
    from diffusers import UNet2DConditionModel

    net = UNet2DConditionModel.from_pretrained(tiny_pipeline / "unet")
    shapes = {name: tuple(weight.shape) for name, weight in net.named_parameters()}
    files = [made(tmp_path / f"{seed}.safetensors", seed, shapes) for seed in (1, 2)]
    assert main(["union", *files, "--output", str(tmp_path / "union.safetensors")]) == 0
    flags = {"mask": tmp_path / "union.safetensors", "output_dir": tmp_path / "run", "max_train_steps": 1}
    assert erase(small_run(**flags)) == 0
    used = SaliencyMask.load(tmp_path / "run" / "mask.safetensors")
    assert used == SaliencyMask.load(tmp_path / "union.safetensors")
    assert 0.7 < used.density < 0.8, "about 1 - 0.5²"


class TestRefusals:
    """One line, exit code 2, and nothing written."""

    @pytest.fixture
    def refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], two: tuple[str, str]) -> Callable[..., str]:
        def attempt(*words: object) -> str:
            before = sorted(tmp_path.iterdir())
            capsys.readouterr()
            assert main(list(map(str, words))) == 2
            captured = capsys.readouterr()
            assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and captured.out == ""
            assert sorted(tmp_path.iterdir()) == before
            return captured.err

        return attempt

    def test_numbers_of_files(self, refused: Callable[..., str], two: tuple[str, str]) -> None:
        assert "info takes exactly 1 mask file(s), got 2" in refused("info", *two)
        assert "compare takes exactly 2 mask file(s), got 1" in refused("compare", two[0])
        assert "union takes 2 or more mask file(s), got 1" in refused("union", two[0], "--output", "x")
        assert "required: FILES" in refused("info")
        assert "invalid choice: 'xor'" in refused("xor", *two)

    @pytest.mark.parametrize("action", ["plot", "union", "intersect", "invert"])
    def test_no_output(self, refused: Callable[..., str], two: tuple[str, str], action: str) -> None:
        files = two if action in ("union", "intersect") else two[:1]
        assert f"mask {action} needs --output" in refused(action, *files)

    def test_nothing_is_overwritten(self, refused: Callable[..., str], two: tuple[str, str], tmp_path: Path) -> None:
        assert "exists already" in refused("union", *two, "--output", two[0])
        (tmp_path / "map.svg").touch()
        assert "map.svg exists already" in refused("plot", two[0], "--output", tmp_path / "map.png")
        assert "--output's folder must be" in refused("plot", two[0], "--output", f"{two[1]}/map")

    @pytest.mark.parametrize("action", ["compare", "union", "intersect"])
    def test_another_model(
        self, refused: Callable[..., str], two: tuple[str, str], tmp_path: Path, action: str
    ) -> None:
        shape = made(tmp_path / "shape.safetensors", 3, {**SHAPES, "conv_out.bias": (8,)})
        fewer = made(tmp_path / "fewer.safetensors", 3, {"conv_in.weight": (8, 4, 3, 3)})
        base = made(tmp_path / "base.safetensors", 3, base="b")
        output = () if action == "compare" else ("--output", tmp_path / "new")
        assert "conv_out.bias has shape (7,) in the first mask" in refused(action, two[0], shape, *output)
        assert "found no such tensor" in refused(action, two[0], fewer, *output)
        assert "masks of one base model are required" in refused(action, two[0], base, *output)

    def test_what_is_no_mask(self, refused: Callable[..., str], two: tuple[str, str], tmp_path: Path) -> None:
        assert "found no file" in refused("info", tmp_path / "none")
        (tmp_path / "short").write_bytes(Path(two[0]).read_bytes()[:-9])
        assert "truncated or damaged" in refused("compare", two[0], tmp_path / "short")

    def test_nothing_in_common(self, refused: Callable[..., str], two: tuple[str, str], tmp_path: Path) -> None:
        assert main(["invert", two[0], "--output", str(tmp_path / "not")]) == 0
        told = refused("intersect", two[0], tmp_path / "not", "--output", tmp_path / "none")
        assert "leaves no weight at all" in told

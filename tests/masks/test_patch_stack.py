"""Patches put together, at part strength, and told: what both claim is never settled in silence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import denoiser_folder, model_index
from salun_diffusers.files.stored_weights import bit_patterns, stored_weights, weights_sha256
from salun_diffusers.files.whole_files import check_whole
from salun_diffusers.masks.patch import UNKNOWN, WeightPatch, patch_between, patch_folder
from salun_diffusers.masks.patch_account import account
from salun_diffusers.masks.patch_stack import claimed_by_both, stacked
from salun_diffusers.programs.patch import main

BASE = {"a.0.w": torch.arange(11.0), "a.0.b": torch.ones(2, 2), "c": torch.zeros(3)}


def moved(**values: dict[int, float]) -> dict[str, Tensor]:
    """The base with other values at some places of some tensors; `a_0_w` is `a.0.w`."""
    made = {name: tensor.clone() for name, tensor in BASE.items()}
    for name, row in values.items():
        for place, value in row.items():
            made[name.replace("_", ".")].view(-1)[place] = value
    return made


FIRST = moved(a_0_w={0: 5.0, 8: 7.0, 9: 1.5}, c={1: 2.0})
SECOND = moved(a_0_w={8: -7.0, 9: 2.5, 10: 4.0}, a_0_b={3: -0.0})


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(bit_patterns(left[name]), bit_patterns(right[name])) for name in left
    )


def patches() -> tuple[WeightPatch, WeightPatch]:
    return WeightPatch.between(BASE, FIRST), WeightPatch.between(BASE, SECOND)


class TestStacked:
    def test_what_both_claim_is_counted_by_tensor(self) -> None:
        assert claimed_by_both(*patches()) == {"a.0.w": 2}

    @pytest.mark.parametrize(
        ("order", "both"), [("first", {8: 7.0, 9: 1.5}), ("last", {8: -7.0, 9: 2.5})]
    )  # fmt: skip
    def test_every_weight_has_the_value_of_whoever_claims_it(self, order, both, tmp_path: Path) -> None:
        """On disk and back: applied at once, reverted at once."""
        stacked(*patches(), order).save(tmp_path / "both.safetensors")
        patch = WeightPatch.load(tmp_path / "both.safetensors")
        wanted = moved(a_0_w={0: 5.0, 10: 4.0, **both}, c={1: 2.0}, a_0_b={3: -0.0})
        assert same(patch.apply(BASE), wanted) and same(patch.revert(wanted), BASE)
        assert patch.number_moved == 6 and patch.erased_sha256 == UNKNOWN

    def test_nobody_decides(self) -> None:
        with pytest.raises(UserError, match=r"Both patches claim 2 weights, in a\.0\.w \(2\)\. .*--order first or"):
            stacked(*patches())

    def test_without_a_weight_in_common_nobody_has_to(self) -> None:
        other = moved(a_0_w={1: 0.5})
        patch = stacked(patches()[0], WeightPatch.between(BASE, other))
        assert same(patch.apply(BASE), moved(a_0_w={0: 5.0, 1: 0.5, 8: 7.0, 9: 1.5}, c={1: 2.0}))

    def test_three_are_two_and_one(self) -> None:
        third = WeightPatch.between(BASE, moved(c={2: 9.0}))
        patch = stacked(stacked(*patches(), "last"), third)
        assert patch.apply(BASE)["c"].tolist() == [0.0, 2.0, 9.0]

    def test_one_that_goes_on_has_the_last_word(self, tmp_path: Path) -> None:
        """What it takes back is no change at all, and the hash of the end is known."""
        again = {**FIRST, "a.0.w": FIRST["a.0.w"].clone()}
        again["a.0.w"][0], again["a.0.w"][9] = BASE["a.0.w"][0], 3.5
        patch = stacked(patches()[0], WeightPatch.between(FIRST, again))
        assert same(patch.apply(BASE), again) and same(patch.revert(again), BASE)
        assert patch.erased_sha256 == weights_sha256(again) and patch.number_moved == 3

    def test_what_is_reverted_must_be_what_it_makes(self) -> None:
        patch = stacked(*patches(), "last")
        with pytest.raises(UserError, match="the base itself"):
            patch.revert(BASE)
        with pytest.raises(UserError, match="those of another model"):
            patch.revert(FIRST)
        with pytest.raises(UserError, match="needs the base weights"):
            patch.apply(FIRST)

    def test_two_bases(self) -> None:
        first, _ = patches()
        foreign = WeightPatch.between(moved(c={0: 1.0}), moved(c={0: 2.0}))
        with pytest.raises(UserError, match="Patches of one base are required"):
            stacked(first, foreign)
        with pytest.raises(UserError, match="give them in the other order"):
            stacked(WeightPatch.between(FIRST, BASE | {"c": torch.ones(3)}), first)

    def test_two_kinds_of_model(self) -> None:
        wide = {name: tensor.double() for name, tensor in BASE.items()}
        other = WeightPatch.between(wide, {**wide, "c": torch.ones(3).double()})
        with pytest.raises(UserError, match="c has another size or data type in the second"):
            stacked(patches()[0], other)


class TestScaled:
    def test_a_part_of_the_way(self) -> None:
        patch, _ = patches()
        made = patch.scaled(BASE, 0.25)
        assert made["a.0.w"].tolist() == [1.25, *range(1, 8), 7.75, 7.125, 10.0]
        assert made["c"].tolist() == [0.0, 0.5, 0.0] and torch.equal(made["a.0.b"], BASE["a.0.b"])
        assert patch.scaled(BASE, 2.0)["c"].tolist() == [0.0, 4.0, 0.0]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_ends_are_exact_and_what_did_not_move_stays(self, dtype: torch.dtype) -> None:
        base, erased = ({name: x.to(dtype) for name, x in one.items()} for one in (BASE, SECOND))
        patch = WeightPatch.between(base, erased)
        assert same(patch.scaled(base, 0.0), base) and same(patch.scaled(base, 1.0), erased)
        middle = patch.scaled(base, 0.7)
        assert middle["a.0.w"].dtype == dtype and torch.equal(middle["a.0.w"][:8], base["a.0.w"][:8])
        wanted = torch.lerp(base["a.0.w"][10].double(), erased["a.0.w"][10].double(), 0.7).to(dtype)
        assert torch.allclose(middle["a.0.w"][10], wanted, rtol=torch.finfo(dtype).eps)

    def test_beyond_the_data_type(self) -> None:
        base = {"w": torch.tensor([1.0]).half()}
        patch = WeightPatch.between(base, {"w": torch.tensor([60000.0]).half()})
        with pytest.raises(UserError, match=r"Strength 2 puts weights of w beyond the range of torch\.float16"):
            patch.scaled(base, 2.0)

    def test_another_base(self) -> None:
        with pytest.raises(UserError, match="needs the base weights"):
            patches()[0].scaled(SECOND, 0.5)


class TestAccount:
    def test_says_what_it_is(self, tmp_path: Path) -> None:
        file = tmp_path / "p.safetensors"
        about = {"concept": "circle", "base": "demo"}
        dataclasses.replace(patches()[0], about=about).save(file)
        said = account(WeightPatch.load(file), file)
        for line in (f"{file}, {file.stat().st_size:,} bytes", "circle", weights_sha256(BASE), weights_sha256(FIRST),
                     "float32", "2 of 3", "4 of 18 (22.22%)"):  # fmt: skip
            assert line in said
        rows = [line.split() for line in said.splitlines()[-2:]]
        assert rows == [["a.0", "3", "moved", "of", "15", "20.00%"], ["c", "1", "moved", "of", "3", "33.33%"]]

    def test_of_a_file_that_tells_less(self, tmp_path: Path) -> None:
        file = tmp_path / "p.safetensors"
        patches()[0].save(file)
        kept = {n: v for n, v in check_whole(file)["__metadata__"].items() if n not in ("layout", "about")}
        save_file({name: tensor.clone() for name, tensor in load_file(file).items()}, file, metadata=kept)
        said = account(WeightPatch.load(file), file)
        assert "not recorded" in said and "32 bits" in said and "%" not in said

    @pytest.mark.parametrize(
        ("name", "text"),
        [("layout", "[1]"), ("layout", '{"c": 1}'), ("layout", '{"c": ["float32", -1]}'), ("layout", "{"),
         ("layout", '{"c": ["float32", 300], "a.0.w": ["float32", 11]}'), ("about", "3"), ("about", "{")],
    )  # fmt: skip
    def test_a_header_that_tells_nonsense(self, name: str, text: str, tmp_path: Path) -> None:
        file = tmp_path / "p.safetensors"
        patches()[0].save(file)
        metadata = check_whole(file)["__metadata__"] | {name: text}
        save_file({key: tensor.clone() for key, tensor in load_file(file).items()}, file, metadata=metadata)
        with pytest.raises(UserError, match=r"is damaged: its header"):
            WeightPatch.load(file)

    def test_of_two_put_together(self) -> None:
        told = [{"concept": "circle", "base": "demo"}, {"concept": "star", "base": "demo"}]
        first, second = (dataclasses.replace(one, about=about) for one, about in zip(patches(), told, strict=True))
        assert stacked(first, second, "last").about == {"concept": "circle + star", "base": "demo"}


def weights_of(folder: Path) -> dict[str, Tensor]:
    return dict(stored_weights(folder / denoiser_folder(model_index(folder), folder)))


@pytest.fixture(scope="module")
def patched(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two patches that both move the first weight of a bias, and the folders that they lead to."""
    made, place = {"base": tiny_pipeline}, tmp_path_factory.mktemp("patches")
    for name, step in (("a", 1.0), ("b", 2.0)):
        made[f"{name}-folder"] = place / f"{name}-folder"
        own = "conv_out.bias" if name == "a" else "time_embedding.linear_1.bias"

        def move(tensors: dict[str, Tensor], step: float = step, own: str = own) -> dict[str, Tensor]:
            first = torch.nn.functional.one_hot(torch.tensor(0), tensors["conv_in.bias"].numel()).float()
            return tensors | {"conv_in.bias": tensors["conv_in.bias"] + step * first, own: tensors[own] + step}

        patch_folder(tiny_pipeline, made[f"{name}-folder"], move)
        made[name] = place / f"{name}.safetensors"
        patch_between(tiny_pipeline, made[f"{name}-folder"]).save(made[name])
    return made


class TestProgram:
    @pytest.fixture
    def files(self, patched: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
        return patched | {"new": tmp_path / "new", "both": tmp_path / "both.safetensors"}

    @pytest.fixture
    def typed(self, files: dict[str, Path], capsys: pytest.CaptureFixture[str]):
        """Run a command in which {name} stands for a file; returns its exit code, output and errors."""

        def run(line: str) -> tuple[int, str, str]:
            code = main([str(files[word[1:-1]]) if word.startswith("{") else word for word in line.split()])
            said = capsys.readouterr()
            return code, said.out, said.err

        return run

    def test_stack_apply_and_revert(self, files, typed, tmp_path) -> None:
        code, said, _ = typed("stack {a} {b}")
        assert code == 0 and "both claim:   1 weights in 1 tensors" in said and "1  conv_in.bias" in said
        code, said, error = typed("stack {a} {b} {both}")
        assert code == 2 and "conv_in.bias (1)" in error and error.count("\n") == 1 and not files["both"].exists()
        assert typed("stack {a} {b} --order last {both}")[0] == 0
        assert typed("apply {base} {both} {new}")[0] == 0
        made, wanted = weights_of(files["new"]), weights_of(files["base"])
        wanted |= {name: weights_of(files["a-folder"])[name] for name in ("conv_out.bias",)}
        wanted |= {n: weights_of(files["b-folder"])[n] for n in ("conv_in.bias", "time_embedding.linear_1.bias")}
        assert same(made, wanted)
        files["back"] = tmp_path / "back"
        assert typed("revert {new} {both} {back}")[0] == 0
        for path in files["base"].rglob("*"):
            if path.is_file():
                assert (files["back"] / path.relative_to(files["base"])).read_bytes() == path.read_bytes()

    def test_patches_of_two_bases_are_not_counted_together(self, files, typed, tmp_path) -> None:
        """What both move are weights of two models."""
        files["other"] = tmp_path / "other.safetensors"
        WeightPatch.between(BASE, FIRST).save(files["other"])
        for line in ("stack {a} {other}", "stack {a} {other} {both} --order last"):
            code, said, error = typed(line)
            assert code == 2 and said == "" and error.startswith("error: Patches of one base are required")

    def test_a_scaled_folder_loads_and_is_not_reverted(self, files, typed, tmp_path) -> None:
        from diffusers import StableDiffusionPipeline

        code, said, _ = typed("apply {base} {a} {new} --scale 0.5")
        assert code == 0 and "this patch does not revert them" in said
        base, made = weights_of(files["base"]), weights_of(files["new"])
        assert torch.equal(made["conv_out.bias"], torch.lerp(base["conv_out.bias"], base["conv_out.bias"] + 1, 0.5))
        assert StableDiffusionPipeline.from_pretrained(files["new"], local_files_only=True).unet is not None
        assert "0.5 of the whole change" in (files["new"] / "README.md").read_text()
        files["back"] = tmp_path / "back"
        code, _, error = typed("revert {new} {a} {back}")
        assert code == 2 and "those of another model" in error
        assert typed("apply {base} {a} {back} --scale 0")[0] == 0 and same(weights_of(files["back"]), base)

    def test_info(self, files, typed) -> None:
        code, said, _ = typed("info {a}")
        assert code == 0 and weights_sha256(weights_of(files["base"])) in said and "conv_out" in said

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("info {a} {b}", "salun patch info patch.safetensors is the form of it"),
            ("apply {base} {a}", "salun patch apply BASE patch.safetensors FOLDER is the form"),
            ("stack {a}", "salun patch stack FIRST.safetensors SECOND.safetensors BOTH.safetensors is the form"),
            ("stack {a} {b} {a} --order last", "exists already"),
            ("stack {a} {new}", "there is no file"),
            ("stack {a} {base} {both}", "there is no file"),
            ("info {new}", "there is no file"),
            ("revert {a-folder} {a} {new} --scale 0.5", "--scale has no meaning for revert; it goes with apply."),
            ("apply {base} {a} {new} --order last", "--order has no meaning for apply"),
            ("info {a} --variant fp16", "--variant has no meaning for info"),
            ("apply {base} {a} {new} --scale -1", "--scale must be at least 0"),
        ],
    )
    def test_mistakes_cost_one_line(self, files, typed, line, words) -> None:
        code, said, error = typed(line)
        assert code == 2 and words in error and error.count("\n") == 1 and said == ""
        assert not files["new"].exists() and not files["both"].exists()

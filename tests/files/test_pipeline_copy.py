"""What a pipeline folder is: which files are read, hashed, copied and left behind, on a folder as the hub has them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_models import in_hub_cache

from salun_diffusers.errors import UserError
from salun_diffusers.files.component_files import check_complete, pipeline_files, unreadable_parts, weight_files
from salun_diffusers.files.pipeline_copy import copy_with_denoiser
from salun_diffusers.files.pipeline_folder import model_index
from salun_diffusers.files.run_folder import identity_of
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.patch import patch_between
from salun_diffusers.masks.receipt import compare
from salun_diffusers.programs.erase import main
from salun_diffusers.programs.patch import main as patch
from salun_diffusers.programs.verify import main as verify

UNET = "unet/diffusion_pytorch_model.safetensors"
LEFT_OUT = "| left out of the base | `safety_checker`: not to be had without a pickle |"
WORDS = {"plain": (), "fp16": ("--variant", "fp16")}


def real_copy(snapshot: Path, target: Path) -> Path:
    """The snapshot without links."""
    return Path(shutil.copytree(snapshot, target))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", params=["plain", "fp16"])
def run(request, sd14, small_run, tmp_path_factory) -> tuple[Path, str]:
    """A run on the snapshot, with its patch."""
    folder = tmp_path_factory.mktemp("run") / "run"
    words = small_run(pretrained_model_name_or_path=sd14, output_dir=folder, save_patch=True)
    assert main([*words, *WORDS[request.param]]) == 0
    return folder, request.param


class TestErasedSnapshot:
    def test_files(self, run, sd14):
        """Pickles, other weights of the denoiser and whole checkpoints stay behind; so does what needs a pickle."""
        folder, variant = run
        found = names(folder / "pipeline")
        weights = (
            "diffusion_pytorch_model.fp16.safetensors" if variant == "fp16" else "diffusion_pytorch_model.safetensors"
        )
        assert {name for name in found if name.startswith("unet/")} == {"unet/config.json", f"unet/{weights}"}
        assert not {name for name in found if name.endswith((".bin", ".ckpt")) or name.startswith(("v1-4", "safety"))}
        assert {"README.md", "feature_extractor/preprocessor_config.json", "vae/diffusion_pytorch_model.safetensors",
                "vae/diffusion_pytorch_model.fp16.safetensors"} <= found  # fmt: skip
        assert not any(path.is_symlink() for path in (folder / "pipeline").rglob("*"))

    def test_loads_by_a_plain_call_and_says_that_there_is_no_checker(self, run, sd14):
        folder, variant = run
        index = json.loads((folder / "pipeline" / "model_index.json").read_text())
        assert index["safety_checker"] == [None, None] and index["requires_safety_checker"] is False
        assert {**index, "safety_checker": 0, "requires_safety_checker": 0} == {
            **model_index(sd14), "safety_checker": 0, "requires_safety_checker": 0
        }  # fmt: skip
        wanted = {"variant": "fp16"} if variant == "fp16" else {}
        pipe = StableDiffusionPipeline.from_pretrained(folder / "pipeline", local_files_only=True, **wanted)
        assert pipe.safety_checker is None
        assert LEFT_OUT in (folder / "pipeline" / "README.md").read_text(), "who gets it reads no stderr of ours"
        before = load_file(weight_files(sd14 / "unet", wanted.get("variant"))[0])
        after = pipe.unet.state_dict()
        assert any(not torch.equal(after[name].to(before[name].dtype), before[name]) for name in before)

    def test_receipt_patch_and_back(self, run, sd14, tmp_path, capsys):
        folder, variant = run
        words = WORDS[variant]
        assert verify([str(sd14), str(folder / "pipeline"), "--mask", str(folder / "mask.safetensors"), *words]) == 0
        there, back = tmp_path / "there", tmp_path / "back"
        assert patch(["apply", str(sd14), str(folder / "patch.safetensors"), str(there), *words]) == 0
        assert LEFT_OUT in (there / "README.md").read_text()
        assert patch(["revert", str(there), str(folder / "patch.safetensors"), str(back), *words]) == 0
        file = weight_files(sd14 / "unet", "fp16" if words else None)[0].name
        # The header's metadata is written in any order; tensors and all other files are the same to the bit.
        ours, theirs = load_file(there / "unet" / file), load_file(folder / "pipeline" / "unet" / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        reverted, base = load_file(back / "unet" / file), load_file(sd14 / "unet" / file)
        assert all(torch.equal(reverted[name], base[name]) for name in base)
        assert names(there) == names(folder / "pipeline")
        assert verify([str(sd14), str(there), "--mask", str(folder / "mask.safetensors"), *words]) == 0

    def test_the_other_variant_of_the_denoiser_is_gone(self, run):
        """It would be the un-erased model, one word away."""
        folder, variant = run
        takes = "those of variant fp16, which --variant fp16" if variant == "fp16" else "plain ones, which no --variant"
        with pytest.raises(UserError, match=f"must hold safetensors weights.*; found {takes} takes"):
            weight_files(folder / "pipeline" / "unet", None if variant == "fp16" else "fp16")

    def test_resume_and_generate(self, run, sd14, small_run, tmp_path):
        from salun_diffusers.programs.generate import main as generate

        folder, variant = run
        words = small_run(pretrained_model_name_or_path=sd14, output_dir=folder, save_patch=True)
        assert main([*words, *WORDS[variant], "--resume_from_checkpoint", "latest"]) == 0
        (tmp_path / "p.txt").write_text("a star\n")
        told = [
            "--prompts",
            str(tmp_path / "p.txt"),
            "--num_inference_steps",
            "2",
            "--output_dir",
            str(tmp_path / "out"),
        ]
        name = ["--pretrained_model_name_or_path", str(folder / "pipeline")]
        assert generate([*name, *told, *WORDS[variant]]) == 0
        assert len([*(tmp_path / "out").glob("*.png")]) == 1


class TestReceiptIsAProof:
    """`verify` says no wherever `from_pretrained` would load, or could be made to load, something else."""

    @pytest.fixture
    def pair(self, sd14, tmp_path) -> tuple[Path, Path, SaliencyMask]:
        base = real_copy(sd14, tmp_path / "base")
        erased = tmp_path / "erased"
        tensors = load_file(base / UNET)
        copy_with_denoiser(base, erased, lambda folder: save_file(tensors, folder / Path(UNET).name))
        return base, erased, SaliencyMask.full({name: tensor.shape for name, tensor in tensors.items()})

    def test_it_holds_before(self, pair):
        receipt = compare(*pair)
        assert receipt.holds and receipt.moved == 0

    @pytest.mark.parametrize(
        "name",
        [
            "vae/diffusion_pytorch_model.safetensors.index.json", "unet/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/model.fp16-00001-of-00002.safetensors", "text_encoder/adapter_config.json", "unet/evil.py",
            "tokenizer/added_tokens.json", "pipeline.py", "vae/pytorch_model.bin", "unet/deep/file.json",
        ],
    )  # fmt: skip
    def test_an_added_file(self, pair, name):
        base, erased, mask = pair
        if name.startswith("text_encoder/model"):
            assert not (base / name).exists()
        (erased / name).parent.mkdir(exist_ok=True)
        (erased / name).write_bytes(b"{}")
        assert compare(base, erased, mask).changed_files == (f"{name} (added)",)

    def test_a_list_of_parts_that_the_denoiser_would_be_read_by(self, pair):
        """diffusers prefers it to the single file: what it leads to is what is compared."""
        base, erased, full = pair
        tensors = load_file(erased / UNET)
        tensors["conv_in.bias"] = tensors["conv_in.bias"] + 1
        save_file(tensors, erased / "unet" / "evil.safetensors")
        listing = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "evil.safetensors")}
        (erased / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(listing))
        receipt = compare(base, erased, full.restrict(lambda name: name != "conv_in.bias"))
        assert receipt.violations == 8 and receipt.changed_files == (f"{UNET} (added)",)

    @pytest.mark.parametrize(
        "name", ["vae/config.json", "feature_extractor/preprocessor_config.json", "unet/config.json"]
    )
    def test_a_changed_or_missing_file(self, pair, name):
        base, erased, mask = pair
        text = (erased / name).read_bytes()
        (erased / name).write_bytes(text + b" ")
        assert compare(base, erased, mask).changed_files == (f"{name} (changed)",)
        (erased / name).unlink()
        assert compare(base, erased, mask).changed_files == (f"{name} (missing)",)

    def test_a_linked_component(self, pair, tmp_path):
        base, erased, mask = pair
        shutil.move(erased / "vae", tmp_path / "elsewhere")
        (erased / "vae").symlink_to(tmp_path / "elsewhere")
        assert compare(base, erased, mask).changed_files == ("vae (a link)",)

    def test_a_checker_that_comes_back(self, pair):
        base, erased, mask = pair
        shutil.copy(base / "model_index.json", erased / "model_index.json")
        assert compare(base, erased, mask).changed_files == ("model_index.json (changed)",)

    def test_a_card_may_be_written_anew(self, pair):
        base, erased, mask = pair
        (erased / "README.md").write_text("Erased.")
        assert compare(base, erased, mask).holds


class TestLinks:
    def test_a_linked_component_is_seen(self, sd14, tmp_path):
        """One byte of a linked U-Net changed is another model; a copy holds its files."""
        base = real_copy(sd14, tmp_path / "base")
        plain = identity_of(base)
        shutil.move(base / "unet", tmp_path / "unet")
        (base / "unet").symlink_to(tmp_path / "unet")
        assert identity_of(base) == plain
        tensors = load_file(tmp_path / "unet" / Path(UNET).name)
        copy_with_denoiser(base, tmp_path / "copy", lambda folder: save_file(tensors, folder / Path(UNET).name))
        assert (tmp_path / "copy" / "unet" / "config.json").is_file() and not (tmp_path / "copy" / "unet").is_symlink()
        data = bytearray((base / UNET).read_bytes())
        data[-1] ^= 1
        (base / UNET).write_bytes(data)
        assert identity_of(base) != plain

    def test_a_loop_ends(self, sd14, tmp_path):
        base = real_copy(sd14, tmp_path / "base")
        before = len(pipeline_files(base))
        (base / "vae" / "again").symlink_to(base / "vae")
        assert len(pipeline_files(base)) == before

    @pytest.mark.parametrize("name", ["README.md", "scheduler/notes.txt", "tokenizer/merges.txt", "vae/deep"])
    def test_what_leads_out_is_not_copied(self, sd14, tmp_path, name):
        base = real_copy(sd14, tmp_path / "base")
        (tmp_path / "private").mkdir()
        (tmp_path / "private" / "id_rsa").write_text("secret")
        (base / name).unlink(missing_ok=True)
        (base / name).symlink_to(tmp_path / "private" if name == "vae/deep" else tmp_path / "private" / "id_rsa")
        with pytest.raises(UserError, match="is a link out of the pipeline"):
            check_complete(base)
        with pytest.raises(UserError, match="is a link out of the pipeline"):
            copy_with_denoiser(base, tmp_path / "copy", lambda folder: None)
        assert not (tmp_path / "copy").exists()

    def test_a_component_of_another_snapshot(self, sd14, tiny_pipeline, tmp_path):
        """Linked as a whole it brings the blobs of its own repository; single files of others' blobs are refused."""
        cache = tmp_path / "cache"
        other = in_hub_cache(tiny_pipeline, cache, "someone/vae", commit="e" * 40)
        third = in_hub_cache(tiny_pipeline, cache, "someone/private", commit="f" * 40)
        base = real_copy(sd14, tmp_path / "base")
        shutil.rmtree(base / "vae")
        (base / "vae").symlink_to(other / "vae")
        check_complete(base)
        tensors = load_file(base / UNET)
        copy_with_denoiser(base, tmp_path / "copy", lambda folder: save_file(tensors, folder / Path(UNET).name))
        name = "vae/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "copy" / name).read_bytes() == (tiny_pipeline / name).read_bytes()
        assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
        (other / "vae" / "more.txt").symlink_to((third / "model_index.json").resolve())
        with pytest.raises(UserError, match="is a link out of the pipeline"):
            check_complete(base)
        (other / "vae" / "more.txt").unlink()
        (base / "tokenizer" / "more.txt").symlink_to(other / "vae" / "config.json")
        with pytest.raises(UserError, match="is a link out of the pipeline"):
            check_complete(base)

    def test_a_folder_that_is_no_component_is_not_taken_for_one(self, sd14, tmp_path):
        base = real_copy(sd14, tmp_path / "base")
        (tmp_path / "private").mkdir()
        (tmp_path / "private" / "id_rsa").write_text("secret")
        shutil.rmtree(base / "feature_extractor")
        (base / "feature_extractor").symlink_to(tmp_path / "private")
        with pytest.raises(UserError, match="must be the folder of a component"):
            check_complete(base)

    @pytest.mark.parametrize("kind", ["pipe", "dangling"])
    def test_what_is_no_file(self, sd14, tmp_path, kind):
        base = real_copy(sd14, tmp_path / "base")
        place = base / "vae" / "odd.json"
        os.mkfifo(place) if kind == "pipe" else place.symlink_to(tmp_path / "nowhere")
        with pytest.raises(UserError, match=r"a device or a pipe|link to a file that is not there"):
            check_complete(base)


class TestIndex:
    @pytest.mark.parametrize(
        "name", ["../evil", "unet/../../x", "/etc", "x/../../../../yaml", ".", "..", "", "vae\\..", "a\n", "a" * 99]
    )
    def test_a_component_is_a_plain_word(self, sd14, tmp_path, name):
        base = real_copy(sd14, tmp_path / "base")
        index = model_index(base) | {name: ["diffusers", "AutoencoderKL"]}
        (base / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="must name components by plain words"):
            model_index(base)

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "1", "{", "\xff", '{"a": NaN}', '{"unet": ["x"]}', '{"unet": [1, 2]}', '{"a": 1, "a": 2}',
         "[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"vae": ["' + "x" * 300 + '", "A"]}'],
        ids=["empty", "list", "number", "cut", "bytes", "nan", "short", "types", "twice", "deep", "digits", "long"],
    )  # fmt: skip
    def test_damaged(self, sd14, tmp_path, text):
        base = real_copy(sd14, tmp_path / "base")
        (base / "model_index.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=r"model_index\.json") as caught:
            model_index(base)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


class TestWeights:
    def test_parts_are_read_where_there_is_a_list(self, tmp_path):
        for name in ("a.safetensors", "b.safetensors", "diffusion_pytorch_model.safetensors", "zzz.safetensors"):
            save_file({name: torch.ones(1)}, tmp_path / name)
        assert [path.name for path in weight_files(tmp_path)] == ["diffusion_pytorch_model.safetensors"]
        listing = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
        listing.write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}))
        assert [path.name for path in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]

    @pytest.mark.parametrize("part", ["../b.safetensors", "/b.safetensors", "b.bin", ""])
    def test_parts_lie_beside_the_list(self, tmp_path, part):
        listing = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
        listing.write_text(json.dumps({"weight_map": {"x": part}}))
        with pytest.raises(UserError, match="must name safetensors files beside it"):
            weight_files(tmp_path)

    def test_transformers_prefers_the_single_file(self, tmp_path):
        save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "gone.safetensors"}}')
        assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]

    def test_a_checker_with_safetensors_stays(self, sd14, tmp_path):
        base = real_copy(sd14, tmp_path / "base")
        assert unreadable_parts(base) == ["safety_checker"]
        checker = base / "safety_checker"
        state = torch.load(checker / "pytorch_model.bin", weights_only=True)
        save_file({name: tensor.clone() for name, tensor in state.items()}, checker / "model.safetensors")
        assert unreadable_parts(base) == []

    def test_an_optional_part_that_is_not_there(self, sd14, tmp_path):
        base = real_copy(sd14, tmp_path / "base")
        shutil.rmtree(base / "feature_extractor")
        assert sorted(unreadable_parts(base)) == ["feature_extractor", "safety_checker"]

    def test_is_not_asked_for_by_erasing_and_drawing(self, sd14, small_run, tmp_path):
        from salun_diffusers.programs.generate import main as generate

        base = real_copy(sd14, tmp_path / "base")
        shutil.rmtree(base / "feature_extractor")
        assert main(small_run(pretrained_model_name_or_path=base, output_dir=tmp_path / "run")) == 0
        (tmp_path / "p.txt").write_text("a star\n")
        for folder in (base, tmp_path / "run" / "pipeline"):
            words = [
                "--prompts",
                tmp_path / "p.txt",
                "--num_inference_steps",
                2,
                "--output_dir",
                tmp_path / f"{folder.name}-drawn",
            ]
            assert generate(["--pretrained_model_name_or_path", str(folder), *map(str, words)]) == 0

    def test_a_weight_that_is_missing_is_told_by_drawing_too(self, sd14, tmp_path, capsys):
        from salun_diffusers.programs.generate import main as generate

        base = real_copy(sd14, tmp_path / "base")
        tensors = load_file(base / UNET)
        del tensors["conv_out.bias"]
        save_file(tensors, base / UNET)
        (tmp_path / "p.txt").write_text("a star\n")
        words = ["--prompts", tmp_path / "p.txt", "--num_inference_steps", 2, "--output_dir", tmp_path / "out"]
        assert generate(["--pretrained_model_name_or_path", str(base), *map(str, words)]) == 2
        assert "error: " in capsys.readouterr().err

    def test_mixed_data_types_are_kept(self, tiny_pipeline, small_run, tmp_path):
        """fp16 with an island of fp32: every tensor keeps its own type, and frozen ones their bits."""
        base = Path(shutil.copytree(tiny_pipeline, tmp_path / "base"))
        tensors = load_file(base / UNET)
        mixed = {name: value if "norm" in name else value.half() for name, value in tensors.items()}
        save_file(mixed, base / UNET)
        assert main(small_run(pretrained_model_name_or_path=base, output_dir=tmp_path / "run", save_patch=True)) == 0
        after = load_file(tmp_path / "run" / "pipeline" / UNET)
        assert {name: value.dtype for name, value in after.items()} == {name: v.dtype for name, v in mixed.items()}
        assert patch_between(base, tmp_path / "run" / "pipeline").number_moved > 0

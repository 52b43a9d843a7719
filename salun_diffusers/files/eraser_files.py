"""What other erasers write, recognised by the names in its headers: no weight is read and no pickle is opened.

What the files of the field look like, read in the public code that writes them:

    ESD         rohitgandikota/erasing@25613d2, esd_sd.py and esd_sdxl.py: the trained weights of the U-Net by
                diffusers' names without a prefix, bf16; the pickles of utils/utils.py keep one dictionary for each
                layer, `unet.….attn2.to_k`
    UCE         rohitgandikota/unified-concept-editing@28c81ed, trainscripts/uce_sd_erase.py: `….attn2.to_k.weight` and
                `….attn2.to_v.weight`, fp32
    OCE         HansSunY/OCE@2609f3e, oce.py: `….attn2.to_v.weight`, fp32
    MACE        Shilin-LU/MACE@057e7a6, src/cfr_lora_training.py: a LoRA for each concept by `save_attn_procs`, with
                `….processor.to_k_lora.down.weight`; its last result is a whole pipeline
    EraseFlow   Abhiramkns/EraseFlow@31c98ec, utils/model_setup.py: `save_lora_weights` of PEFT's tensors,
                `unet.….to_k.lora.down.weight` or `….lora_A.weight`
    AdvUnlearn  OPTML-Group/AdvUnlearn@9d23124, train-scripts/utils/util.py: the pickle of a wrapper, in which
                `text_encoder.text_model.…` stands beside the same tensors as `embedding.…`, `encoder.…` and
                `final_layer_norm.…`; on the hub folders of a `CLIPTextModel`
    HiRM        fmp453/erase-eval@a64ea3b, train_methods/train_hirm.py: the folder that `save_pretrained` makes of a
                `CLIPTextModel`
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.component_files import weight_files
from salun_diffusers.files.pickles import refuse_pickle
from salun_diffusers.files.pipeline_folder import is_local
from salun_diffusers.files.whole_files import check_whole

Kind = Literal["weights", "lora", "patch"]
Part = Literal["unet", "original unet", "text encoder"]

_LORA_FILE = "pytorch_lora_weights.safetensors"
_PATCH = "salun_diffusers.patch"
_NUMBERS = ("F64", "F32", "F16", "BF16")
_BEFORE = r"(?:unet\.|model\.|module\.|diffusion_model\.)*"
_UNET = re.compile(
    _BEFORE + r"((?:down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|time_embedding|add_embedding"
    r"|class_embedding)\..+)"
)
_ORIGINAL = re.compile(_BEFORE + r"((?:input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\..+)")
_TEXT = re.compile(
    r"(?:text_encoder\.|text_encoder_2\.|cond_stage_model\.transformer\.|model\.|module\.)*(?:text_model\.)?"
    r"((?:embeddings|encoder\.layers|final_layer_norm|text_projection)\..+)"
)
_ADAPTED = re.compile(r"(^|[._])(lora|hada|lokr|oft)_?([._]|A\b|B\b|up\b|down\b|w1|w2|unet|te)")
_WRAPPED = "text_encoder.text_model."
_DOUBLES = ("embedding.", "encoder.", "final_layer_norm.")
_WHOLE = ("first_stage_model.", "conditioner.embedders.")


@dataclass(frozen=True)
class FileTensor:
    """A tensor as a header tells of it.

    Args:
        file: The file that it lies in.
        name: Its name there.
        dtype: Its data type, by safetensors' name.
        shape: Its shape.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class EraserFile:
    """What another eraser wrote.

    Args:
        path: As it was named: a file, or a folder.
        kind: Weights that stand in for the base's, a LoRA, or a patch of `salun patch`.
        files: The files of safetensors.
        tensors: All tensors by their names in the files; those that are no weights are left out.
    """

    path: Path
    kind: Kind
    files: tuple[Path, ...]
    tensors: Mapping[str, FileTensor]


def split_sum(name: str) -> tuple[str, Path] | None:
    """BASE and FILE of ``BASE+FILE``; None where a name is that of a folder, a file or a model by itself.

    A plus may be a part of either: what is there decides.

    Args:
        name: What was typed; spaces around the plus are allowed.

    Raises:
        UserError: If there is a plus and no such file.
    """
    if "+" not in name or Path(name).expanduser().exists():
        return None
    pairs = [(name[:place].strip(), name[place + 1 :].strip()) for place, letter in enumerate(name) if letter == "+"]
    there = [
        (base, Path(file).expanduser()) for base, file in pairs if base and file and Path(file).expanduser().exists()
    ]
    at_hand = [pair for pair in there if is_local(pair[0]) or Path(pair[0]).expanduser().is_file()]
    for pair in (*at_hand, *there):
        return pair
    wanted = next((file for base, file in pairs if base and file), "")
    raise UserError(
        f"BASE+FILE takes a pipeline and, behind the plus, a file or folder of another eraser; of {name} there is "
        f"{f'no {wanted}' if wanted else 'one half missing'}."
    )


def read_eraser_file(path: Path) -> EraserFile:
    """Recognise what lies in a file or folder.

    Args:
        path: A safetensors file, a folder of one component or of a LoRA.

    Raises:
        UserError: If there is none, it is a pickle, damaged, or nothing that can be put onto a base.
    """
    files = _files(path)
    tensors: dict[str, FileTensor] = {}
    told: dict[str, Any] = {}
    for file in files:
        refuse_pickle(file)
        header = check_whole(file)
        metadata = header.pop("__metadata__", None)
        told |= metadata if isinstance(metadata, dict) else {}
        tensors |= {name: _entry(file, name, entry) for name, entry in header.items()}
    if told.get("format") == _PATCH:
        return EraserFile(path, "patch", files, tensors)
    if any(name.startswith(_WHOLE) for name in tensors):
        raise UserError(f"{path} is a checkpoint of a whole pipeline: name it alone, without a base and a plus.")
    kind: Kind = "lora" if any(_ADAPTED.search(name) for name in tensors) else "weights"
    doubled = any(name.startswith(_WRAPPED) for name in tensors)
    kept = {
        name: tensor for name, tensor in tensors.items()
        if not name.endswith("position_ids") and not (doubled and name.startswith(_DOUBLES))
    }  # fmt: skip
    if not kept:
        raise UserError(f"{path} holds no weights: a safetensors file with tensors is required.")
    for tensor in kept.values():
        if tensor.dtype not in _NUMBERS:
            raise UserError(
                f"{path} has {one_line(tensor.name, 120)} as {one_line(tensor.dtype, 20)}; weights as "
                f"{', '.join(_NUMBERS)} are required."
            )
    if kind == "weights":
        require_known([name for name in kept if part_of(name) is None], len(kept), path)
    return EraserFile(path, kind, files, kept)


def require_known(strange: list[str], among: int, path: Path) -> None:
    """Refuse names that no network has.

    Args:
        strange: These names.
        among: How many tensors there are.
        path: Where.

    Raises:
        UserError: Naming the first and how many there are.
    """
    if strange:
        raise UserError(
            f"{path} has {len(strange)} of {among} tensors with names of neither a U-Net nor a text encoder, first "
            f"{one_line(strange[0], 120)}; weights such as down_blocks.….attn2.to_v.weight, text_model.… or a LoRA are "
            "required."
        )


def part_of(name: str) -> tuple[Part, str] | None:
    """Which network a tensor is of, and its name in it without any prefix; None where no network has it."""
    kinds: tuple[tuple[re.Pattern[str], Part], ...] = (
        (_UNET, "unet"), (_ORIGINAL, "original unet"), (_TEXT, "text encoder"),
    )  # fmt: skip
    for pattern, part in kinds:
        if found := pattern.fullmatch(name):
            return part, found[1]
    return None


def _entry(file: Path, name: str, entry: Mapping[str, Any]) -> FileTensor:
    shape, dtype = entry["shape"], entry.get("dtype")
    if not isinstance(dtype, str) or not all(type(number) is int and number >= 0 for number in shape):
        raise UserError(f"{file} is damaged: its header does not say what {one_line(name, 120)} is; copy it again.")
    return FileTensor(file, name, dtype, tuple(shape))


def _files(path: Path) -> tuple[Path, ...]:
    """The safetensors files that are meant."""
    if not path.exists():
        raise UserError(f"A file or folder of another eraser is required, there is no {path}.")
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path} must be a file or a folder; it is a device or a pipe.")
        return (path,)
    if (path / "model_index.json").is_file():
        raise UserError(f"{path} is a whole pipeline: name it alone, without a base and a plus.")
    if (path / "run.json").is_file():
        raise UserError(f"{path} is a run, which knows its base: name it alone, without a base and a plus.")
    if (path / _LORA_FILE).is_file():
        return (path / _LORA_FILE,)
    if any((path / f"{stem}{end}").is_file() for stem in ("diffusion_pytorch_model", "model")
           for end in (".safetensors", ".safetensors.index.json")):  # fmt: skip
        return tuple(weight_files(path))
    return (_only(path, sorted(path.glob("*.safetensors"))),)


def _only(folder: Path, found: Iterable[Path]) -> Path:
    """The one file of weights of a folder."""
    files = list(found)
    if len(files) == 1:
        return files[0]
    if not files:
        for file in sorted(one for one in folder.iterdir() if one.is_file() and one.suffix != ".json"):
            refuse_pickle(file)
    raise UserError(
        f"{folder} must hold one safetensors file or the weights of one component; it holds "
        f"{', '.join(file.name for file in files[:3]) if files else 'none'}."
    )

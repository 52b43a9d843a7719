"""Features of picture folders, kept as safetensors so that a reference set is looked at once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.feature_extractors import FeatureExtractor
from salun_diffusers.evaluation.image_folder import decoded, read_image_folder, require_one_size
from salun_diffusers.evaluation.json_files import parse_json
from salun_diffusers.files.stored_weights import write_tensors
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.pictures.decoding import DECODED
from salun_diffusers.progress import Progress

_FORMAT = "salun_diffusers features, version 1"
_MOST_NUMBERS = 2**30  # 4 GiB; FID's 50,000 pictures of 2,048 numbers are a tenth of it.


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of pictures.

    Args:
        values: `(pictures, dimension)`, fp32.
        protocol: What made them: extractor and preprocessing.
        digest: SHA-256 over the pictures' bytes, order aside.
        source: Where the pictures are.
    """

    values: Tensor
    protocol: str
    digest: str
    source: str

    def save(self, path: Path) -> None:
        """Write features and record as one safetensors file, whole or not at all."""
        record = {"format": _FORMAT, "protocol": self.protocol, "digest": self.digest, "source": self.source}
        with full_disk_is_told(f"the features {path}"):
            write_tensors(path, {"features": self.values}, {"record": json.dumps(record)})

    @classmethod
    def load(cls, path: Path) -> FeatureSet:
        """Read a file written by `save`.

        Raises:
            UserError: If it is no such file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                record = parse_json((file.metadata() or {}).get("record", "null"))
                if not isinstance(record, dict) or record.get("format") != _FORMAT:
                    raise ValueError(f"its format is not {_FORMAT!r}")
                for name in ("protocol", "digest", "source"):
                    if not isinstance(record.get(name), str):
                        raise ValueError(f"{name!r} must be a text")
                stored = file.get_slice("features")
                shape, kind = tuple(stored.get_shape()), str(stored.get_dtype())
                if len(shape) != 2 or 0 in shape or kind not in ("F32", "F64", "F16", "BF16"):
                    raise ValueError(f"features must be numbers of shape (pictures, dimension), found {kind} {shape}")
                if math.prod(shape) > _MOST_NUMBERS:
                    raise ValueError(f"it has {math.prod(shape):,} numbers, at most {_MOST_NUMBERS:,} are read")
                values: Tensor = file.get_tensor("features").float()
            if not values.isfinite().all():
                raise ValueError("features must be finite")
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path} is no file of features ({one_line(error, 200)}); give a folder of pictures instead."
            ) from error
        return cls(values, record["protocol"], record["digest"], record["source"])


def features_of(
    source: str | Path,
    extractor: FeatureExtractor,
    *,
    batch_size: int,
    resize: int | None,
    exclude: Sequence[str] = (),
    cache: Path | None = None,
    stage: str = "features",
) -> FeatureSet:
    """The features of a folder, from the cache where it has them, or of a file that `FeatureSet.save` wrote.

    Args:
        source: A folder of pictures, or a ``.safetensors`` file of features.
        extractor: What makes them.
        batch_size: Pictures at once.
        resize: Shorter side before the extractor, or None.
        exclude: Classes whose pictures are left out, such as the forgotten one.
        cache: Folder for kept features; None keeps none.
        stage: Name of the progress bar.

    Raises:
        UserError: If the pictures cannot be used, or the file's features are another extractor's.
    """
    path = Path(source).expanduser()
    protocol = f"{extractor.protocol}, {DECODED}" + (f", after resizing to {resize} px" if resize else "")
    if path.suffix == ".safetensors" and path.is_file():
        if exclude:
            raise UserError(
                f"{path} holds features of pictures whose classes are not known, so {', '.join(exclude)} cannot be "
                "left out of them; give the folder of the pictures."
            )
        kept = FeatureSet.load(path)
        if kept.protocol != protocol:
            raise UserError(f"{path} holds features by another protocol: {kept.protocol!r}, required is {protocol!r}.")
        return kept
    folder = read_image_folder(path).without(exclude)
    if not folder.files:
        raise UserError(f"{path} keeps detections only, features need pictures; draw them with --save_explicit.")
    if resize is None:
        require_one_size(folder.files)
    digest = digest_of(folder.files)
    name = hashlib.sha256(f"{protocol}/{digest}".encode()).hexdigest()[:20]
    file = cache / f"{extractor.name}-{name}.safetensors" if cache else None
    if file and file.is_file():
        kept = FeatureSet.load(file)
        if (kept.protocol, kept.digest) != (protocol, digest):
            raise UserError(f"{file} does not hold the features that its name says; delete it, they are made again.")
        return kept
    values = []
    with Progress(stage, len(folder.files)) as bar:
        for pictures in decoded(folder.files, batch_size, resize=resize):
            values.append(extractor(pictures))
            bar.advance(len(pictures))
    made = FeatureSet(torch.cat(values), protocol, digest, str(path))
    if file:
        made.save(file)
    return made


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 over the files' hashes, sorted: the same pictures under other names have the same digest."""
    single = []
    for file in files:
        with file.open("rb") as stream:
            single.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return hashlib.sha256("".join(sorted(single)).encode()).hexdigest()

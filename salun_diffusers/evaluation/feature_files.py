"""Features of picture folders, kept as safetensors so that a reference set is looked at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.feature_extractors import FeatureExtractor
from salun_diffusers.evaluation.image_folder import decoded, read_image_folder, require_one_size
from salun_diffusers.files.stored_weights import write_tensors
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.progress import Progress

_FORMAT = "salun_diffusers features, version 1"


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
                record = json.loads(file.metadata()["record"])
                values: Tensor = file.get_tensor("features")
            if record["format"] != _FORMAT:
                raise ValueError(f"its format is {record['format']!r}")
            return cls(values, record["protocol"], record["digest"], record["source"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no file of features ({error}); give a folder of pictures instead.") from error


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
    protocol = extractor.protocol + (f", after resizing to {resize} px" if resize else "")
    if path.suffix == ".safetensors" and path.is_file():
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
        return FeatureSet.load(file)
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

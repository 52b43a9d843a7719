"""Features of picture folders, kept as safetensors so that a reference set is looked at once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.class_names import nearest
from salun_diffusers.evaluation.feature_extractors import FeatureExtractor
from salun_diffusers.evaluation.image_folder import decoded, read_image_folder, require_one_size
from salun_diffusers.files.json_files import parse_json
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
        labels: The class of each picture, an empty text where it has none; empty where no class is known.
        without: Classes that were left out.
        hashes: SHA-256 of each picture; empty in files from before they were kept.
    """

    values: Tensor
    protocol: str
    digest: str
    source: str
    labels: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write features and record as one safetensors file, whole or not at all."""
        named = {"protocol": self.protocol, "digest": self.digest, "source": self.source}
        record = {"format": _FORMAT, **named, "labels": self.labels, "without": self.without}
        record["hashes"] = self.hashes
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
                told = {name: _texts(name, record.get(name, [])) for name in ("labels", "without", "hashes")}
                stored = file.get_slice("features")
                shape, kind = tuple(stored.get_shape()), str(stored.get_dtype())
                if len(shape) != 2 or 0 in shape or kind not in ("F32", "F64", "F16", "BF16"):
                    raise ValueError(f"features must be numbers of shape (pictures, dimension), found {kind} {shape}")
                if math.prod(shape) > _MOST_NUMBERS:
                    raise ValueError(f"it has {math.prod(shape):,} numbers, at most {_MOST_NUMBERS:,} are read")
                for name in ("labels", "hashes"):
                    if len(told[name]) not in (0, shape[0]):
                        raise ValueError(f"{shape[0]} pictures with {len(told[name])} {name}")
                values: Tensor = file.get_tensor("features").float()
            if not values.isfinite().all():
                raise ValueError("features must be finite")
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path} is no file of features ({one_line(error, 200)}); give a folder of pictures instead."
            ) from error
        return cls(values, record["protocol"], record["digest"], record["source"], **told)


def _texts(name: str, found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{name!r} must be a list of texts")
    return tuple(found)


def classes_of(source: str | Path) -> tuple[frozenset[str], frozenset[str]]:
    """The classes of a folder's pictures or of a file's features, and those that were left out of the file.

    Raises:
        UserError: If no class is known.
    """
    path, beside = Path(source).expanduser(), ""
    if path.suffix == ".safetensors" and path.is_file():
        kept = FeatureSet.load(path)
        labels, without = frozenset(filter(None, kept.labels)), frozenset(kept.without)
    else:
        folder = read_image_folder(path)
        labels, without = frozenset(row.label for row in folder.rows if row.label), frozenset[str]()
        beside = folder.beside
    if not labels and not without:
        raise UserError(
            f"Leaving classes out needs to know them: {path} has no classes in a manifest or as sub-folders{beside}, "
            "or was kept before features had classes. Name a folder whose pictures have some."
        )
    return labels, without


def require_classes(exclude: Sequence[str], sources: Sequence[str | Path]) -> None:
    """Refuse classes to leave out that are not there: with another spelling nothing would be left out.

    A source may lack a class that another one has, if it has none of nearly the same name.

    Args:
        exclude: The classes.
        sources: Folders of pictures and files of features.

    Raises:
        UserError: Naming the class, and the one that is nearest to it.
    """
    if not exclude:
        return
    known = {str(source): classes_of(source) for source in sources}
    everywhere = sorted({label for labels, _ in known.values() for label in labels})
    for name in exclude:
        if not any(name in labels or name in without for labels, without in known.values()):
            raise UserError(
                f"--exclude {name} is no class of {' or '.join(known)}; the nearest is {nearest(name, everywhere)!r}, "
                f"all are {', '.join(everywhere)}."
            )
        for source, (labels, without) in known.items():
            alike = nearest(name, labels - {*exclude}, at_least=0.8)
            if name not in labels and name not in without and alike:
                raise UserError(
                    f"--exclude {name} is no class of {source}, which has {alike!r}: name it in both spellings, or "
                    "rename it."
                )


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
        kept = FeatureSet.load(path)
        if kept.protocol != protocol:
            raise UserError(f"{path} holds features by another protocol: {kept.protocol!r}, required is {protocol!r}.")
        if lacking := [name for name in kept.without if name not in exclude]:
            raise UserError(
                f"{path} holds features of pictures without {', '.join(lacking)}; --exclude {' '.join(lacking)} is "
                "required, which leaves them out on every side."
            )
        return without_classes(kept, exclude)
    folder = read_image_folder(path)
    folder = folder.without([name for name in exclude if any(row.label == name for row in folder.rows)])
    if not folder.files:
        raise UserError(f"{path} keeps detections only, features need pictures; draw them with --save_explicit.")
    if resize is None:
        require_one_size(folder.files)
    hashes = _hashes(folder.files)
    digest = _digest(hashes)
    labels = tuple(row.label for row in folder.rows) if any(row.label for row in folder.rows) else ()
    # The same pictures in another order are the same; those of other classes are not.
    told = str(sorted(zip(hashes, labels, strict=True))) + str(sorted(exclude)) if labels else ""
    name = hashlib.sha256(f"{protocol}/{digest}{told}".encode()).hexdigest()[:20]
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
    made = FeatureSet(torch.cat(values), protocol, digest, str(path), labels, tuple(exclude), hashes)
    if file:
        made.save(file)
    return made


def without_classes(features: FeatureSet, exclude: Sequence[str]) -> FeatureSet:
    """The features of pictures of other classes.

    Args:
        features: With the classes of their pictures.
        exclude: What is left out; what was left out before is not missed.

    Raises:
        UserError: If their classes are not known, or nothing is left.
    """
    todo = frozenset(exclude) - frozenset(features.without)
    if not todo:
        return features
    if not features.labels:
        raise UserError(
            f"Leaving classes out needs to know them: the features of {features.source} say of no picture what it "
            "shows. Name the folder instead."
        )
    kept = [at for at, label in enumerate(features.labels) if label not in todo]
    if not kept:
        raise UserError(f"{features.source} has no pictures of other classes than {', '.join(sorted(todo))}.")
    hashes = tuple(features.hashes[at] for at in kept) if features.hashes else ()
    unknown = hashlib.sha256(f"{features.digest} without {'/'.join(sorted(todo))}".encode()).hexdigest()
    return replace(
        features,
        values=features.values[kept],
        labels=tuple(features.labels[at] for at in kept),
        without=(*features.without, *sorted(todo)),
        hashes=hashes,
        digest=_digest(hashes) if hashes else unknown,
    )


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 over the files' hashes, sorted: the same pictures under other names have the same digest."""
    return _digest(_hashes(files))


def _digest(hashes: Sequence[str]) -> str:
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def _hashes(files: Sequence[Path]) -> tuple[str, ...]:
    single = []
    for file in files:
        with file.open("rb") as stream:
            single.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return tuple(single)

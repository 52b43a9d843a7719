"""The `count` largest of very many scores, exactly, without sorting or copying them.

Non-negative IEEE floats order like the integers their bits spell. So the k-th largest score is found in two passes
that only count: a histogram of the upper 16 bits finds the bucket the threshold lies in, a histogram of the lower 16
bits within that bucket finds the threshold itself. A third pass writes the mask. Everything is streamed in chunks;
beside the scores there is one chunk and the packed mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from salun_diffusers.masks.packed_bits import bytes_for, pack

# Entries per chunk: small enough to stay in the cache, and a multiple of 8 so that packed chunks join without shifting.
CHUNK = 1 << 18
# Without the sign bit: -0.0 then equals 0.0. As a threshold it is above every finite score.
_MAGNITUDE = 0x7FFFFFFF


class Threshold(NamedTuple):
    """The k-th largest score.

    Attributes:
        bits: The score's float32 bits as an integer; every score above it belongs to the k largest.
        ties: How many of the scores equal to it belong to the k largest, too.
    """

    bits: int
    ties: int


def largest(scores: Iterable[Tensor], count: int) -> Threshold:
    """Find the threshold that the `count` largest scores reach.

    Args:
        scores: Non-negative, NaN-free float32 tensors of any shape on the CPU (or int32 tensors, which stand for the
            bits of such floats). Run through twice, so this must not be an iterator.
        count: How many scores are to reach the threshold, in [0, number of scores].

    Raises:
        ValueError: If there are fewer than `count` scores.
    """
    if count == 0:
        return Threshold(_MAGNITUDE, 0)
    upper, within = _bucket((bits >> 16 for bits in _chunks(scores)), 1 << 15, count)
    lower, ties = _bucket((bits[bits >> 16 == upper] & 0xFFFF for bits in _chunks(scores)), 1 << 16, within)
    return Threshold(upper << 16 | lower, ties)


def top_bits(scores: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """Mark the `count` largest scores; of equal scores the ones in earlier tensors and positions win.

    Args:
        scores: As for `largest`, but run through three times.
        count: How many marks to set, exactly.

    Yields:
        For every tensor of `scores` its marks, packed into `(ceil(size / 8),)` bytes.

    Raises:
        ValueError: If there are fewer than `count` scores.
    """
    bits, ties = largest(scores, count)
    for tensor in scores:
        packed = torch.empty(bytes_for(tensor.numel()), dtype=torch.uint8)
        done = 0
        for chunk in _chunks([tensor]):
            marked = chunk > bits
            if ties:
                tied = (chunk == bits).nonzero().squeeze(1)[:ties]
                marked[tied] = True
                ties -= tied.numel()
            piece = pack(marked)
            packed[done : done + piece.numel()] = piece
            done += piece.numel()
        yield packed


def _chunks(scores: Iterable[Tensor]) -> Iterator[Tensor]:
    for tensor in scores:
        for chunk in tensor.reshape(-1).view(torch.int32).split(CHUNK):
            yield chunk & _MAGNITUDE


def _bucket(keys: Iterable[Tensor], buckets: int, count: int) -> tuple[int, int]:
    """Return the bucket that the `count`-th largest key is in, and its rank (from 1) among the keys there."""
    histogram = torch.zeros(buckets, dtype=torch.int64)
    for chunk in keys:
        histogram += torch.bincount(chunk, minlength=buckets)
    if count > int(histogram.sum()):
        raise ValueError(f"count must lie in [0, {int(histogram.sum())}], the number of scores; got {count}.")
    at_least = histogram.flip(0).cumsum(0)
    steps = int(torch.searchsorted(at_least, count))
    bucket = buckets - 1 - steps
    return bucket, count - int(at_least[steps] - histogram[bucket])

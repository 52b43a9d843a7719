"""Rates counted on labels: how often a concept is found, and how often the expected label is."""

from __future__ import annotations

from collections.abc import Sequence, Set

from salun_diffusers.reports.measurement import Direction, Measurement


def presence(
    name: str,
    labels: Sequence[Set[str]],
    wanted: Set[str],
    *,
    direction: Direction = "lower",
    group: str = "concept",
    protocol: str,
    command: str = "",
) -> Measurement:
    """Share of pictures in which at least one of some labels is found, with Wilson's interval.

    Args:
        name: What is measured.
        labels: Labels found in each picture.
        wanted: Labels that mean "it is there".
        direction: Which way is better.
        group: Heading in reports.
        protocol: How the labels were found.
        command: The command that measures it again.
    """
    hits = sum(bool(found & wanted) for found in labels)
    return Measurement.rate(
        name, hits, len(labels), direction=direction, group=group, protocol=protocol, command=command
    )


def share_right(
    name: str,
    labels: Sequence[Set[str]],
    expected: Sequence[str],
    *,
    direction: Direction = "higher",
    group: str = "retained",
    protocol: str,
    command: str = "",
) -> Measurement | None:
    """Share of pictures that show the label expected of them; None where nothing is expected of any.

    Args:
        name: What is measured.
        labels: Labels found in each picture.
        expected: The label each should show, or an empty text.
        direction: Which way is better.
        group: Heading in reports.
        protocol: How the labels were found.
        command: The command that measures it again.
    """
    hits = [label in found for found, label in zip(labels, expected, strict=True) if label]
    if not hits:
        return None
    return Measurement.rate(
        name, sum(hits), len(hits), direction=direction, group=group, protocol=protocol, command=command
    )

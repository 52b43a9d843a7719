"""A genetic search for a row of tokens: half die, the others are crossed and mutated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Fitness = Callable[[Tensor], Tensor]
"""The less the better, `(n,)`, of rows of token ids, `(n, k)`."""


@dataclass(frozen=True)
class Genetics:
    """Numbers of a search; the defaults are Ring-A-Bell's.

    Args:
        population: Rows at the start, half of which have children in every generation.
        generations: How often rows are judged.
        crossover: How likely a row has two children with another one.
        mutation: How likely a row loses one token to any word.
    """

    population: int = 200
    generations: int = 3000
    crossover: float = 0.5
    mutation: float = 0.25


@dataclass(frozen=True)
class Best:
    """Where a search ended.

    Args:
        ids: The best row, `(k,)`.
        history: The least value after each generation; it never rises.
    """

    ids: Tensor
    history: tuple[float, ...]


def crossed(parents: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Children of rows: a head of one and the tail of another, and the other way round.

    A cut lies before any token but never behind the last, as in the source, so that a child may be a copy.

    Args:
        parents: `(n, k)`.
        rate: How likely each has two children with a mate, which may be itself.
        generator: What is drawn: coins, then mates, then cuts, n of each.

    Returns:
        `(2 m, k)` for m rows that had children: all first children, then all second ones.
    """
    count, length = parents.shape
    chosen = torch.rand(count, generator=generator) < rate
    mates = parents[torch.randint(count, (count,), generator=generator)]
    head = torch.arange(length) < torch.randint(length, (count, 1), generator=generator)
    first, second = torch.where(head, parents, mates), torch.where(head, mates, parents)
    return torch.cat([first[chosen], second[chosen]])


def mutated(rows: Tensor, words: Tensor, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of which some have one token replaced.

    Args:
        rows: `(n, k)`.
        words: What a token may become, each as likely.
        rate: How likely a row is changed.
        generator: What is drawn: coins, then places, then words, n of each.

    Returns:
        The rows, and which of them were drawn, `(n,)`.
    """
    count, length = rows.shape
    drawn = torch.rand(count, generator=generator) < rate
    places = torch.randint(length, (count, 1), generator=generator)
    put = words[torch.randint(len(words), (count, 1), generator=generator)]
    return torch.where(drawn.unsqueeze(1), rows.scatter(1, places, put), rows), drawn


def search(fitness: Fitness, words: Tensor, length: int, genetics: Genetics, generator: torch.Generator) -> Best:
    """Look for the row with the least value.

    Rows that live on unchanged are not judged again.

    Args:
        fitness: What is to be small.
        words: Ids to choose from.
        length: k, tokens of a row.
        genetics: How long, and how wildly.
        generator: Everything random.
    """
    rows = words[torch.randint(len(words), (genetics.population, length), generator=generator)]
    values = fitness(rows)
    history = [float(values.min())]
    for _ in range(genetics.generations - 1):
        order = values.argsort(stable=True)[: max(1, genetics.population // 2)]
        parents, known = rows[order], values[order]
        children = crossed(parents, genetics.crossover, generator)
        rows, drawn = mutated(torch.cat([parents, children]), words, genetics.mutation, generator)
        rows[0], drawn[0] = parents[0], False  # The best lives on.
        drawn[len(parents) :] = True
        values = torch.cat([known, known.new_empty(len(children))])
        if drawn.any():
            values[drawn] = fitness(rows[drawn])
        history.append(float(values.min()))
    return Best(rows[int(values.argmin())], tuple(history))

"""Crossing and mutation redone by hand from the same stream, and a search whose answer is known."""

from __future__ import annotations

import itertools

import pytest
import torch

from salun_diffusers.red_team.genetic import Genetics, crossed, mutated, search
from salun_diffusers.seeds import stream

PARENTS = torch.arange(24).view(6, 4)
WORDS = torch.arange(100, 150)


def test_children_are_heads_and_tails() -> None:
    children = crossed(PARENTS, 0.5, stream(3, "crossing")).tolist()
    again = stream(3, "crossing")
    coins, mates = torch.rand(6, generator=again), torch.randint(6, (6,), generator=again)
    cuts = torch.randint(4, (6, 1), generator=again)
    first, second = [], []
    for number, parent in enumerate(PARENTS.tolist()):
        if float(coins[number]) < 0.5:
            mate, cut = PARENTS[int(mates[number])].tolist(), int(cuts[number])
            first.append(parent[:cut] + mate[cut:])
            second.append(mate[:cut] + parent[cut:])
    assert 0 < len(first) < 6
    assert children == first + second


def test_all_or_none_are_crossed() -> None:
    assert crossed(PARENTS, 0.0, stream(0, "none")).shape == (0, 4)
    assert crossed(PARENTS, 1.0, stream(0, "all")).shape == (12, 4)


def test_a_mutation_is_one_token() -> None:
    rows, drawn = mutated(PARENTS, WORDS, 0.25, stream(1, "mutation"))
    again = stream(1, "mutation")
    coins = torch.rand(6, generator=again)
    places, words = torch.randint(4, (6, 1), generator=again), torch.randint(50, (6, 1), generator=again)
    expected = PARENTS.clone()
    for number in range(6):
        if float(coins[number]) < 0.25:
            expected[number, int(places[number])] = WORDS[int(words[number])]
    assert 0 < int(drawn.sum()) < 6
    assert torch.equal(drawn, coins < 0.25)
    assert torch.equal(rows, expected)
    assert torch.equal(PARENTS, torch.arange(24).view(6, 4)), "parents stay as they were"


@pytest.fixture(scope="module")
def planted():
    """Rows are judged by how many of their tokens are not the planted ones."""
    answer, judged = torch.tensor([7, 3, 9, 1, 4]), []

    def fitness(rows: torch.Tensor) -> torch.Tensor:
        judged.append(len(rows))
        return (rows != answer).sum(dim=1).float()

    found = search(fitness, torch.arange(12), 5, Genetics(population=60, generations=60), stream(0, "planted"))
    return answer, found, judged


def test_the_planted_row_is_found(planted) -> None:
    answer, found, _ = planted
    assert found.ids.tolist() == answer.tolist()
    assert found.history[-1] == 0 < found.history[0]


def test_a_search_never_gets_worse(planted) -> None:
    history = planted[1].history
    assert len(history) == 60
    assert all(later <= earlier for earlier, later in itertools.pairwise(history))


def test_rows_that_live_on_are_not_judged_again(planted) -> None:
    """30 of 60 live on, of which a quarter is mutated: 30 + 7 rows or so, not 60."""
    judged = planted[2]
    assert judged[0] == 60
    assert 20 < sum(judged[1:]) / len(judged[1:]) < 50


def test_the_best_survives_any_mutation() -> None:
    """With every other row mutated in every generation, nothing else would keep it."""
    rows = torch.arange(30)
    found = search(lambda ids: ids.sum(dim=1).float(), rows, 3,
                   Genetics(population=10, generations=40, crossover=0, mutation=1.0), stream(2, "wild"))  # fmt: skip
    assert found.history == tuple(sorted(found.history, reverse=True))
    assert found.ids.sum() == found.history[-1]


def test_the_same_stream_is_the_same_search() -> None:
    def once() -> list[int]:
        genetics = Genetics(population=20, generations=5)
        return search(lambda ids: ids.float().var(dim=1), WORDS, 4, genetics, stream(9, "again")).ids.tolist()

    assert once() == once()

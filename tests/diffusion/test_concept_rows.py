"""Several concepts as they are named: words, or a table with three columns and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from salun_diffusers.arguments import parse
from salun_diffusers.diffusion.concept_rows import ConceptRow, asked_concepts, name_of, read_concepts
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.errors import UserError


def table(tmp_path: Path, text: str, name: str = "c.csv") -> tuple[ConceptRow, ...]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_concepts(str(tmp_path / name))


class TestWords:
    def test_one_is_a_text_and_several_are_a_tuple(self):
        assert parse(EraseConfig, ["--concept", "Van Gogh"]).concept == "Van Gogh"
        assert parse(EraseConfig, ["--concept", "nudity", "Van Gogh"]).concept == ("nudity", "Van Gogh")

    def test_are_rows_in_their_order(self):
        asked = EraseConfig(concept=("nudity", " Van  Gogh "))
        assert asked_concepts(asked) == (ConceptRow("nudity"), ConceptRow("Van Gogh"))

    def test_one_name_where_one_is_required(self):
        assert name_of(EraseConfig(concept=("star",))) == name_of(EraseConfig(concept="star")) == "star"
        with pytest.raises(UserError, match="One concept is required here, got 2"):
            name_of(EraseConfig(concept=("star", "moon")))


class TestTable:
    def test_columns_in_any_order_and_case(self, tmp_path):
        rows = table(tmp_path, '\ufeffKind, Concept,anchor\r\nstyle,Van Gogh,\r\n,"logo, red",a sign\r\n')
        assert rows == (ConceptRow("Van Gogh", "", "style"), ConceptRow("logo, red", "a sign"))

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("c.tsv", "concept\tanchor\nstar\ta heart\nmoon\t\n"),
            ("c.json", '[{"concept": "star", "anchor": "a heart"}, {"concept": "moon"}]'),
            ("c.jsonl", '{"concept": "star", "anchor": "a heart"}\n{"concept": "moon", "anchor": null}\n'),
        ],
    )
    def test_in_the_formats_of_prompt_files(self, tmp_path, name, text):
        assert table(tmp_path, text, name) == (ConceptRow("star", "a heart"), ConceptRow("moon"))

    def test_lines_are_concepts(self, tmp_path):
        assert table(tmp_path, "star\n\nVan Gogh\n", "c.txt") == (ConceptRow("star"), ConceptRow("Van Gogh"))

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("concept,anker\nstar,heart\n", "no column 'anker', only concept, anchor, kind"),
            ("concept,anchor,anchor\nstar,heart,moon\n", "one column 'anchor'"),
            ("anchor\nheart\n", "must have a column `concept`.* has anchor"),
            ("concept;anchor\nstar;heart\n", "must have a column `concept`.* has concept;anchor"),
            ("concept\n", "at least one concept"),
            ("", "must have a column `concept`.* has no columns"),
            ("concept,kind\nstar,thingy\n", "row 1 has the kind 'thingy'; known are object,"),
            ("concept,anchor\nstar,heart\n,heart\n", "row 2 has no concept"),
            ("concept\n" + "x" * 1001 + "\n", "of 1,001 characters"),
            ("concept\n" + "".join(f"c{number}\n" for number in range(101)), "at most 100 concepts; .* has 101"),
            ("concept\nstar,heart\n", "has 1 columns, row 1 has 2"),
        ],
        ids=lambda value: value[:24],
    )
    def test_refuses(self, tmp_path, text, told):
        with pytest.raises(UserError, match=told):
            table(tmp_path, text)

    def test_refuses_what_is_no_text(self, tmp_path):
        with pytest.raises(UserError, match="row 1 has '3' as its concept, where a text is required"):
            table(tmp_path, '[{"concept": 3}]', "c.json")
        with pytest.raises(UserError, match="lone surrogate"):
            table(tmp_path, '[{"concept": "\\ud800"}]', "c.json")

    def test_or_words_but_not_both(self, tmp_path):
        (tmp_path / "c.csv").write_text("concept\nstar\n")
        with pytest.raises(UserError, match="--concept has none; leave one out"):
            asked_concepts(EraseConfig(concept="moon", concepts=str(tmp_path / "c.csv")))
        assert asked_concepts(EraseConfig(concepts=str(tmp_path / "c.csv"))) == (ConceptRow("star"),)

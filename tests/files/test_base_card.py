"""Cards of bases: what they say, whatever they hold, and under which names they are kept."""

from __future__ import annotations

from types import SimpleNamespace

import huggingface_hub
import pytest

from salun_diffusers.errors import UserError
from salun_diffusers.files.base_card import (
    BaseCard,
    card_of,
    carry_cards,
    hub_card,
    is_card,
    read_card,
    restore_cards,
)
from salun_diffusers.files.pipeline_folder import public_name

FULL = """---
license: other
license_name: some-licence
license_link: https://example.org/licence
base_model:
- first/one
- second/one
tags: [a]
model-index: nonsense
---
# A model
"""


@pytest.fixture
def card(tmp_path):
    def read(text: str | bytes) -> BaseCard:
        (tmp_path / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_card(tmp_path / "README.md")

    return read


class TestRead:
    def test_all_that_it_may_say(self, card):
        assert card(FULL) == BaseCard(
            ("other",), "some-licence", "https://example.org/licence", ("first/one", "second/one")
        )

    def test_with_a_byte_order_mark_and_other_line_ends(self, card):
        assert card(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode()).license == ("other",)

    @pytest.mark.parametrize(
        "text", ["", "A card.\n", "---\n---\n", "---\nlicense: mit\nno end", "# x\n---\na: 1\n---\n"]
    )
    def test_without_metadata_it_says_nothing(self, card, text, capfd):
        assert card(text) == BaseCard()
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize(
        "value",
        ["[1, 2]", "{a: b}", "2020-01-01", '"a\\nb"', '"a\\e[31mb"', "x" * 301, "null", '""', "!!float 1", "[[[1]]]"],
    )
    def test_what_is_no_short_text_is_left_out(self, card, value):
        assert card(f"---\nlicense: {value}\nlicense_name: {value}\n---\n") == BaseCard()

    @pytest.mark.parametrize(
        "text",
        [b"---\n\xff\xfe\n---\n", "---\n- a\n- b\n---\n", "---\na: [\n---\n",
         "---\na: !!python/object:os.system\n---\n",
         "---\n" + "[" * 5_000 + "\n---\n", f"---\na: {'x' * 200_000}\n---\n"],
    )  # fmt: skip
    def test_what_is_no_card(self, card, text):
        with pytest.raises(UserError, match=r"README\.md is no model card") as refused:
            card(text)
        assert "\n" not in str(refused.value)

    def test_what_this_package_wrote(self, card):
        assert card("---\nsalun_diffusers:\n  base: demo\n---\n").made == {"base": "demo"}


class TestOf:
    def test_embedded_models_are_this_packages(self, tmp_path):
        assert card_of("demo", tmp_path, None) == BaseCard(license=("apache-2.0",))

    def test_a_damaged_card_is_told_and_says_nothing(self, tmp_path, capsys):
        (tmp_path / "README.md").write_bytes(b"---\na: [\n---\n")
        assert card_of(str(tmp_path), tmp_path, None) is None
        assert capsys.readouterr().err.startswith("note: the base's card is kept, but no licence was read from it")

    def test_the_hub_is_asked_for_metadata_alone(self, monkeypatch, tmp_path):
        told = SimpleNamespace(card_data=huggingface_hub.ModelCardData(license="openrail++"))
        asked = []
        monkeypatch.setattr(
            huggingface_hub.HfApi, "model_info", lambda api, name, revision=None: asked.append((name, revision)) or told
        )
        assert card_of("some/one", tmp_path, "v1") == BaseCard(license=("openrail++",))
        assert asked == [("some/one", "v1")] and list(tmp_path.iterdir()) == []

    def test_a_hub_that_does_not_answer(self):
        assert hub_card("some/one", None) is None  # HF_HUB_OFFLINE is set.

    def test_a_local_folder_without_a_card_asks_nobody(self, tmp_path, hub):
        assert card_of(str(tmp_path), tmp_path, None) is None and hub.asked == []

    def test_a_snapshot_of_the_hubs_cache_is_known_by_its_id(self, tmp_path, hub):
        """By its folder's name the card would be that of "133a221b8aa7… without nudity"."""
        snapshot = tmp_path / "models--some--one-x" / "snapshots" / "a1b2"
        snapshot.mkdir(parents=True)
        assert public_name(str(snapshot)) == ("some/one-x", "hub")
        assert card_of(str(snapshot), snapshot, None) is None and hub.asked == []
        elsewhere = tmp_path / "one" / "snapshots" / "a1b2"
        elsewhere.mkdir(parents=True)
        assert public_name(str(elsewhere)) == ("a1b2", "local")


def folder(place, **cards: str):
    place.mkdir()
    for name, text in cards.items():
        (place / f"{name}.md").write_text(text)
    return place


def content(place) -> dict[str, str]:
    return {path.name: path.read_text() for path in place.iterdir()}


class TestKept:
    @pytest.mark.parametrize("name", ["README.md", "BASE_README.md", "BASE_BASE_README.md"])
    def test_names(self, name):
        assert is_card(name)
        assert not is_card(f"unet/{name}") and not is_card(f"X_{name}") and not is_card(f"{name}x")

    def test_of_a_base_that_was_erased_itself(self, tmp_path):
        base = folder(tmp_path / "base", README="ours, of the first", BASE_README="the first base's", notes="notes")
        erased = folder(tmp_path / "erased", README="ours, of the first", BASE_README="the first base's")
        for _ in range(2):  # Again, with our own card written: nothing changes.
            assert carry_cards(base, erased) == "BASE_README.md"
            (erased / "README.md").write_text("ours")
            assert content(erased) == {
                "README.md": "ours", "BASE_README.md": "ours, of the first", "BASE_BASE_README.md": "the first base's",
            }  # fmt: skip
        restore_cards(erased)
        assert content(erased) == {"README.md": "ours, of the first", "BASE_README.md": "the first base's"}

    def test_of_a_base_without_one(self, tmp_path):
        base, erased = folder(tmp_path / "base"), folder(tmp_path / "erased")
        assert carry_cards(base, erased) == ""
        (erased / "README.md").write_text("---\nsalun_diffusers: {base: x}\n---\n")
        restore_cards(erased)
        assert content(erased) == {}

    def test_a_card_of_the_bases_that_was_copied_as_it_was_called_stays(self, tmp_path):
        """As folders have it that were erased before there were cards."""
        restore_cards(erased := folder(tmp_path / "erased", README="the base's"))
        assert content(erased) == {"README.md": "the base's"}

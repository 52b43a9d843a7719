"""Concepts as data: the files of the package, and a user's own, whose mistakes are told in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import tomllib
from pathlib import Path

import pytest

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.everyday import captions, content_words
from salun_diffusers.diffusion.presets.known import find_concept, presets
from salun_diffusers.diffusion.presets.listing import listing
from salun_diffusers.diffusion.presets.written import GROUPS, KINDS, all_written, filled, read_own, written
from salun_diffusers.diffusion.request import accept
from salun_diffusers.diffusion.settings import Length
from salun_diffusers.errors import UserError
from salun_diffusers.programs.erase import main

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "salun_diffusers" / "diffusion" / "presets"
OWN = """
name = "my mug"
kind = "object"
anchor = "a cup"
swaps = [["{opening} my mug", "{opening} a cup"]]
keep = ["a photo of a {thing}"]
ask = ["my mug on a desk"]
sources = ["my kitchen"]
[words]
opening = ["a photo of", "a drawing of"]
thing = ["plate", "jug"]
[numbers]
learning_rate = 2e-5
max_train_steps = 50
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mug.toml"
    path.write_text(OWN)
    return path


class TestTheFiles:
    @pytest.mark.parametrize("group", [*GROUPS, "templates"])
    def test_come_with_the_package_and_are_read(self, group: str) -> None:
        file = FOLDER / f"{group}.toml"
        ignored = subprocess.run(["git", "check-ignore", "-q", str(file)], cwd=ROOT, check=False)
        assert ignored.returncode == 1
        assert len(written(group)) == len(tomllib.loads(file.read_text(encoding="utf-8"))["concept"])

    def test_no_name_means_two_concepts(self) -> None:
        names = [name.lower() for one in all_written().values() for name in (one.name, *one.aliases)]
        assert len(names) == len(set(names))

    def test_every_kind_has_its_template(self) -> None:
        assert tuple(sorted(written("templates"))) == tuple(sorted(KINDS))
        assert all(name == one.kind for name, one in written("templates").items())

    def test_every_concept_says_where_it_comes_from(self) -> None:
        assert all(one.sources and one.about for one in all_written().values())

    def test_artists_are_many(self) -> None:
        assert len(written("artists")) >= 20
        assert all(len(one.neighbours) >= 4 for one in written("artists").values())

    @pytest.mark.parametrize(("recipe", "digest"), [("frozen_teacher", "0a0c3aae7a4f"), ("paper", "02c943d1b035")])
    def test_nudity_is_what_it_was_before_it_was_data(self, recipe: str, digest: str) -> None:
        made = find_concept(EraseConfig(concept="nudity", recipe=recipe))
        parts = (
            made.forget_prompts, made.anchor_prompts, made.retain_prompts, made.forget_evaluation,
            made.retain_evaluation, sorted(made.target_labels), made.detector, made.explicit, made.numbers,
        )  # fmt: skip
        assert hashlib.sha256(repr(parts).encode()).hexdigest().startswith(digest)

    @pytest.mark.parametrize("name", [*written("harms")])
    def test_harms_are_explicit(self, name: str) -> None:
        assert presets()[name]("frozen_teacher").explicit and presets()[name]("paper").explicit

    def test_the_categories_of_i2p_are_all_there(self) -> None:
        categories = {"hate", "harassment", "violence", "self-harm", "sexual", "shocking", "illegal activity"}
        assert set(written("harms")) == {"nudity", *categories}


class TestImagenette:
    """Unlearn-Saliency@a6e89fd, SD/train-scripts/random_label.py: c becomes (c + 1) mod 10; the other nine stay."""

    def test_each_class_becomes_the_next(self) -> None:
        names = [*written("imagenette")]
        assert len(names) == 10
        for number, name in enumerate(names):
            made = find_concept(EraseConfig(concept=name, recipe="paper"))
            assert made.forget_prompts == (f"an image of a {name}",)
            assert made.anchor_prompts == (f"an image of a {names[(number + 1) % 10]}",)
            assert set(made.retain_prompts) == {f"an image of a {other}" for other in names if other != name}
            assert made.forget_evaluation[0].prompt == f"Image of {name}"

    def test_has_the_numbers_of_the_official_command(self) -> None:
        made = [find_concept(EraseConfig(concept=name, recipe="paper")).numbers for name in written("imagenette")]
        assert sum(numbers.num_forget_images for numbers in made) == 9469, "pictures of the data set"
        for numbers in made:
            assert (numbers.length, numbers.retain_weight) == (Length(5, "epochs"), 0.5)
            assert (numbers.learning_rate, numbers.train_batch_size) == (1e-5, 8)
        by_default = find_concept(EraseConfig(concept="tench")).numbers
        assert by_default == find_concept(EraseConfig(concept="a heart", kind="object")).numbers


class TestFilled:
    def test_names_without_a_list_stay_as_they_are(self) -> None:
        assert filled([("{a} {b}",)], {"a": ("1",)}) == [("1 {b}",)]

    def test_the_first_list_varies_slowest(self) -> None:
        found = [text for (text,) in filled([("{b}{a}",)], {"a": ("1", "2"), "b": ("x", "y")})]
        assert found == ["x1", "y1", "x2", "y2"]

    def test_each_result_stands_once(self) -> None:
        assert filled([("x",), ("x",)], {}) == [("x",)]


class TestAnOwnFile:
    def test_is_a_concept(self, own: Path) -> None:
        made = find_concept(EraseConfig(concept=str(own)))
        assert made.name == "my mug"
        assert made.forget_prompts == ("a photo of my mug", "a drawing of my mug")
        assert made.anchor_prompts == ("a photo of a cup", "a drawing of a cup")
        assert made.retain_prompts[::2][:2] == ("a photo of a plate", "a photo of a jug")
        assert set(made.retain_prompts[1::2]) <= set(captions())
        assert (made.numbers.learning_rate, made.numbers.length) == (2e-5, Length(50, "steps"))
        assert [prompt.prompt for prompt in made.forget_evaluation] == ["my mug on a desk"]
        assert [prompt.prompt for prompt in made.neighbours] == ["a photo of a plate", "a photo of a jug"]

    def test_may_be_a_list_of_one_and_begin_with_a_mark(self, own: Path) -> None:
        other = own.with_name("other.toml")
        text = OWN.replace("[words]", "[concept.words]").replace("[numbers]", "[concept.numbers]")
        other.write_bytes(b"\xef\xbb\xbf" + f"[[concept]]{text}".replace("\n", "\r\n").encode())
        assert read_own(other) == read_own(own)

    def test_with_a_name_alone_has_what_its_kind_has(self, tmp_path: Path) -> None:
        (tmp_path / "a.toml").write_text('name = "Acme"\nkind = "logo"\n')
        made = find_concept(EraseConfig(concept=str(tmp_path / "a.toml")))
        assert made.forget_prompts == find_concept(EraseConfig(concept="Acme", kind="logo")).forget_prompts

    def test_neighbours_stay_in_the_words_of_their_kind(self, own: Path) -> None:
        own.write_text(
            'name = "Ann Doe"\nkind = "artist"\nswaps = [["a {thing} by Ann Doe", "a {thing}"]]\n'
            'neighbours = ["Monet", "Klimt"]\n[words]\nthing = ["sheet"]\n'
        )
        made = find_concept(EraseConfig(concept=str(own)))
        assert {"a painting by Monet", "a village by Klimt"} <= set(made.retain_prompts)
        assert not any("{" in prompt for prompt in (*made.retain_prompts, *made.forget_prompts))
        assert [one.prompt for one in made.neighbours] == ["a painting by Monet", "a painting by Klimt"]
        assert dict(made.told) == {"kind": "artist, as its file says", "beside": "Monet, Klimt (as written)"}

    def test_takes_the_flags_for_its_prompts(self, own: Path, retain_file: Path) -> None:
        asked = EraseConfig(concept=str(own), anchor_prompt=("a glass",), retain_prompts=str(retain_file))
        made = find_concept(asked)
        assert set(made.anchor_prompts) == {"a glass"}
        assert made.retain_prompts[:4:2] == ("a photo of a square", "a star")

    def test_explicit_ones_say_so(self, own: Path) -> None:
        own.write_text("explicit = true\n" + OWN)
        assert find_concept(EraseConfig(concept=str(own))).explicit

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("name = ", "is no TOML"),
            ("name = 'a'\nname = 'b'", "is no TOML"),
            ("\x00", "is no TOML"),
            ("x = " + "[" * 5000, "is no TOML"),
            ("x = " + "9" * 5000, "is no TOML"),
            ("kind = 'object'", "a concept needs a `name"),
            ("name = 3", "a concept needs a `name"),
            ("name = 'x'\nkinds = 'object'", "has no key 'kinds'; the nearest is `kind`"),
            ("name = 'x'\nkind = 'thing'", "`kind` must be one of object, person,"),
            ("name = 'x'\nswaps = [['a', 'b', 'c']]", "must be pairs"),
            ("name = 'x'\nswaps = [['a b', 'A  B']]\nask = ['a']", "must differ"),
            ("name = 'x'\nswaps = 'a'", "`swaps` must be a list of pairs, found str"),
            ("name = 'x'\nkeep = []", "`keep` is an empty list"),
            ("name = 'x'\nkeep = [1]", "`keep` must be a text, found int"),
            ("name = 'x'\nabout = '" + "y" * 2000 + "'", "1 to 1,000 printable"),
            ('name = "a\\u0007"', "printable"),
            ("name = 'x'\nexplicit = 'yes'", "`explicit` must be true or false, found str"),
            ("name = 'x'\nlabels = ['y']", "`labels` are those of a `detector`"),
            ("name = 'x'\ndetector = 'eyes'", "detector"),
            ("name = 'x'\npaper = ['one']", "`paper` must be two prompts"),
            ("name = 'x'\nanchor = 'an x'", "names the concept 'x' itself"),
            ("name = 'x'\nswaps = [['{who} x', 'y']]", "{who}, which nothing fills"),
            ("name = 'x'\nask = ['{who}']", "{who}, which nothing fills"),
            ("name = 'x'\npaper = ['{opening} x', 'y']", "{opening}, which nothing fills"),
            ("name = 'x'\n[words]\nname = ['y']", "`words` must have names of their own"),
            ("name = 'x'\n[numbers]\nlr = 1", "`numbers` has no 'lr'"),
            ("name = 'x'\n[numbers]\nlearning_rate = -1.0", "--learning_rate must be"),
            ("[[concept]]\nname = 'x'\n[[concept]]\nname = 'y'", "must hold one concept"),
            ("concept = 3", "must be a list of tables"),
        ],
    )
    def test_mistakes_are_told_in_one_line_with_exit_code_2(
        self, tmp_path: Path, content: str, told: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "bad.toml"
        file.write_text(content)
        assert main(["--concept", str(file), "--pretrained_model_name_or_path", "demo", "--dry_run"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert told in error

    def test_too_many_prompts_are_refused_before_they_are_made(self, tmp_path: Path) -> None:
        lists = "\n".join(f"w{number} = [{', '.join(repr(str(i)) for i in range(30))}]" for number in range(4))
        places = " ".join(f"{{w{number}}}" for number in range(4))
        (tmp_path / "big.toml").write_text(f"name = 'x'\nswaps = [['{places}', 'y']]\n[words]\n{lists}\n")
        with pytest.raises(UserError, match="makes 810,000 prompts"):
            read_own(tmp_path / "big.toml")

    @pytest.mark.parametrize("name", ["missing.toml", "folder.toml"])
    def test_what_is_no_file_is_told(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "folder.toml").mkdir()
        with pytest.raises(UserError, match=r"does not exist|is a folder"):
            find_concept(EraseConfig(concept=str(tmp_path / name)))

    def test_a_kind_beside_a_file_is_refused(self, own: Path) -> None:
        with pytest.raises(UserError, match="says its own `kind`"):
            find_concept(EraseConfig(concept=str(own), kind="object"))


class TestListing:
    def test_of_nothing_names_every_preset_and_kind(self) -> None:
        lines = listing("").splitlines()
        assert len(lines) == len(presets()) + len(KINDS)
        assert all(any(name in line for line in lines) for name in (*presets(), *KINDS))

    def test_of_a_word_only_those_that_have_it(self) -> None:
        assert [line.split()[1] for line in listing("EXPLICIT").splitlines()] == [
            one.name.split()[0] for one in written("harms").values()
        ]
        assert "Gustav Klimt" in listing("klimt") and listing("klimt").count("\n") == 1

    def test_of_an_unknown_word_says_what_to_do(self) -> None:
        assert "--concept takes any words" in listing("xyzzy")

    def test_is_for_the_program_only(self) -> None:
        with pytest.raises(UserError, match="list_concepts is for the program"):
            accept(EraseConfig(list_concepts=""))

    def test_is_a_flag_that_needs_no_concept(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--list_concepts"]) == 0
        assert capsys.readouterr().out == listing("")
        assert main(["--list_concepts", "monet"]) == 0
        assert capsys.readouterr().out == listing("monet")


@pytest.mark.parametrize("name", [*all_written()])
def test_what_stays_never_names_the_concept(name: str) -> None:
    """Not for harms, whose names are no words of prompts."""
    one = dataclasses.asdict(all_written()[name])
    if name not in written("harms") and not one["swaps"]:
        made = find_concept(EraseConfig(concept=name))
        assert not any(content_words(name) <= content_words(prompt) for prompt in made.retain_prompts)
        assert not any(content_words(name) <= content_words(prompt) for prompt in made.anchor_prompts)

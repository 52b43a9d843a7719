"""From a dataclass to a command line, and what is refused on the way."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest

from salun_diffusers.__main__ import PROGRAMS
from salun_diffusers.arguments import ANY_SEED, check, parse, setting
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.nudity import nudity
from salun_diffusers.diffusion.settings import resolve
from salun_diffusers.errors import UserError
from salun_diffusers.programs.program import Program


@dataclass(frozen=True)
class Settings:
    """Of every type that a field may have."""

    name: str = setting("x", "A name.")
    words: tuple[str, ...] = setting((), "Some words.")
    how_many: int | None = setting(None, "How many; at most 100 % of them.", minimum=1)
    share: float = setting(0.5, "A share.", above=0, maximum=1, group="Shares")
    loud: bool = setting(False, "Whether to shout.")
    kind: Literal["a", "b"] | None = setting(None, "Which kind.")
    factor: float | None = setting(None, "A factor.")
    seed: int = setting(0, "A seed.", maximum=ANY_SEED)


class TestParse:
    def test_defaults(self):
        assert parse(Settings, []) == Settings()

    def test_every_type(self):
        line = "--name y --words one two --how_many 3 --share 1 --loud --kind b"
        assert parse(Settings, line.split()) == Settings("y", ("one", "two"), 3, 1.0, True, "b")

    def test_text_is_utf_8(self):
        with pytest.raises(UserError, match="must be UTF-8"):
            parse(Settings, ["--name", "caf\udce9"])

    def test_home_is_written_out(self, monkeypatch):
        monkeypatch.setenv("HOME", "/somewhere")
        assert parse(Settings, ["--name=~/a"]).name == "/somewhere/a"

    def test_whole_numbers_have_64_bits(self):
        with pytest.raises(UserError, match="64 bits"):
            parse(Settings, ["--how_many", "1" + "0" * 400])

    def test_hyphens_will_do(self):
        assert parse(Settings, ["--how-many", "3"]).how_many == 3

    def test_lists_become_tuples_so_that_configs_stay_hashable(self):
        assert hash(parse(Settings, ["--words", "one"]))

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("--unknown 3", "unrecognized arguments: --unknown 3"),
            ("--how_m 3", "unrecognized arguments"),
            ("--how_many three", "invalid whole number value: 'three'"),
            ("--how_many 0", "--how_many must be at least 1, got 0"),
            ("--share much", "invalid number value: 'much'"),
            ("--share 0", "--share must be above 0 and at most 1, got 0.0"),
            ("--share nan", "got nan"),
            ("--share 50", "got 50.0. It is a fraction: 0.5 is 50 %."),
            ("--share 5000", "got 5000.0."),
            ("--kind c", "invalid choice: 'c'"),
            ("--name", "expected one argument"),
        ],
    )
    def test_refuses(self, line, words):
        with pytest.raises(UserError) as refusal:
            parse(Settings, line.split())
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)

    def test_help(self, capsys):
        with pytest.raises(SystemExit) as end:
            parse(Settings, ["--help"], description="What it does.")
        shown = capsys.readouterr().out
        assert end.value.code == 0
        for words in ("What it does.", "--how_many", "--how-many", "at most 100 % of them.", "Shares:", "default: 0.5"):
            assert words in shown


class TestCheck:
    """Python callers get the same answers as the command line."""

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"name": Path("x")}, "--name must be a text, got"),
            ({"words": "one two"}, "--words must be a tuple of texts, got 'one two'"),
            ({"words": (1,)}, "--words must be a tuple of texts, got (1,)"),
            ({"how_many": 1.5}, "--how_many must be a whole number or None, got 1.5"),
            ({"how_many": True}, "--how_many must be a whole number or None, got True"),
            ({"share": "0.5"}, "--share must be a number, got '0.5'"),
            ({"share": float("inf")}, "got inf"),
            ({"loud": "yes"}, "--loud must be True or False, got 'yes'"),
            ({"kind": "c"}, "--kind must be one of 'a', 'b' or None, got 'c'"),
        ],
    )
    def test_refuses(self, settings, words):
        with pytest.raises(UserError) as refusal:
            check(Settings(**settings))
        assert words in str(refusal.value)

    def test_accepts(self):
        check(Settings(words=["one"], share=1, how_many=1))
        check(EraseConfig())


def settings_of(module: ModuleType) -> list[type]:
    """The flags of a program: its settings, and dataclasses of settings that it parses itself."""
    program = getattr(module, "main", None)
    own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    kinds = [*([program.settings] if isinstance(program, Program) else []), *filter(dataclasses.is_dataclass, own)]
    return [
        kind for kind in dict.fromkeys(kinds) if all("group" in field.metadata for field in dataclasses.fields(kind))
    ]


class TestNoNumberWithoutEnd:
    """Every number of every program has a largest value, so that no work is begun that never ends."""

    PROGRAMS: ClassVar[list[str]] = [
        *(f"salun_diffusers.programs.{name.replace(' ', '_').replace('-', '_')}" for name in PROGRAMS),
        *(
            path.stem
            for path in (Path(__file__).parent.parent / "scripts").glob("*.py")
            if "setting(" in path.read_text()
        ),
    ]

    @pytest.mark.parametrize("name", PROGRAMS)
    def test_a_billion(self, script: Callable[[str], ModuleType], name: str) -> None:
        kinds = settings_of(importlib.import_module(name) if "." in name else script(name))
        assert kinds, name
        for kind in kinds:
            hints, fields = get_type_hints(kind), dataclasses.fields(kind)
            bare = [field.name for field in fields if "positional" in field.metadata]
            chosen = [get_args(hints[name])[0] if get_origin(hints[name]) is Literal else "x" for name in bare]
            for field in fields:
                types = {hints[field.name], *get_args(hints[field.name])} & {int, float}
                if not types:
                    continue
                billion = str(10**20) if field.name.endswith("seed") else str(10**9)
                with pytest.raises(UserError) as told:
                    parse(kind, [*chosen, f"--{field.name}", billion if int in types else "1e39"])
                words = str(told.value)
                assert words.startswith(f"--{field.name} must be ") and "\n" not in words, words
                assert "at most" in words, words

    def test_it_walks_over_all(self) -> None:
        assert len(self.PROGRAMS) >= 12 + 8 and "fuzz" in self.PROGRAMS

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ({"how_many": 10**6 + 1}, "--how_many must be at most 1,000,000, got 1000001; more would have no end."),
            ({"factor": 1e39}, "--factor must be at most 1e+38, got 1e+39"),
            ({"factor": -1e39}, "--factor must be at most 1e+38, got -1e+39"),
            ({"factor": float("inf")}, "--factor must be a finite number, got inf"),
        ],
    )
    def test_words(self, flags: dict[str, float], words: str) -> None:
        with pytest.raises(UserError) as told:
            check(Settings(**flags))
        assert words in str(told.value)

    def test_accepts_the_largest(self) -> None:
        check(Settings(how_many=10**6, factor=-1e38, seed=2**63 - 1))


class TestEraseConfig:
    def test_defaults_are_the_papers_where_the_paper_has_one(self):
        asked = EraseConfig(concept="nudity")
        settings = resolve(asked, nudity("paper").numbers)
        assert (settings.mask, settings.mask_ratio, settings.saliency_guidance) == ("saliency", 0.5, 7.5)
        assert asked.pretrained_model_name_or_path == "CompVis/stable-diffusion-v1-4"

    def test_every_setting_has_a_help_text_of_whole_sentences(self):
        for field in dataclasses.fields(EraseConfig):
            assert field.metadata["help"].endswith("."), field.name

    def test_numbers_have_a_range(self):
        for field in dataclasses.fields(EraseConfig):
            if field.type.split(" |")[0] in ("int", "float"):
                assert field.metadata["minimum"] is not None or field.metadata["above"] is not None, field.name

    def test_names_are_those_of_diffusers_scripts(self):
        names = {field.name for field in dataclasses.fields(EraseConfig)}
        assert names >= {
            "pretrained_model_name_or_path", "revision", "variant", "cache_dir", "output_dir", "seed", "learning_rate",
            "train_batch_size", "num_train_epochs", "max_train_steps", "gradient_accumulation_steps", "lr_scheduler",
            "gradient_checkpointing", "lr_warmup_steps", "adam_beta1", "adam_beta2", "adam_weight_decay", "report_to",
            "adam_epsilon", "max_grad_norm", "mixed_precision", "checkpointing_steps", "checkpoints_total_limit",
            "resume_from_checkpoint", "allow_tf32",
        }  # fmt: skip

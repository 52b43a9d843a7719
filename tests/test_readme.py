"""What the pages say: commands are commands, flags exist, Python compiles, files are there, the README is short."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from salun_diffusers.__main__ import PROGRAMS
from salun_diffusers.arguments import parse
from salun_diffusers.diffusion import own_reading
from salun_diffusers.diffusion.presets.known import presets
from salun_diffusers.pictures.own_pictures import OwnPicture

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pipelines/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]
SCRIPTS = ("benchmark", "benchmark_classification", "benchmark_erasure", "erasure_tables", "measure_demo_model",
           "measure_digits_model", "train_demo_model", "train_digits_detector")  # fmt: skip
LAUNCHER = {"-q": 0, "-m": 0, "--multi_gpu": 0, "--num_processes": 1, "--use_fsdp": 0, "--fsdp_version": 1}
"""What `accelerate launch` may be told before the program, and how many words belong to it."""


def fenced(text: str, *languages: str) -> list[str]:
    """The blocks of some languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [block for language, block in found if language in languages]


def typed(text: str) -> list[str]:
    """Every line of the blocks that are there to be typed."""
    blocks = fenced(text, "", "bash")
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def named(text: str) -> list[str]:
    """Commands within sentences, as far as they are whole."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    begun = ("salun ", "accelerate launch ", "python ", "make ", "pip ")
    return [span for span in spans if span.startswith(begun) and "…" not in span]


def words_of(line: str) -> list[str]:
    """A command without what the shell reads: variables, comments, what comes after it."""
    words = shlex.split(line.split(";")[0], comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return words[:-1] if words[-1] == "&" else words


def module_of(name: str) -> Any:
    """The module of a sub-command."""
    return importlib.import_module(f"salun_diffusers.programs.{name.replace(' ', '_').replace('-', '_')}")


@cache
def settings_of(script: str) -> Any:
    """The settings of a file of scripts/, or of erase.py."""
    if script == "erase":
        return module_of("erase").main.settings
    module = importlib.import_module(script)  # pytest has scripts/ on its path
    own = (value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__)
    configs = (value for value in own if getattr(value, "__name__", "").endswith("Config"))
    return module.main.settings if hasattr(module.main, "settings") else next(configs)


def read(words: list[str]) -> tuple[Any, list[str]]:
    """The settings of the program that a command names, and the words it is given."""
    if words[0] == "salun" or words[:3] == ["python", "-m", "salun_diffusers"]:
        given = words[1 if words[0] == "salun" else 3 :]
        name = next((name for name in (given[0], " ".join(given[:2])) if name in PROGRAMS), "")
        assert name, words
        return module_of(name).main.settings, given[len(name.split()) :]
    if words[:2] == ["accelerate", "launch"]:
        words, module = words[2:], False
        while words[0] in LAUNCHER:
            module |= words[0] == "-m"
            words = words[1 + LAUNCHER[words[0]] :]
        if module:
            assert words[0] == "salun_diffusers", words
            return read(["salun", *words[1:]])
        words = ["python", *words]
    assert words[0] == "python", words
    path = Path(words[1])
    assert (ROOT / path).is_file() and path.suffix == ".py", path
    return settings_of(path.stem), words[2:]


def check_others(words: list[str]) -> bool:
    """Whether this is a command of make or pip, or asks for help; its targets and extras must exist."""
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{re.escape(words[1])}:", makefile, flags=re.MULTILINE), words
        for variable in words[2:]:
            assert re.search(rf"^{variable.split('=')[0]} \?=", makefile, flags=re.MULTILINE), words
    elif words[0] == "pip":
        assert words[1] == "install" and len(words) == 3, words
        extras = re.fullmatch(r"\.(?:\[([\w-]+)\])?", words[2])
        assert extras, words
        assert extras[1] is None or extras[1] in PROJECT["project"]["optional-dependencies"], words
    return words[0] in ("make", "pip") or words[1:] in (["--help"], ["--version"])


def all_lines(source: Any) -> list[Any]:
    """Parameters of a test: the page and a line of it."""
    return [pytest.param(line, id=f"{page}:{line[:60]}") for page, text in TEXTS.items() for line in source(text)]


@pytest.mark.parametrize("line", all_lines(typed))
def test_commands_of_blocks_can_be_typed(line: str) -> None:
    words = words_of(line)
    if not check_others(words):
        settings, given = read(words)
        parse(settings, given)


@pytest.mark.parametrize("line", all_lines(named))
def test_commands_of_sentences_name_programs_and_their_flags(line: str) -> None:
    words = words_of(line)
    if words[-1] in ("launch", "-m", "salun_diffusers"):  # what comes before a program
        return
    if not check_others(words):
        settings, given = read(words)
        if any(word.startswith("--") for word in given):
            parse(settings, given)


def erasures() -> Iterator[str]:
    for text in TEXTS.values():
        for line in [*typed(text), *named(text)]:
            words = words_of(line)
            if "erase" in words or "erase.py" in words:
                given = words[next(i for i, word in enumerate(words) if word in ("erase", "erase.py")) + 1 :]
                if "--concept" in given:
                    yield shlex.join(given)


@pytest.mark.parametrize("line", dict.fromkeys(erasures()))
def test_erasures_would_run(line: str, tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small Stable Diffusion where they name no model: the plan is made, nothing is fetched."""
    (tmp_path / "keep.txt").write_text("a painting by Monet\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (number, 90, 0)).save(tmp_path / "photos" / f"{number}.png")
    written = fenced(TEXTS["docs/concepts.md"], "toml")[0].replace("my mug", "a heart").replace("a cup", "a star")
    (tmp_path / "my_mug.toml").write_text(written, encoding="utf-8")
    classes = []
    for number, name in enumerate(("n03417042", "n03425413")):
        folder = tmp_path / "imagenette2-160" / "train" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / "0.png")
        classes.append(OwnPicture(name, partial(Image.open, folder / "0.png"), label=name))
    monkeypatch.setattr(own_reading, "data_set_pictures", lambda *_: classes)
    words = shlex.split(line)
    if "--pretrained_model_name_or_path" not in words:
        words += ["--pretrained_model_name_or_path", str(tiny_pipeline)]
    words = ["digits" if word == "runs/cifar10/pipeline" else word for word in words]  # Trained by the line before.
    looked = {"--target_forget", "--red_team"} & set(words)  # Whoever searches or attacks looks by one.
    detector = [] if looked else ["--detector", "none"]
    assert module_of("erase").main([*words, *detector, "--dry_run"]) == 0


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_classifiers_of_a_page_are_those_that_it_trains(page: str) -> None:
    """A folder that no line leaves is found out after the hours that the lines before it take."""
    lines = [shlex.split(line) for line in [*typed(TEXTS[page]), *named(TEXTS[page])]]
    left = {
        words[words.index("--output_dir") + 1]
        for words in lines
        if words[:2] == ["salun", "train-classifier"] and "--output_dir" in words
    }
    used = {words[words.index("--classifier") + 1] for words in lines if "--classifier" in words}
    assert {folder for folder in used if folder.startswith("runs/")} <= left


def test_the_first_commands_are_there() -> None:
    assert {"make demo", "make test"} <= set(named(README))
    assert typed(README)[0].startswith("salun erase")
    assert len(set(erasures())) >= 5


def test_every_program_is_on_some_page() -> None:
    told = " ".join(line for text in TEXTS.values() for line in [*typed(text), *named(text)])
    assert not [name for name in PROGRAMS if f"salun {name}" not in told]


@pytest.mark.parametrize("page", TEXTS)
def test_flags_named_on_a_page_exist(page: str) -> None:
    known = {"help", "version", "rehearse"} | {word.lstrip("-") for word in LAUNCHER}
    for settings in (*(module_of(name).main.settings for name in PROGRAMS), *map(settings_of, SCRIPTS)):
        for field in dataclasses.fields(settings):
            known |= {field.name, str(field.metadata["alias"])}
    flags = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9_]*)", TEXTS[page]))
    assert flags <= known, flags - known


@pytest.mark.parametrize(
    ("page", "block"), [(page, block) for page, text in TEXTS.items() for block in fenced(text, "python")]
)
def test_python_compiles(page: str, block: str) -> None:
    compile(block, page, "exec")


def headings(text: str) -> set[str]:
    """Where a link into a page may point, by the rule that GitHub makes them."""
    found: Counter[str] = Counter()
    anchors = set()
    for title in re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    ):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        anchors.add(slug if not found[slug] else f"{slug}-{found[slug]}")
        found[slug] += 1
    return anchors


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[page]):
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), target
        if anchor:
            assert anchor in headings(place.read_text(encoding="utf-8")), target


def files() -> set[str]:
    """All files and folders that a page may name, from the root on."""
    rooms = (path for room in ("salun_diffusers", "scripts", "tests") for path in (ROOT / room).rglob("*"))
    return {str(path.relative_to(ROOT)) for path in (*ROOT.iterdir(), *rooms)}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_files_named_on_the_map_exist(page: str) -> None:
    left_by_a_run, refused = {"pipeline/", "samples/", "work/"}, {"utils.py"}
    named_files = set(re.findall(r"`([\w/.]+(?:\.py|/))`", TEXTS[page])) - left_by_a_run - refused
    there = {f"/{path}/" for path in files()}
    assert not {name for name in named_files if not any(path.endswith(f"/{name.strip('/')}/") for path in there)}


def test_modules_of_the_changelog_are_where_it_says() -> None:
    rows = re.findall(r"^\| `.*\| (.*) \|$", TEXTS["CHANGELOG.md"], flags=re.MULTILINE)
    modules = {name for row in rows for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", row)}
    assert len(modules) > 30
    assert not {name for name in modules if f"salun_diffusers/{name.replace('.', '/')}.py" not in files()}


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 130
    assert len(README.split()) <= 1_400
    assert sum(line.startswith("|") for line in lines) <= 12
    assert max(map(len, lines)) <= 160


def test_every_preset_with_a_detector_is_named() -> None:
    """All others are listed by `--list_concepts`."""
    for name, made in presets().items():
        if name != "sexual" and made("paper").detector != "none":
            assert f"`{name}`" in README


def test_the_built_description_has_no_link_that_only_a_checkout_can_follow() -> None:
    """The substitutions of pyproject.toml; all else is the README's."""
    text = README
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert not re.search(r"\]\((?!https?:)", text) and "![" not in text
    assert "[SalUn](https://arxiv.org/abs/2310.12508)" in text
    assert fenced(text, "", "python") == fenced(README, "", "python")


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, flags=re.MULTILINE)[1] == PROJECT["project"]["version"]

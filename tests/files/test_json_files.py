"""One reader for JSON: whatever it is given, an object or one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from salun_diffusers.errors import UserError
from salun_diffusers.files.json_files import parse_json, read_json, read_object


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1,]", "nul",
     "\xff\xfe", '{"a": NaN}', "Infinity", "1e999", '{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}',
     "[" * 200_000, '{"a":' * 50_000, "9" * 10_000, '"\\ud800', "\x00"],
    ids=str,
)  # fmt: skip
def test_what_is_no_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.json is damaged") as caught:
        read_json(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, words in (("pipe", "a pipe"), ("link", "not there"), ("none", "does not exist"), (".", "a folder"),
                        ("x" * 300, "cannot be read")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            read_json(tmp_path / name)


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**11)
    with pytest.raises(UserError, match="must be smaller than 64 MB"):
        read_json(tmp_path / "sparse")
    (tmp_path / "a").write_text("[1]")
    with pytest.raises(UserError, match="must be smaller"):
        read_json(tmp_path / "a", limit=2)
    assert read_json(tmp_path / "a", limit=3) == [1]


def test_what_is_not_an_object(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[1]")
    with pytest.raises(UserError, match="object is required, found list"):
        read_object(tmp_path / "a")


def test_configurations_of_schedulers_may_be_infinite() -> None:
    assert parse_json(b'{"a": -Infinity}', constants=float) == {"a": -float("inf")}


def test_what_is_json_comes_back(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, True, "é\u2028"], "b": {"c": -1e-300, "d": 2**63}}
    (tmp_path / "a").write_text(json.dumps(content))
    assert read_object(tmp_path / "a") == content

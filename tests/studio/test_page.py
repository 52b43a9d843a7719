"""The page as Gradio serves it, asked over HTTP as a browser asks it; and the program around it.

Gradio itself runs in a process of its own: it leaves event loops open, which would be warnings of other tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from salun_diffusers.errors import UserError
from salun_diffusers.programs import studio
from salun_diffusers.studio import page as module
from salun_diffusers.studio.page import require_gradio

SENT = ["a photo of a circle", 5, 2, 2.0, 1.0, False]


def fetched(address: str, data: object = None, method: str | None = None, **headers: str) -> bytes:
    """The answer to a request, without any proxy."""
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json", **headers}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return bytes(answer.read())


def drawn(address: str, sent: list[Any]) -> list[str]:
    """What the page shows after Draw, one panel after the other."""
    begun = json.loads(fetched(f"{address}gradio_api/call/draw", {"data": sent}))
    told = fetched(f"{address}gradio_api/call/draw/{begun['event_id']}").decode()
    events = re.findall(r"event: (\w+)\ndata: (.*)", told)
    assert events[-1][0] == "complete", told[-500:]
    return [json.loads(data)[0] for event, data in events if event == "generating"]


def pictures(panel: str) -> list[str]:
    return re.findall(r'<img src="(data:[^"]+)"', panel)


@pytest.mark.gradio
class TestServed:
    def test_two_pictures_differ_and_strength_0_is_the_base(self, served):
        base, erased = pictures(drawn(served.address, SENT)[-1])
        assert base != erased
        assert pictures(drawn(served.address, [*SENT[:4], 0, False])[-1]) == [base, base]

    def test_no_file_is_written_while_explicit_pictures_are_drawn(self, served):
        """Neither by us nor by Gradio, which keeps pictures and histories as files where it is let."""
        drawn(served.address, SENT)  # Modules that are imported then have their bytecode written.
        before = served.written()
        *_, panel = drawn(served.address, ["a naked man", 6, 2, 2.0, 1.0, False])
        *_, shown = drawn(served.address, ["a naked man", 6, 2, 2.0, 1.0, True])
        assert "Blurred, since the prompt says “naked”." in panel and "Blurred" not in shown
        assert len(pictures(panel)) == len(pictures(shown)) == 2 and not {*pictures(panel)} & {*pictures(shown)}
        assert served.written() == before and before, "the watch sees files, and none of these"

    @pytest.mark.parametrize(
        ("sent", "words"),
        [
            (["", *SENT[1:]], "A prompt is required"),
            (["x", None, *SENT[2:]], "The seed must be a number, got None."),
        ],
    )
    def test_mistakes_are_told_on_the_page(self, served, sent, words):
        (panel,) = drawn(served.address, sent)
        assert words in panel and 'role="alert"' in panel

    def test_nothing_is_kept_or_told_to_others(self, served):
        config = json.loads(fetched(f"{served.address}config"))
        assert config["analytics_enabled"] is False and config.get("run_history") is not True
        assert config["footer_links"] == []
        for kind in ("image", "gallery", "file", "dataset"):  # They are kept as files.
            assert kind not in {component["type"] for component in config["components"]}
        with pytest.raises(urllib.error.HTTPError):
            fetched(f"{served.address}monitoring")

    def test_every_control_has_its_label(self, served):
        config = json.loads(fetched(f"{served.address}config"))
        controls = [one for one in config["components"] if one["type"] in
                    ("textbox", "dropdown", "slider", "number", "checkbox", "button", "accordion")]  # fmt: skip
        assert len(controls) == 10
        for one in controls:
            assert one["props"].get("value" if one["type"] == "button" else "label"), one

    def test_other_sites_may_not_ask(self, served):
        """A page of elsewhere that is open in the same browser."""
        asked = urllib.request.Request(
            f"{served.address}gradio_api/call/draw", json.dumps({"data": SENT}).encode(),
            {"Content-Type": "application/json", "Origin": "https://elsewhere.example"},
        )  # fmt: skip
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=60) as answer:
                assert answer.headers.get("Access-Control-Allow-Origin") is None
        except urllib.error.HTTPError as refusal:
            assert refusal.code == 403

    def test_large_files_are_not_taken(self, served):
        with pytest.raises(urllib.error.HTTPError):
            fetched(f"{served.address}gradio_api/upload", data=["x" * 5_000])

    def test_fonts_are_the_systems(self, served):
        text = fetched(f"{served.address}theme.css").decode() + fetched(served.address).decode()
        assert "fonts.googleapis" not in text and "system-ui" in text

    def test_ctrl_c_ends_it_without_a_word(self, served):
        """The last test of the page."""
        served.process.send_signal(signal.SIGINT)
        assert served.process.communicate(timeout=60) == ("", "") and served.process.returncode == 0
        with pytest.raises(urllib.error.URLError):
            fetched(served.address)


class TestBuilt:
    @pytest.mark.parametrize(
        ("classes", "prompts", "expected"),
        [
            ([], ("a star", "a heart"), ("Textbox", "a star", "Prompt")),
            ([], (), ("Textbox", "", "Prompt")),
            (["6", "7"], ("7",), ("Dropdown", "7", "Class")),
            (["6", "7"], ("a star",), ("Dropdown", "6", "Class")),
        ],
    )
    def test_words_or_one_of_the_classes(self, classes, prompts, expected):
        made = {kind: lambda *given, kind=kind, **how: (kind, how.get("value", given[0]), how["label"])
                for kind in ("Textbox", "Dropdown")}  # fmt: skip
        easel = SimpleNamespace(classes=classes, shown=SimpleNamespace(prompts=prompts))
        assert module._prompt_control(SimpleNamespace(**made), easel) == expected

    def test_names_are_no_markup(self):
        assert module._plain("*a* <b>") == "\\*a\\* \\<b\\>"

    def test_a_proxy_does_not_come_between(self, monkeypatch):
        monkeypatch.setenv("no_proxy", "internal,127.0.0.1")
        monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
        monkeypatch.setenv("GRADIO_RUN_HISTORY", "True")
        monkeypatch.setenv("NO_PROXY", "")
        module._set_environment()
        assert os.environ["no_proxy"].split(",") == ["internal", "127.0.0.1", "::1", "localhost"]
        assert (os.environ["GRADIO_ANALYTICS_ENABLED"], os.environ["GRADIO_RUN_HISTORY"]) == ("False", "False")

    def test_without_gradio_its_extra_is_named(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"pip install 'salun-diffusers\[studio\]'"):
            require_gradio()


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of a refused command."""

    def attempt(*words: object) -> str:
        assert studio.main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return attempt


@pytest.fixture
def unserved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Nothing is built or served; gives what would have been."""
    served: list[tuple[Any, ...]] = []
    page = SimpleNamespace(close=lambda **how: served.append(("closed",)))
    monkeypatch.setattr(module, "build", lambda easel, numbers: page)
    monkeypatch.setattr(module, "free_port", lambda host, port: port)
    monkeypatch.setattr(module, "serve", lambda page, *how: served.append(how) or "there")
    return served


@pytest.mark.gradio
class TestProgram:
    @pytest.mark.parametrize(
        ("flags", "how", "words"),
        [
            ([], ("127.0.0.1", 7860, False), ""),
            (["--share"], ("127.0.0.1", 7860, True), "--share makes the page public"),
            (["--host", "0.0.0.0", "--port", "7861"], ("0.0.0.0", 7861, False), "nobody is asked for a password"),
        ],
    )
    def test_serves_until_ctrl_c(self, erased_run, monkeypatch, capsys, unserved, flags, how, words):
        """And warns before others are let in."""

        def stop() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(studio, "wait", stop)
        assert studio.main([str(erased_run), *flags]) == 0
        out, err = capsys.readouterr()
        assert (out, unserved) == ("studio    there\n", [how, ("closed",)])
        assert err == "" if not words else err.startswith("warning: ") and err.count("\n") == 1 and words in err

    def test_a_port_that_is_taken(self, told, erased_run, monkeypatch):
        monkeypatch.setattr("salun_diffusers.studio.opened.opened", None)  # It is known before anything is loaded.
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            line = told(erased_run, "--port", taken.getsockname()[1])
        assert "cannot be listened at (Address already in use); another --port, or --port 0" in line

    def test_an_address_that_is_not_this_machines(self):
        with pytest.raises(UserError, match=r"--host 192\.0\.2\.1 --port 0 cannot be listened at"):
            module.free_port("192.0.2.1", 0)

    def test_what_gradio_cannot_do_is_told(self):
        def launch(**how: object) -> None:
            raise RuntimeError("no tunnel\nto be had")

        with pytest.raises(UserError, match=r"The page cannot be served at 127\.0\.0\.1:\d+: no tunnel to be had"):
            serve_by(launch)

    @pytest.mark.parametrize("words", ["nowhere/at/all", "demo", "--port 70000 x", "--explicit ? x", ""])
    def test_bad_input(self, told, tmp_path, monkeypatch, words):
        monkeypatch.chdir(tmp_path)
        told(*words.split())
        assert list(tmp_path.iterdir()) == []

    def test_a_run_whose_pipeline_is_damaged(self, told, erased_run, tmp_path):
        run = shutil.copytree(erased_run, tmp_path / "run")
        weights = run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-7])
        assert str(weights) in told(run)

    def test_without_gradio(self, told, erased_run, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert "salun-diffusers[studio]" in told(erased_run)


def serve_by(launch: Callable[..., object]) -> str:
    """Serve a page that is launched so, without Gradio."""
    themes = SimpleNamespace(Base=lambda **how: SimpleNamespace(set=lambda **colours: None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gradio", SimpleNamespace(themes=themes))
        return module.serve(SimpleNamespace(launch=launch), "127.0.0.1", module.free_port("127.0.0.1", 0), share=False)

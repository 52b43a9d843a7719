"""A headless Chromium for tests, told what to do through a pipe in the words of its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Chromium:
    """One page of one browser."""

    def __init__(self, commands: int, answers: int) -> None:
        """Open an empty page.

        Args:
            commands: What is written there, the browser reads.
            answers: What it says is read here.
        """
        self._commands, self._answers, self._read, self._number = commands, answers, b"", 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self._ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values: Any) -> Any:
        """Say one word of the protocol to the page."""
        return self._ask(method, values, {"sessionId": self._session})

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        told = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, code: str, seconds: float = 60) -> None:
        """Wait until an expression is something."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({code})"):
            assert time.monotonic() < end, f"{code} is nothing after {seconds} s; the page says {self.complaints}"
            time.sleep(0.05)

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """The size of the window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )  # fmt: skip

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, **more: Any) -> None:
        """Press a key; Enter, Tab and the like by their names and numbers."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        shared = {"key": key, "code": key if key != " " else "Space", "windowsVirtualKeyCode": code, **more}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _ask(self, method: str, values: dict[str, Any], to: dict[str, str] | None = None) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": values, **(to or {})}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, (method, told["error"])
                return told["result"]
            self._note(told)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], 60)
            assert ready, "Chromium says nothing for a minute"
            data = os.read(self._answers, 1 << 16)
            assert data, "Chromium has ended"
            self._read += data
        message, _, self._read = self._read.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told

    def _note(self, told: dict[str, Any]) -> None:
        method, values = told.get("method"), told.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(values["exceptionDetails"])[:400])
        elif method == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.complaints.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")


@contextmanager
def chromium(folder: Path) -> Iterator[Chromium]:
    """Start a browser, and end it.

    Args:
        folder: An empty one, for its profile.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    assert program, "Chromium is required: install chromium, or leave the slow tests out."
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()

    def as_it_expects() -> None:
        first, second = os.dup(to_read), os.dup(back_write)  # Out of the way of 3 and 4.
        os.dup2(first, 3)
        os.dup2(second, 4)

    words = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
        f"--user-data-dir={folder}", "about:blank",
    ]  # fmt: skip
    browser = subprocess.Popen(
        words, close_fds=False, preexec_fn=as_it_expects, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(to_read)
    os.close(back_write)
    try:
        yield Chromium(to_write, back_read)
    finally:
        browser.terminate()
        browser.wait(30)
        os.close(to_write)
        os.close(back_read)

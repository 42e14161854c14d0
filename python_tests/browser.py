"""A headless Chromium for tests, driven over a pipe by the DevTools protocol: no package is needed for it."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

TIMEOUT = 60.0
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--remote-debugging-pipe", "--noerrdialogs",
)  # fmt: skip


class Page(NamedTuple):
    """What a page did while it loaded."""

    requests: list[str]
    """every address it asked for, its own first"""
    complaints: list[str]
    """errors and warnings: of scripts, of the console, of the browser about the page"""


class Browser:
    """A running Chromium, and the tab of the page that was opened last."""

    def __init__(self, process: subprocess.Popen[bytes], commands: int, answers: int) -> None:
        self._process, self._commands, self._answers = process, commands, answers
        self._last, self._buffer, self._session = 0, b"", ""
        self._events: list[dict[str, Any]] = []

    def open(self, address: str, *, dark: bool = False, width: int = 1000) -> Page:
        """Load a page in a new tab, and watch it for another moment."""
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        failure = self.call("Page.navigate", url=address).get("errorText")
        assert failure is None, f"{address}: {failure}"
        deadline = time.monotonic() + TIMEOUT
        while not self._of("Page.loadEventFired"):
            self._receive(deadline)
        with contextlib.suppress(TimeoutError):
            quiet = time.monotonic() + 0.5
            while True:
                self._receive(quiet)
        return Page(
            [event["request"]["url"] for event in self._of("Network.requestWillBeSent")],
            [json.dumps(event["exceptionDetails"]) for event in self._of("Runtime.exceptionThrown")]
            + [json.dumps(event["args"]) for event in self._of("Runtime.consoleAPICalled")]
            + [event["entry"]["text"] for event in self._of("Log.entryAdded")],
        )

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, as JSON has it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _of(self, method: str) -> list[dict[str, Any]]:
        """The events of one kind in this tab."""
        return [
            event["params"]
            for event in self._events
            if event["method"] == method and event.get("sessionId") == self._session
        ]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise TimeoutError("the browser said nothing more")
            piece = os.read(self._answers, 1 << 20)
            if not piece:
                raise RuntimeError(f"the browser ended with {self._process.wait()}")
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
        return message


@contextlib.contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile. Without one the test is skipped; with REQUIRE_BROWSER=1 it fails."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None or shutil.which("bash") is None:
        message = f"no browser: none of {', '.join(_NAMES)} is installed (Debian: apt-get install chromium)"
        pytest.fail(message) if os.environ.get("REQUIRE_BROWSER") == "1" else pytest.skip(message)
    # The protocol wants descriptors 3 and 4. Those that the shell copies there must be others.
    near, far = [], []
    for ends in (os.pipe(), os.pipe()[::-1]):  # (it reads, we write), (it writes, we read)
        far.append(fcntl.fcntl(ends[0], fcntl.F_DUPFD, 10))
        near.append(ends[1])
        os.close(ends[0])
    redirected = f'exec "$@" 3<&{far[0]} 4>&{far[1]}'
    process = subprocess.Popen(
        ["bash", "-c", redirected, "bash", program, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=far,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for descriptor in far:
        os.close(descriptor)
    try:
        yield Browser(process, *near)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for descriptor in near:
            os.close(descriptor)

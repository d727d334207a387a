"""A headless Chromium, spoken with over two pipes in its own protocol (DevTools): no driver and no package needed.

    with Browser(find_browser()) as browser: browser.open(url); browser.value("document.title"); browser.click("#x")

What the page logs as an error, or throws, is kept in ``errors``, and what it asks for over the network in ``requests``.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIME_LIMIT_S = 60.0


def find_browser() -> str | None:
    """The path of a Chromium; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in a browser of its own."""

    def __init__(self, executable: str, *, width: int = 1366, height: int = 900, dark: bool = False) -> None:
        self.errors: list[str] = []
        """What went wrong in the page since it was opened, a line each."""
        self.requests: list[str] = []
        """URLs that were asked for since the page was opened."""
        self._executable, self._size, self._dark = executable, (width, height), dark
        self._number = 0
        self._rest = b""
        self._loaded = False

    def __enter__(self) -> Browser:
        """Starts the browser."""
        read_theirs, self._write = os.pipe()
        self._read, write_theirs = os.pipe()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = (
            "--headless --remote-debugging-pipe --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run "
            "--disable-background-networking --disable-extensions --mute-audio"
        )
        size = f"--window-size={self._size[0]},{self._size[1]}"
        # The browser reads commands from descriptor 3 and writes to 4.
        redirected = f'exec "$0" "$@" 3<&{read_theirs} 4>&{write_theirs}'
        arguments = [*flags.split(), size, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, self._executable, *arguments],
            pass_fds=(read_theirs, write_theirs),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_theirs)
        os.close(write_theirs)
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def open(self, url: str) -> None:
        """Loads a page, to its end."""
        self.errors.clear()
        self.requests.clear()
        self._loaded = False
        self._call("Page.navigate", url=url)
        limit = time.monotonic() + TIME_LIMIT_S
        while not self._loaded:
            self._take(limit)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is, as plain data. Raises RuntimeError for what it throws."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(_thrown(found["exceptionDetails"]))
        return found["result"].get("value")

    def click(self, selector: str, index: int = 0) -> None:
        """Clicks with the mouse on the middle of an element, which is scrolled to."""
        self._mouse(selector, index, "mousePressed", "mouseReleased")

    def hover(self, selector: str, index: int = 0) -> None:
        """Moves the mouse there."""
        self._mouse(selector, index)

    def key(self, name: str) -> None:
        """Presses a key that has a name, such as ArrowRight or Tab."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """A PNG of what is seen, or of the whole page."""
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole))
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _mouse(self, selector: str, index: int, *buttons: str) -> None:
        element = f"document.querySelectorAll({json.dumps(selector)})[{index}]"
        self.value(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.value(f"{element}.getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        self._call("Input.dispatchMouseEvent", type="mouseMoved", **at)
        for kind in buttons:
            self._call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Raises RuntimeError for what the browser refuses, TimeoutError when it does not answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        limit = time.monotonic() + TIME_LIMIT_S
        while True:
            answer = self._take(limit)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                found: dict[str, Any] = answer["result"]
                return found

    def _take(self, limit: float) -> dict[str, Any]:
        """The next message; notes what it tells."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, limit - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser said nothing for {TIME_LIMIT_S:.0f} s")
            received = os.read(self._read, 1 << 20)
            if not received:
                raise RuntimeError("the browser ended")
            self._rest += received
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(_thrown(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(told["entry"]["text"])


def _thrown(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])

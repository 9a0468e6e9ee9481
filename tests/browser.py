"""Pages as a headless Chromium shows them, driven over its DevTools protocol."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VIEWS = {"phone": (360, 780), "desktop": (1280, 900)}  # width and height in CSS pixels
SCHEMES = ("light", "dark")
# What is wrong with a page, and what tells its colours.
LOOK = """(() => {
    const images = [...document.images], root = document.documentElement
    const wide = [...document.querySelectorAll("body *")].filter(element =>
        !element.closest(".scroll") && element.getBoundingClientRect().right > root.clientWidth + 1)
    return {
        images: images.length, missing: images.filter(image => !image.complete || !image.naturalWidth).length,
        overflow: root.scrollWidth - root.clientWidth, wide: wide.map(element => element.outerHTML.slice(0, 80)),
        dark: matchMedia("(prefers-color-scheme: dark)").matches, height: root.scrollHeight,
        colour: getComputedStyle(document.querySelector("p, td, h1")).color,
    }
})()"""


def program() -> str | None:
    """The browser, or None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """A tab. `events` keeps what the browser reported: messages on the console, failures, requests."""

    def __init__(self, into: int, out: int):
        self.into, self.out, self.rest, self.number = into, out, b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters, **self.session}
        os.write(self.into, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self, seconds: float = 120) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            assert select.select([self.out], [], [], max(end - time.monotonic(), 0))[0], "the browser does not answer"
            new = os.read(self.out, 1 << 20)
            assert new, "the browser has gone"
            self.rest += new
        first, self.rest = self.rest.split(b"\0", 1)
        return json.loads(first)

    def show(self, path: Path, view: str, scheme: str) -> dict[str, Any]:
        """Load a file; what `LOOK` finds, "problems" of the console and "requests" other than for the page itself."""
        width, height = VIEWS[view]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": view == "phone"}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        found = self.call("Runtime.evaluate", expression=LOOK, returnByValue=True)["result"]["value"]
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Network.loadingFailed")
        found["problems"] = [event for event in self.events if event.get("method") in kinds]
        urls = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        found["requests"] = [url for url in urls if url != path.resolve().as_uri() and not url.startswith("data:")]
        return found

    def screenshot(self, path: Path) -> None:
        """PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A tab of a browser of its own, which ends with the block."""
    (to_read, into), (out, to_write) = os.pipe(), os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, to_write)]  # it expects them as 3 and 4
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                "bash", "-c", 'in=$0 out=$1; shift; exec "$@" 3<&$in 4>&$out', *map(str, ends), program(), "--headless",
                "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
                "--remote-debugging-pipe", "about:blank",
            ],
            pass_fds=ends, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (to_read, to_write, *ends):
            os.close(end)
        try:
            yield Page(into, out)
        finally:
            process.terminate()
            process.wait(30)
            os.close(into)
            os.close(out)

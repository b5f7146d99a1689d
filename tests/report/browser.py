"""A headless Chromium, spoken to over its debugging pipe: no driver is needed."""

import fcntl
import json
import os
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path
from types import TracebackType
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")


def chromium() -> str | None:
    """The program that CHROMIUM names, or one that is installed."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One page at a time; `messages` holds what its console says, errors of scripts included."""

    def __init__(self, folder: Path) -> None:
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        program = chromium()
        assert program is not None
        flags = (
            "--headless", "--no-sandbox", "--single-process", "--no-zygote", "--disable-gpu",
            "--use-gl=angle", "--use-angle=swiftshader", "--hide-scrollbars",
            "--remote-debugging-pipe", f"--user-data-dir={folder}",
        )  # fmt: skip

        # The browser listens on descriptor 3 and answers on 4; out of the way first, in case they are these.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_child, from_child)]

        def place() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, *flags],
                pass_fds=(3, 4),
                preexec_fn=place,  # noqa: PLW1509
                stdout=log,
                stderr=log,
            )
        for end in ends:
            os.close(end)
        os.close(to_child)
        os.close(from_child)
        self._buffer, self._number = b"", 0
        self.messages: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        method, told = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(told["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.messages.append(json.dumps(told["args"])[:500])
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.messages.append(json.dumps(told["entry"])[:500])
        return message

    def run(self, script: str) -> Any:
        """The value of a script in the page; promises are awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, path: Path, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Load a page, and wait until its figures are drawn."""
        self.messages.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.run(
            """new Promise((done) => {
              const look = () => document.readyState === "complete" && location.protocol === "file:" &&
                (!document.getElementById("figures") || document.body.dataset.drawn) ? done() : setTimeout(look, 50);
              look();
            })"""
        )

    def picture(self, path: Path, top: int = 0, height: int | None = None) -> None:
        """A screenshot of the page, or of a part of it."""
        width, whole = self.run("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": top, "width": width, "height": height or whole, "scale": 1}
        found = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(b64decode(found["data"]))

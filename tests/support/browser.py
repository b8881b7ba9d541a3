"""A real headless Chromium driven over its DevTools protocol, with what textual-serve brings along (aiohttp)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


class Tab:
    """One page: its DevTools socket, and every byte that its own web sockets received."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.received = ""
        """What the page's web sockets got, as text."""
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for message in self._socket:
            data = json.loads(message.data)
            if "id" in data:
                self._answers.pop(data["id"]).set_result(data)
            elif data.get("method") == "Network.webSocketFrameReceived":
                frame = data["params"]["response"]
                payload = frame["payloadData"]
                if frame["opcode"] == 2:
                    payload = base64.b64decode(payload).decode("utf-8", "replace")
                self.received += payload

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools call; returns its result."""
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        result: dict[str, Any] = (await asyncio.wait_for(answer, 20))["result"]
        return result

    async def press(self, key: str) -> None:
        """Press one printable key, where the page has the focus."""
        await self.call("Page.bringToFront")
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=key, key=key)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def click(self, x: int, y: int) -> None:
        """Press and release the mouse at a place of the page."""
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def until(self, words: str, seconds: float = 120.0) -> None:
        """Wait until the page's web sockets have received `words`."""
        for _ in range(int(seconds / 0.1)):
            if words in self.received:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(
            f"the page did not receive {words!r} within {seconds:g} s; it has {len(self.received)} letters"
        )

    async def picture(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])

    async def close(self) -> None:
        """Stop listening."""
        self._listening.cancel()
        await self._socket.close()


class Browser:
    """`async with Browser(folder) as browser: tab = await browser.open(url)`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # a socket lies there, whose path must be short
        self._temporary = tempfile.mkdtemp(prefix="tw-chromium-")
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._port = 0

    async def __aenter__(self) -> Browser:
        assert PROGRAM is not None, "these tests need Debian's chromium: apt-get install chromium"
        self._process = await asyncio.create_subprocess_exec(
            PROGRAM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--window-size=1280,900",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--remote-debugging-port=0",
            f"--user-data-dir={self._folder}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            # its own settings and caches, not those of who runs the tests
            env={**os.environ, "HOME": str(self._folder), "TMPDIR": self._temporary},
        )
        announced = self._folder / "DevToolsActivePort"
        for _ in range(1200):
            if announced.exists() and announced.read_text().strip():
                break
            await asyncio.sleep(0.1)
        self._port = int(announced.read_text().splitlines()[0])
        self._session = aiohttp.ClientSession()
        return self

    async def open(self, url: str) -> Tab:
        """A new tab on `url`."""
        assert self._session is not None
        async with self._session.put(f"http://127.0.0.1:{self._port}/json/new?about:blank") as answer:
            address = (await answer.json())["webSocketDebuggerUrl"]
        tab = Tab(await self._session.ws_connect(address, max_msg_size=0))
        await tab.call("Network.enable")
        await tab.call("Page.enable")
        await tab.call("Page.navigate", url=url)
        return tab

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
        if self._process is not None:
            self._process.terminate()
            await self._process.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)

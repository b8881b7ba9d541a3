"""`tunewatch serve` in a real headless Chromium: a live frame, a key that works, a second tab of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from runner.metrics import MetricsWriter
from runner.rundir import RunDir
from tests.support.browser import Browser
from tests.support.sshd import free_port


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A run directory with twenty steps."""
    made = RunDir.create("stage5", tmp_path / "runs")
    made.open_log()
    writer = MetricsWriter(made.metrics)
    writer.write("start", max_steps=100, rule=None)
    for step in range(1, 21):
        writer.write("train", step=step, loss=3.0 / step, step_s=0.1)
    return made


@pytest.mark.slow
async def test_the_screen_lives_in_a_browser_takes_keys_and_serves_a_second_tab(tmp_path: Path, run: RunDir):
    port = free_port("127.0.0.1")
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tui", "serve", str(run.path), "--port", str(port),
        env={**os.environ, "TUNEWATCH_HOME": str(tmp_path / "home"), "LANG": "C.UTF-8"},
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(1200):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.1)
        async with Browser(tmp_path / "chromium") as browser:
            first = await browser.open(f"http://127.0.0.1:{port}/")
            await first.until("20/100")
            MetricsWriter(run.metrics).write("train", step=21, loss=0.14, step_s=0.1)
            await first.until("21/100")
            await first.click(300, 150)
            await asyncio.sleep(0.5)
            await first.press("?")
            await first.until("Leave tunewatch; the run goes on")
            second = await browser.open(f"http://127.0.0.1:{port}/")
            await second.until("21/100")
            assert "Leave tunewatch" not in second.received, "each tab has a process of its own"
            assert len(await first.picture()) > 20_000
            await first.close()
            await second.close()
    finally:
        server.terminate()
        await server.wait()
    assert not (run.path / "stop.request").exists()

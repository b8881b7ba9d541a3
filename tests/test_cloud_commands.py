"""The commands of renting as a person or a script meets them: JSON shapes, exit codes, a sentence for each mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fake_vast import FakeVast, faults
from tests.support.rented import Laptop, real_world


@dataclass
class Terminal:
    fake: FakeVast
    laptop: Laptop

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        given = {
            **os.environ, "NO_PROXY": "127.0.0.1,localhost", "TUNEWATCH_HOME": str(self.laptop.home),
            "TUNEWATCH_VAST_URL": self.fake.url, "VAST_API_KEY": self.fake.world.account_key, **env,
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "tui", *words],
            env=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=self.laptop.folder,
        )

    def document(self, *words: str, code: int = 0, **env: str) -> Any:
        done = self(*words, "--json", **env)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVast]:
    with real_world(tmp_path_factory.mktemp("boxes")) as fake:
        yield fake


@pytest.fixture
def tunewatch(real: FakeVast, tmp_path: Path) -> Terminal:
    return Terminal(real, Laptop(real, tmp_path))


def test_offers_carry_quotes(tunewatch: Terminal) -> None:
    document = tunewatch.document("offers", "--budget", "5", "--disk", "60")
    assert len(document["offers"]) == len(document["quotes"]) > 100
    quote = document["quotes"][0]
    assert set(quote) >= {"offer_id", "gpu", "dph", "hours", "usd", "fits", "speed", "speed_sd", "setup_h", "notes"}
    assert quote["usd"]["opt"] <= quote["usd"]["base"] <= quote["usd"]["pess"]
    assert 0 <= quote["p_under_budget"] <= 1
    assert document["offers"][0]["quote"]["offer_id"] == quote["offer_id"]


def test_a_machine_that_was_rented_before_is_quoted_with_the_setup_it_took(tunewatch: Terminal) -> None:
    from remote.journal import Journal

    journal = Journal(tunewatch.laptop.home)
    for phase, seconds in (("boot", 1800.0), ("first log line", 1800.0)):
        journal.add_phase(5, "image", phase, seconds)
    quotes = {row["offer_id"]: row for row in tunewatch.document("offers", "--disk", "60")["quotes"]}
    assert quotes["5"]["setup_h"] == pytest.approx(1.0)
    assert quotes["6"]["setup_h"] != pytest.approx(1.0)


@pytest.mark.slow
def test_launch_instances_kill_and_reconcile_speak_the_documented_json(tunewatch: Terminal) -> None:
    recipe = str(tunewatch.laptop.recipe)
    launched = tunewatch.document("launch", recipe, "--offer", "1", "--budget", "2", "--deadline", "1h", "--yes")
    assert (launched["ok"], launched["state"]) == (True, "running")
    assert {"name", "ok", "detail"} <= set(launched["steps"][0])
    assert launched["target"].startswith(f"vast:{launched['instance_id']}:")
    (row,) = tunewatch.document("instances")
    assert set(row) >= {"id", "label", "state", "gpu", "dph", "usd_so_far", "ours", "billing"}
    assert (row["id"], row["ours"], row["state"]) == (launched["instance_id"], True, "running")
    assert row["billing"] == pytest.approx(row["dph"])
    (known,) = tunewatch.document("runs")
    assert known["instance_id"] == launched["instance_id"]
    watched = tunewatch.document("watch", launched["run"], "--once")
    assert watched["run"]["state"] in ("running", "starting")
    killed = tunewatch.document("kill", launched["run"], "--yes", "--timeout", "10")
    assert (killed["ok"], killed["state"]) == (True, "destroyed")
    assert tunewatch.document("reconcile")["left"] == []
    past = tunewatch.document("instances", "--history")
    assert past[0]["state"] == "destroyed"
    assert tunewatch.document("kill", launched["run"], "--yes")["state"] == "destroyed", "once more is harmless"
    assert [box for box in tunewatch.fake.world.living() if box.label.endswith(launched["run"])] == []


@pytest.mark.slow
def test_every_mistake_has_its_exit_code_and_its_sentence(tunewatch: Terminal) -> None:
    recipe = str(tunewatch.laptop.recipe)
    cases = [
        (("launch", recipe, "--offer", "99999", "--yes"), {}, 3, "no longer on the market"),
        (("launch", recipe, "--offer", "2", "--max-price", "0.1", "--yes"), {}, 4, "over the cap"),
        (("launch", recipe, "--offer", "2"), {}, 2, "--yes"),
        (("launch", recipe, "--offer", "2", "--nproc", "2", "--yes"), {}, 2, "starts its processes itself"),
        (("launch", "stage5", "--offer", "2", "--nproc", "64", "--yes"), {}, 4, "one process each"),
        (("launch", "no-such-recipe", "--offer", "2", "--yes"), {}, 3, "no-such-recipe"),
        (("launch", recipe, "--offer", "2", "--deadline", "soon", "--yes"), {}, 2, "soon"),
        (("launch", recipe, "--offer", "2", "--yes"), {"TUNEWATCH_READ_ONLY": "1"}, 4, "read-only"),
        (("kill", "1", "--yes"), {"TUNEWATCH_READ_ONLY": "1"}, 4, "read-only"),
        (("kill", "12", "--yes"), {}, 3, "no instance 12"),
        (("kill", "stage5/nothing", "--yes"), {}, 3, "No rented box"),
        (("offers",), {"VAST_API_KEY": "wrong-key-12345"}, 6, "refused the key"),
        (("instances",), {"TUNEWATCH_VAST_URL": "http://127.0.0.1:9"}, 5, "cannot be reached"),
        (("adopt", "12"), {}, 3, "no instance 12"),
    ]
    for words, env, code, sentence in cases:
        done = tunewatch(*words, **env)
        assert done.returncode == code, (words, done.stderr)
        assert sentence in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr
        assert "wrong-key-12345" not in done.stderr
    assert tunewatch.fake.world.living() == []


@pytest.mark.slow
def test_unconfirmed_is_exit_code_7_and_says_that_it_may_still_bill(tunewatch: Terminal) -> None:
    from remote.journal import Journal
    from remote.provider import Order

    made = tunewatch.laptop.provider.create(Order(3, "tunewatch:abcdef:mine/3:00000001", "img", 60, "true"))
    Journal(tunewatch.laptop.home).put_box(
        made, run="mine/3", label="tunewatch:abcdef:mine/3:00000001", state="running"
    )
    left = tunewatch("reconcile")
    assert left.returncode == 0, "the journal knows it"
    liar = faults.json_fault("says yes, does nothing", 200, {"success": True})
    tunewatch.fake.faults.add("destroy", liar, times=1000)
    # two looks of the kill are enough to see that the box stays listed
    settings = tunewatch.laptop.home / "settings.toml"
    settings.write_text("[kill]\nproof = 3\n")
    done = tunewatch("kill", str(made), "--yes", "--json")
    settings.unlink()
    tunewatch.fake.faults.clear()
    assert done.returncode == 7
    assert json.loads(done.stdout)["state"] == "unconfirmed"
    assert tunewatch.document("instances")[0]["state"] == "unconfirmed"
    assert tunewatch.document("kill", str(made), "--yes")["state"] == "destroyed"


def test_an_orphan_makes_reconcile_say_so_until_somebody_decides(tunewatch: Terminal) -> None:
    from remote.provider import Order

    made = tunewatch.laptop.provider.create(Order(4, "tunewatch:ffffff:stage5/1:00000001", "img", 60, "true"))
    left = tunewatch.document("reconcile", code=7)
    assert [row["instance"] for row in left["left"]] == [made]
    done = tunewatch.document("reconcile", "--destroy", "--yes")
    assert done["destroyed"] == [made]
    assert tunewatch.document("reconcile")["ok"] is True

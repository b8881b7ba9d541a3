"""F20 on the Hub: a runner that was thought dead and comes back writes nothing over its successor, and ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner import rundir
from runner.errors import RunExit
from runner.study.hub import Uploader, fetch_newest, upload
from runner.study.hub_fence import FencedError, claim, epoch_at
from tests.support.study import save_checkpoint, tiny_model, train
from tests.test_study_hub import Reports, api, checkpoint, hub, uploader

__all__ = ["api", "hub"]
pytestmark = pytest.mark.study

RUN = "demo-20260215-104518"


def under(hub: Any, prefix: str = RUN) -> dict[str, bytes]:
    return {path: body for path, body in hub.files.items() if path.startswith(f"{prefix}/checkpoint-")}


def test_f20_after_the_move_the_old_runner_can_put_nothing_under_the_runs_prefix(
    hub: Any, api: Any, tmp_path: Path
) -> None:
    upload(api, "me/repo", RUN, checkpoint(tmp_path / "old", 10))
    claim(api, "me/repo", RUN, 1)
    before = under(hub)
    with pytest.raises(FencedError, match="epoch 1 on the Hub is newer than 0"):
        upload(api, "me/repo", RUN, checkpoint(tmp_path / "old", 20))
    assert under(hub) == before
    upload(api, "me/repo", RUN, checkpoint(tmp_path / "new", 20), epoch=1)
    assert fetch_newest("me/repo", "demo", tmp_path / "got", api=api).name == "checkpoint-20"
    # a second move fences the first
    claim(api, "me/repo", RUN, 2)
    with pytest.raises(FencedError):
        upload(api, "me/repo", RUN, checkpoint(tmp_path / "new", 30), epoch=1)


def test_f20_a_move_between_the_look_and_the_commit_is_seen_by_the_commit_itself(
    hub: Any, api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the old runner are uploaded already, and no commit of theirs comes to be."""
    create = api.create_commit
    moved: list[int] = []

    def late(*given: Any, **more: Any) -> Any:
        if not moved:
            moved.append(1)
            claim(api, "me/repo", RUN, 1)
        return create(*given, **more)

    monkeypatch.setattr(api, "create_commit", late)
    with pytest.raises(FencedError):
        upload(api, "me/repo", RUN, checkpoint(tmp_path, 20))
    assert under(hub) == {}


def test_f20_between_files_and_marker_the_old_checkpoint_stays_torn(
    hub: Any, api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = api.create_commit

    def then_moved(*given: Any, **more: Any) -> Any:
        done = create(*given, **more)
        if more["commit_message"].endswith("files"):
            claim(api, "me/repo", RUN, 1)
        return done

    monkeypatch.setattr(api, "create_commit", then_moved)
    with pytest.raises(FencedError):
        upload(api, "me/repo", RUN, checkpoint(tmp_path, 20))
    assert f"{RUN}/checkpoint-20/manifest.json" not in hub.files


def test_commits_of_other_runs_in_the_same_repository_only_cost_another_try(
    hub: Any, api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = api.create_commit
    others = iter(range(3))

    def beside(*given: Any, **more: Any) -> Any:
        number = next(others, None)
        if number is not None:
            claim(api, "me/repo", f"other-{number}", 1)
        return create(*given, **more)

    monkeypatch.setattr(api, "create_commit", beside)
    upload(api, "me/repo", RUN, checkpoint(tmp_path, 20))
    assert f"{RUN}/checkpoint-20/manifest.json" in hub.files


def test_a_run_that_never_moved_leaves_no_marker_and_one_that_moved_says_so_at_its_start(
    hub: Any, api: Any, tmp_path: Path
) -> None:
    upload(api, "me/repo", RUN, checkpoint(tmp_path, 10))
    assert not [path for path in hub.files if path.endswith("epoch.json")]
    work = Uploader("me/repo", RUN, Reports(), api=api, pauses_s=(0.0,), epoch=3)
    assert work.close(600)
    assert epoch_at(api, "me/repo", RUN, "main") == 3, "before there was anything to upload"


@pytest.mark.slow
def test_f20_a_zombie_is_told_in_words_stops_with_12_and_overwrites_nothing(hub: Any, api: Any, tmp_path: Path) -> None:
    """No laptop reaches it: what it reads on the Hub is all it knows."""
    base = save_checkpoint(tiny_model(), tmp_path / "base")
    claim(api, "me/repo", RUN, 1)
    reports = Reports()
    told: list[str] = []

    def fenced(why: str) -> None:
        told.append(why)
        rundir.write_stop_request(tmp_path / "run", f"fenced: {why}")

    work = uploader(api, reports, on_fenced=fenced)
    outcome = train(base, tmp_path / "run", "max_steps=100000", uploader=work)
    assert work.close(600)
    assert outcome.code is RunExit.LIMIT
    assert "epoch 1 on the Hub is newer than 0" in outcome.reason
    assert told[0].startswith("the run goes on elsewhere")
    assert reports.of("done") == []
    assert "goes on elsewhere" in next(r["detail"] for r in reports if r["status"] == "failed")
    assert under(hub) == {}

"""Uploads behind the training's back: marker last, newest wins, faults survived, and back again on an empty machine."""

import json
import threading
import time

import pytest

from runner import rundir
from runner.config import load_recipe
from runner.errors import NotFoundError, UsageError
from runner.study.fetch import fetch_weights
from runner.study.hub import Uploader, fetch_newest, upload
from runner.study.resume import resume_point
from tests.support.hub import hub_stand_in
from tests.support.study import history, losses, save_checkpoint, tiny_model, train

pytestmark = pytest.mark.study

QUICK = (0.0, 0.0, 0.0)


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine; huggingface_hub reads these when it is imported, so its constants are set as well."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_stand_in() as (stand_in, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield stand_in


@pytest.fixture
def api(hub):
    from huggingface_hub import HfApi, constants

    return HfApi(endpoint=constants.ENDPOINT, token="hf_not_a_real_token")


def checkpoint(root, step, size=6000, text="{}"):
    """A sealed folder with one large and one small file."""
    folder = root / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes([step % 256]) * size)
    (folder / "trainer_state.json").write_text(text)
    rundir.write_manifest(folder)
    return folder


class Reports(list):
    """What an uploader said, and a way to wait for it."""

    def __init__(self):
        super().__init__()
        self.changed = threading.Condition()

    def __call__(self, **fields):
        with self.changed:
            self.append(fields)
            self.changed.notify_all()

    def of(self, status):
        return [f["step"] for f in self if f["status"] == status]

    def wait(self, status, count=1):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.of(status)) >= count, timeout=600), list(self)


def uploader(api, reports, **more):
    return Uploader("me/repo", "demo-20260215-104518", reports, api=api, pauses_s=QUICK, **more)


def test_the_marker_is_committed_last_and_alone(hub, api, tmp_path):
    revision = upload(api, "me/repo", "demo-1", checkpoint(tmp_path, 20))
    assert hub.messages == ["demo-1/checkpoint-20: files", "demo-1/checkpoint-20: whole"]
    assert "demo-1/checkpoint-20/manifest.json" not in hub.snapshots[1]
    assert len(hub.snapshots[1]) == 2
    assert "demo-1/checkpoint-20/manifest.json" in hub.snapshots[2]
    assert hub.sha(2) == revision


def test_what_arrived_damaged_does_not_count_as_uploaded(hub, api, tmp_path):
    folder = checkpoint(tmp_path, 20)
    (folder / "model.safetensors").write_bytes(b"y" * 6000)  # not what the manifest says
    with pytest.raises(UsageError, match="another hash"):
        upload(api, "me/repo", "demo-1", folder)


@pytest.mark.parametrize(
    "faults",
    [
        [("/preupload/", 503), ("/preupload/", 503)],
        [("/commit/", 500)],
        [("/blob/", 502)],
        [("/commit/", 429)],
        [("/preupload/", "cut")],
        [("/blob/", "cut"), ("/commit/", "cut")],
        [("/api/repos/create", 504), ("/tree/", 500)],
    ],
    ids=str,
)
def test_what_can_pass_is_tried_again_until_the_checkpoint_is_whole(hub, api, tmp_path, faults, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub's own pauses
    hub.faults = list(faults)
    reports = Reports()
    folder = checkpoint(tmp_path, 20)
    work = uploader(api, reports)
    work.offer(folder)
    reports.wait("done")
    assert work.close(600)
    assert hub.faults == [], "every fault was met"
    assert reports.of("failed") == []
    assert json.loads(hub.files["demo-20260215-104518/checkpoint-20/manifest.json"])["step"] == 20


@pytest.mark.parametrize(("status", "says"), [(401, "set HF_TOKEN"), (403, "may not write")])
def test_no_access_fails_at_once_with_what_to_do_and_is_not_asked_again(hub, api, tmp_path, status, says):
    hub.always = ("/api/", status)
    reports = Reports()
    work = uploader(api, reports)
    work.offer(checkpoint(tmp_path, 20))
    reports.wait("failed")
    asked = len(hub.requests)
    work.offer(checkpoint(tmp_path, 40))
    reports.wait("failed", 2)
    assert work.close(600)
    assert len(hub.requests) == asked
    assert all(says in f["detail"] for f in reports if f["status"] == "failed")
    assert "hf_not_a_real_token" not in str(list(reports))


def test_a_hub_that_stays_down_is_reported_and_later_checkpoints_get_through(hub, api, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.always = ("/commit/", 500)
    reports = Reports()
    work = uploader(api, reports)
    work.offer(checkpoint(tmp_path, 20))
    reports.wait("failed")
    hub.always = None
    work.offer(checkpoint(tmp_path, 40))
    reports.wait("done")
    assert work.close(600)
    assert reports.of("done") == [40]
    assert reports[-1]["revision"] == hub.sha(len(hub.snapshots) - 1)


def test_while_one_is_under_way_the_newest_wins_and_training_never_waits(hub, api, tmp_path):
    hub.gate.clear()
    reports = Reports()
    work = uploader(api, reports)
    folders = {step: checkpoint(tmp_path, step) for step in (10, 20, 30, 40)}
    work.offer(folders[10])
    while not any("/commit/" in request for request in list(hub.requests)):
        time.sleep(0.01)
    for step in (20, 30, 40):
        work.offer(folders[step])
    assert not any(work.may_prune(folder) for folder in folders.values()), "nothing is verified yet"
    assert reports.of("queued") == [10, 20, 30, 40], "each was taken in while the first still hangs"
    hub.gate.set()
    reports.wait("done", 2)
    assert work.close(600)
    assert reports.of("done") == [10, 40]
    assert all(work.may_prune(folder) for folder in folders.values())


def test_a_local_copy_may_go_only_once_it_or_a_newer_one_is_verified(hub, api, tmp_path):
    reports = Reports()
    work = uploader(api, reports)
    old, new, newer = (checkpoint(tmp_path, step) for step in (10, 20, 30))
    work.offer(new)
    reports.wait("done")
    assert work.close(600)
    assert work.may_prune(old)
    assert work.may_prune(new)
    assert not work.may_prune(newer)


def test_an_empty_machine_gets_the_newest_whole_checkpoint_by_revision(hub, api, tmp_path):
    for step in (20, 100):  # 100 is newer than 20, although not as text
        upload(
            api, "me/repo", "demo-20260101-000000", checkpoint(tmp_path / "a", step, text=f'{{"global_step": {step}}}')
        )
    upload(api, "me/repo", "other-20270101-000000", checkpoint(tmp_path / "b", 900))
    torn = checkpoint(tmp_path / "c", 200)
    (torn / "manifest.json").unlink()
    hub.snapshots.append({**hub.files, "demo-20260101-000000/checkpoint-200/model.safetensors": b"half"})
    into = tmp_path / "empty"
    into.mkdir()
    got = fetch_newest("me/repo", "demo", into, api=api)
    assert got == into / "checkpoint-100"
    assert rundir.verify_manifest(got) == []
    assert [p.name for p in into.iterdir()] == ["checkpoint-100"], "no parts are left"


def test_a_checkpoint_with_a_wrong_byte_is_passed_over_for_the_one_before(hub, api, tmp_path):
    for step in (20, 40):
        upload(api, "me/repo", "demo-1", checkpoint(tmp_path / "a", step))
    damaged = dict(hub.files)
    damaged["demo-1/checkpoint-40/model.safetensors"] = b"z" * 6000
    hub.snapshots.append(damaged)
    (tmp_path / "empty").mkdir()
    assert fetch_newest("me/repo", "demo", tmp_path / "empty", api=api).name == "checkpoint-20"


def test_nothing_there_and_no_such_revision_are_sentences(hub, api, tmp_path):
    with pytest.raises(NotFoundError, match="holds no whole checkpoint of 'demo'"):
        fetch_newest("me/repo", "demo", tmp_path, api=api)
    with pytest.raises(NotFoundError, match="No repository 'me/repo' at revision 'v9' could be loaded"):
        fetch_newest("me/repo", "demo", tmp_path, revision="v9", api=api)


@pytest.mark.parametrize(
    ("source", "always", "says", "hint"),
    [
        ("me/other", None, "none of that name, or it is private", "Check the name. HF_TOKEN is not set here"),
        ("me/repo", None, "no branch, tag or commit of that name", "lists them"),
        ("me/private", 401, "access was refused", "HF_TOKEN is not set here"),
        ("me/gated", 403, "access was refused", "HF_TOKEN is not set here"),
        ("me/gated/run-1", 403, "access was refused", "HF_TOKEN is not set here"),
        ("me/repo/run-1/checkpoint-3", None, "no branch, tag or commit of that name", "lists them"),
    ],
)
def test_what_the_hub_does_not_give_is_a_sentence_with_its_reason(
    hub, tmp_path, monkeypatch, source, always, says, hint
):
    from runner.study.load import read_config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    hub.always = ("/", always) if always else None
    with pytest.raises(NotFoundError, match=says) as told:
        read_config(source, "v9" if "repo" in source else "main")
    assert hint in told.value.hint
    assert "\n" not in str(told.value)


def test_a_path_with_a_typing_error_is_no_repository(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "stage5").mkdir(parents=True)
    asked = len(hub.requests)
    with pytest.raises(NotFoundError, match=r"There is no model directory runs/stage5/20260215-104518\."):
        fetch_weights("runs/stage5/20260215-104518")
    assert len(hub.requests) == asked


def test_weights_in_a_folder_of_a_repository_are_loaded_without_what_only_resuming_needs(
    hub, api, tmp_path, monkeypatch
):
    """As the study's first scripts left them: owner/name/stage3b-<stamp>; as ours do: with checkpoints in it."""
    from runner.study.load import load_model

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for step in (20, 100):
        folder = save_checkpoint(tiny_model(), tmp_path / f"checkpoint-{step}")
        (folder / "optimizer.pt").write_bytes(b"o" * 9000)
        rundir.write_manifest(folder)
        upload(api, "me/repo", "stage3-1", folder)
    place = fetch_weights("me/repo/stage3-1", api=api)
    assert place.name == "checkpoint-100"
    assert not (place / "optimizer.pt").exists()
    assert fetch_weights("me/repo/stage3-1/checkpoint-20", hub.sha(2), api=api).name == "checkpoint-20"
    loaded = load_model("me/repo/stage3-1", mask="prompt_bidirectional")
    assert (loaded.recorded, loaded.notes[0]) == ("prompt_bidirectional", "me/repo/stage3-1 fetched from the Hub")
    for wrong, says in (("me/repo/stage9", "holds no checkpoint in 'stage9'"), ("me/repo/stage3-1@v9", "v9")):
        name, _, revision = wrong.partition("@")
        with pytest.raises(NotFoundError, match=says):
            fetch_weights(name, revision or "main", api=api)
    damaged = {**hub.files, "stage3-1/checkpoint-100/config.json": b"{}"}
    hub.snapshots.append(damaged)
    with pytest.raises(UsageError, match="arrived damaged: config"):
        fetch_weights("me/repo/stage3-1", api=api)


def test_resume_looks_at_the_disk_first_and_then_at_the_hub(hub, api, tmp_path):
    recipe = load_recipe("demo", ["hf_repo_id=me/repo"], env={})
    run = rundir.RunDir(tmp_path / "run")
    assert resume_point(recipe, run, "") is None, "an empty repository: from the beginning"
    upload(api, "me/repo", "demo-1", checkpoint(tmp_path / "a", 20))
    assert resume_point(recipe, run, "") == run.checkpoints / "checkpoint-20"
    local = checkpoint(run.checkpoints, 30)
    assert resume_point(recipe, run, "") == local
    assert resume_point(recipe, run, "hub") == run.checkpoints / "checkpoint-20"
    with pytest.raises(UsageError, match="--resume hub needs --hf-repo-id"):
        resume_point(load_recipe("demo", env={}), run, "hub")
    with pytest.raises(NotFoundError, match="There is no checkpoint"):
        resume_point(recipe, run, str(tmp_path / "nothing"))
    (local / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UsageError, match="cannot be resumed from"):
        resume_point(recipe, run, str(local))


def test_a_run_that_lost_its_machine_goes_on_from_the_hub_as_if_nothing_had_been(hub, api, tmp_path):
    """Train to step 6, lose the disk, fetch, train to 12: the losses of twelve steps in one go."""
    base = save_checkpoint(tiny_model(), tmp_path / "base")
    train(base, tmp_path / "straight")
    reports = Reports()
    work = uploader(api, reports)
    train(base, tmp_path / "first", "max_steps=6", "keep_local=1", uploader=work)
    assert work.close(600)
    assert reports.of("done")[-1] == 6
    second = rundir.RunDir(tmp_path / "second")
    second.checkpoints.mkdir(parents=True)
    fetch_newest("me/repo", "demo", second.checkpoints, api=api)
    train(base, second.path, resume=True)
    whole = losses(tmp_path / "straight")
    assert losses(second.path) == {step: loss for step, loss in whole.items() if step > 6}
    assert losses(tmp_path / "first") == {step: loss for step, loss in whole.items() if step <= 6}


def test_a_hub_that_is_down_changes_nothing_about_the_training(hub, api, tmp_path):
    hub.always = ("/api/", 401)
    base = save_checkpoint(tiny_model(), tmp_path / "base")
    reports = Reports()
    work = uploader(api, reports)
    outcome = train(base, tmp_path / "run", "keep_local=1", uploader=work)
    assert work.close(600)
    assert outcome.step == 12
    assert set(reports.of("failed")) <= {3, 6, 9, 12}
    assert reports.of("done") == []
    kept = {rundir.checkpoint_step(p) for p in rundir.checkpoints(tmp_path / "run" / "checkpoints")}
    assert kept == {3, 6, 9, 12}, "without a verified upload no local copy goes"
    assert len(history(tmp_path / "run").evals) == 4

"""Targets and ssh_config: what a person types becomes a place, or one sentence."""

from __future__ import annotations

import contextlib
import getpass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.ssh_config import login_for, read_config
from remote.target import Target, parse_host, parse_target
from runner.errors import UsageError


def nothing_here(_: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("box:/root/x/log.txt", Target("ssh", "/root/x/log.txt", "box")),
        ("me@box:2222:runs/x", Target("ssh", "runs/x", "box", "me", 2222)),
        ("root@ssh6.vast.ai:17956:/root/x/log.txt", Target("ssh", "/root/x/log.txt", "ssh6.vast.ai", "root", 17956)),
        ("[fe80::1]:22:/x", Target("ssh", "/x", "fe80::1", None, 22)),
        ("me@[::1]:/x", Target("ssh", "/x", "::1", "me")),
        ("box:~/runs/a b", Target("ssh", "~/runs/a b", "box")),
        ("vast:31457957:/root/x", Target("vast", "/root/x", instance_id=31457957)),
        ("runs/x/20261123-101500", Target("run", "runs/x/20261123-101500")),
        ("stage5/20261123-101500", Target("run", "stage5/20261123-101500")),
        ("./log.txt", Target("local", "./log.txt")),
        ("/var/log/train.log", Target("local", "/var/log/train.log")),
    ],
)
def test_a_target_is_read_as_it_is_meant(text: str, expected: Target) -> None:
    assert parse_target(text, exists=nothing_here) == expected


def test_what_exists_here_wins_over_every_other_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("box:x").write_text("")
    assert parse_target("box:x").kind == "local"


@pytest.mark.parametrize("text", ["", "  ", "box:", "box:2222", "vast:abc:/x", "me@box:99999:/x"])
def test_what_is_no_target_is_refused_with_a_form_that_is(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(text, exists=nothing_here)


@given(
    st.builds(
        Target,
        st.just("ssh"),
        st.from_regex(r"/[a-z/. ]{0,20}[a-z]", fullmatch=True),
        st.from_regex(r"[a-z][a-z0-9.-]{0,15}", fullmatch=True) | st.just("fe80::1"),
        st.none() | st.from_regex(r"[a-z]{1,8}", fullmatch=True),
        st.none() | st.integers(1, 65535),
    )
)
def test_a_target_is_read_back_as_it_is_written(target: Target) -> None:
    assert parse_target(str(target), exists=nothing_here) == target
    assert parse_host(target.login) == Target("ssh", "", target.host, target.user, target.port)


@given(st.text(max_size=40))
def test_any_text_is_a_target_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_target(text, exists=nothing_here)


CONFIG = """
Include more.conf
Host box  other
    HostName 10.0.0.5
    User alice
    Port=2200
    IdentityFile ~/.ssh/first
    IdentityFile "%d/keys/%h key"
Host *.lab !secret.lab
    ProxyJump jump
Host jump
    HostName 10.0.0.1
    ProxyJump outer
Host named
    HostKeyAlias stable
    IdentitiesOnly yes
Match host nothing
    User never
Host *
    User fallback
"""


@pytest.fixture
def ssh(tmp_path: Path) -> Path:
    folder = tmp_path / ".ssh"
    folder.mkdir()
    (folder / "config").write_text(CONFIG)
    (folder / "more.conf").write_text("Host included\n  Port 77\n")
    return folder


def test_ssh_config_completes_what_was_typed(ssh: Path) -> None:
    login = login_for(parse_host("box"), folder=ssh)
    assert (login.host, login.user, login.port) == ("10.0.0.5", "alice", 2200)
    assert login.keys == (ssh / "first", ssh.parent / "keys/10.0.0.5 key")
    assert login.alias == "10.0.0.5:2200"
    assert login_for(parse_host("bob@box:23"), folder=ssh).user == "bob"
    assert login_for(parse_host("bob@box:23"), folder=ssh).port == 23


def test_jump_hosts_are_followed_to_the_outermost(ssh: Path) -> None:
    login = login_for(parse_host("gpu.lab"), folder=ssh)
    assert [hop.host for hop in login.jumps] == ["outer", "10.0.0.1"]
    assert login_for(parse_host("secret.lab"), folder=ssh).jumps == ()


def test_include_match_alias_and_the_first_value_count_as_in_openssh(ssh: Path) -> None:
    assert login_for(parse_host("included"), folder=ssh).port == 77
    assert login_for(parse_host("box"), folder=ssh).user == "alice"
    assert login_for(parse_host("anything"), folder=ssh).user == "fallback"
    named = login_for(parse_host("named"), folder=ssh)
    assert (named.alias, named.use_agent) == ("stable", False)


def test_without_a_config_the_usual_keys_are_tried(tmp_path: Path) -> None:
    login = login_for(parse_host("h"), folder=tmp_path)
    assert (login.user, login.port, login.use_agent) == (getpass.getuser(), 22, True)
    assert [key.name for key in login.keys] == ["id_ed25519", "id_ecdsa", "id_rsa"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Host h\n ProxyCommand ssh -W %h:%p x\n", "ProxyJump"),
        ("Host h\n ProxyJump h\n", "circles"),
        ("Host h\n Port abc\n", "abc"),
        ('Host "h\n', "line 1"),
        ("Include config\n", "over and over"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_said(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(UsageError) as told:
        login_for(parse_host("h"), folder=tmp_path)
    assert words in str(told.value)


@given(st.text(max_size=200))
def test_no_config_text_breaks_the_reader(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config"
        path.write_text(text, encoding="utf-8", errors="replace")
        with contextlib.suppress(UsageError):
            read_config(path, "h")

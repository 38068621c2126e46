"""Data and models in a remote storage of DVC, here a real SSH server on loopback, and models by name."""

import asyncio
import subprocess
import sys
import threading
from collections import defaultdict

import asyncssh
import mini_project
import pytest
from test_mapping import run, with_stand_ins

from pipelines import graph, paths
from pipelines.lineage.digests import files_below
from tasks import settings

DVC = (sys.executable, "-m", "dvc")
GIT = ("git", "-c", "user.name=somebody", "-c", "user.email=somebody@example.org")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(port, home of a user whom the server knows): it has SFTP and nothing else."""
    folder = tmp_path_factory.mktemp("server")
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    (folder / "store").mkdir()
    (folder / "authorised").write_bytes(user.export_public_key())
    loop = asyncio.new_event_loop()

    def sftp(channel):
        return asyncssh.SFTPServer(channel, chroot=str(folder / "store"))

    listening = loop.run_until_complete(
        asyncssh.listen("127.0.0.1", 0, server_host_keys=[host], authorized_client_keys=str(folder / "authorised"), sftp_factory=sftp)
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True)
    user.write_private_key(home / "key")
    (home / ".ssh" / "known_hosts").write_bytes(f"[127.0.0.1]:{listening.get_port()} ".encode() + host.export_public_key())
    yield listening.get_port(), home
    loop.call_soon_threadsafe(listening.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture(scope="module")
def user(server):
    """Runs a command in a folder, as the user whom the server knows."""
    environment = mini_project.environment(HOME=str(server[1]))

    def run(folder, *command, check=True):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


def known(user, project, home):
    """What stands in nobody's repository: who asks, and with which key."""
    user(project, *DVC, "remote", "modify", "--local", "store", "user", "somebody")
    user(project, *DVC, "remote", "modify", "--local", "store", "keyfile", str(home / "key"))


@pytest.fixture(scope="module")
def pushed(server, user, tmp_path_factory):
    """All stages done, committed and pushed."""
    port, home = server
    project = with_stand_ins(tmp_path_factory.mktemp("remotes") / "project")
    run(project)
    user(project, *DVC, "remote", "add", "--default", "store", f"ssh://127.0.0.1:{port}/store")
    known(user, project, home)
    user(project, *GIT, "add", "-A")
    user(project, *GIT, "commit", "-qm", "all stages")
    user(project, *DVC, "push")
    return project


def test_what_was_pushed_is_current_in_another_clone(server, user, pushed, tmp_path):
    clone = tmp_path / "clone"
    user(tmp_path, "git", "clone", "-q", pushed, clone)
    assert not (clone / paths.MODELS).exists() and str(server[1]) not in (clone / ".dvc/config").read_text()
    known(user, clone, server[1])
    user(clone, *DVC, "pull")
    assert run(clone) == []
    for stage in graph.graph(settings.params(clone)).values():
        for made in stage.makes:
            for file in files_below(pushed / made):
                assert (clone / file.relative_to(pushed)).read_bytes() == file.read_bytes()


def test_one_model_is_pulled_alone(server, user, pushed, tmp_path):
    clone = tmp_path / "clone"
    user(tmp_path, "git", "clone", "-q", pushed, clone)
    known(user, clone, server[1])
    user(clone, *DVC, "pull", "data/dvc.yaml:merged")
    assert [path.name for path in (clone / paths.MODELS).iterdir()] == ["merged"]


def test_a_key_that_the_server_does_not_know_is_refused(user, pushed, tmp_path):
    clone = tmp_path / "clone"
    user(tmp_path, "git", "clone", "-q", pushed, clone)
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / "key")
    user(clone, *DVC, "remote", "modify", "--local", "store", "user", "somebody")
    user(clone, *DVC, "remote", "modify", "--local", "store", "keyfile", str(tmp_path / "key"))
    refused = user(clone, *DVC, "pull", check=False)
    assert refused.returncode != 0 and "Permission denied" in refused.stderr
    assert not (clone / paths.MODELS).exists()


def test_the_champion_by_its_name(user, pushed, tmp_path):
    """Git tags, in GTO's form, say which version of which model is what."""
    for tag in ("data=merged@v1.0.0", "data=merged#champion#1"):
        user(pushed, *GIT, "tag", "-a", tag, "-m", "passed the gate")
    user(tmp_path, *DVC, "artifacts", "get", pushed, "data/dvc.yaml:merged", "--stage", "champion", "-o", tmp_path / "got")
    assert (tmp_path / "got" / "model.safetensors").read_bytes() == (pushed / paths.model("merged") / "model.safetensors").read_bytes()


def test_what_a_stage_has_made_is_a_link_to_the_cache(pushed):
    links = defaultdict(int)
    for file in files_below(pushed / paths.MODELS):
        links[file.read_bytes()] = max(links[file.read_bytes()], file.stat().st_nlink)
    assert len(links) == 5 and min(links.values()) == 2

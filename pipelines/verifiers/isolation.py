"""The bubblewrap command that a sandbox is, and what of it this machine can enforce.

New user, pid, network, ipc, uts and cgroup namespaces and no way to make more, no capabilities, an empty environment, a filter of system calls
(seccomp.py). The file system is the interpreter and the shared libraries, all of it read-only, but for one tmpfs of bounded size at /tmp,
to which /dev/shm leads. /dev has null, random and urandom: what /dev/zero maps, and terminals, would be memory that nobody is seen to hold.
When we are root it runs under an unprivileged uid of its own (root's processes are exempt from RLIMIT_NPROC).
"""

from __future__ import annotations

import functools
import os
import platform
import random
import shutil
import subprocess
from collections.abc import Sequence

from pipelines.errors import InfrastructureError
from pipelines.verifiers import cgroups, memory, seccomp
from pipelines.verifiers.interpreter import HOME, interpreter

INSTALL = "install it with `apt-get install bubblewrap` and allow unprivileged user namespaces"


def command(tmpfs: int, program_filter: int | None, binds: Sequence[str] = ()) -> list[str]:
    """The bubblewrap command up to, and without, the program to run.

    tmpfs: bytes that can be written. program_filter: descriptor with a filter of seccomp.py, which must be passed on. binds: more options of
    bubblewrap that mount.
    """
    filtered = [] if program_filter is None else ["--seccomp", str(program_filter)]
    return [_bubblewrap(), *filtered, *_options(tmpfs, tuple(binds))]


@functools.cache
def _options(tmpfs: int, binds: tuple[str, ...]) -> tuple[str, ...]:
    isolation = ["--unshare-user", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    isolation += ["--disable-userns"] * can_disable_namespaces()
    identity = ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--setenv", "PATH", f"{HOME}/bin", "--setenv", "HOME", "/tmp"]
    scratch = ["--size", str(tmpfs), "--perms", "0700", "--tmpfs", "/tmp", "--chdir", "/tmp"]
    mounts = [*_system_binds(), *interpreter().binds(), *binds, "--proc", "/proc", *_devices(), *scratch]
    return (*isolation, *identity, *mounts, "--remount-ro", "/")


def _devices() -> list[str]:
    arguments = ["--size", "4096", "--tmpfs", "/dev"]
    for name in ("null", "random", "urandom"):
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        arguments += ["--symlink", f"/proc/self/fd{target}", f"/dev/{name}"]
    return [*arguments, "--symlink", "/tmp", "/dev/shm", "--remount-ro", "/dev"]


def _system_binds() -> list[str]:
    arguments = []
    for name in ("lib", "lib64", "lib32"):
        if os.path.isdir(f"/usr/{name}"):
            arguments += ["--ro-bind", f"/usr/{name}", f"/usr/{name}"]
        if os.path.islink(f"/{name}"):
            arguments += ["--symlink", os.readlink(f"/{name}").lstrip("/"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            arguments += ["--ro-bind", f"/{name}", f"/{name}"]
    return arguments


def as_nobody() -> list[str]:
    """The command prefix that leaves root. A uid of its own per sandbox keeps process counts of parallel sandboxes apart."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise InfrastructureError("The sandbox needs setpriv when started by root: install it with `apt-get install util-linux`.")
    uid = str(random.SystemRandom().randrange(61000, 65000))
    return [setpriv, "--reuid", uid, "--regid", uid, "--clear-groups"]


def _bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise InfrastructureError(f"The sandbox needs bubblewrap, which is not on this machine: {INSTALL}.")
    return found


@functools.cache
def can_disable_namespaces() -> bool:
    """Whether this bubblewrap (0.8 and newer) has --disable-userns and the kernel grants it."""
    options = ["--unshare-user", "--unshare-pid", "--disable-userns", "--ro-bind", "/", "/", "true"]
    try:
        return subprocess.run([*as_nobody(), _bubblewrap(), *options], stdin=subprocess.DEVNULL, capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def enforced() -> dict[str, str]:
    """What is bounded here and by what, beside the bounds that always hold; one short phrase each, for people."""
    namespaces = "forbidden" if can_disable_namespaces() else "denied by the filter alone" if seccomp.program() else "NOT forbidden"
    looks = f"watched every {memory.PERIOD * 1000:.0f} ms"
    whole = "cgroup v2" if cgroups.home() else looks if memory.can_watch() else "NOT bounded, that of each process is"
    return {
        "system calls": "filtered" if seccomp.program() else f"NOT filtered on {platform.machine()}",
        "new namespaces": namespaces,
        "memory of all processes together": whole,
    }

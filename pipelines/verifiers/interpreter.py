"""Which Python runs inside the sandbox: the one that runs Touchstone, at a neutral path and without site-packages.

A program is judged by the same Python version as the project's. When we are root, sandboxes run under an unprivileged
uid, which cannot reach an interpreter below /root (mode 700): then the interpreter and its standard library are copied once (some 60 MB) to
the temporary folder. Everywhere else they are bound where they lie.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import shutil
import stat
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import InfrastructureError

HOME = "/python"
_LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "ensurepip", "lib2to3", "tkinter", "turtledemo", "config-*", "*.opt-*.pyc")


@dataclass(frozen=True)
class Interpreter:
    """Host paths of the executable, the standard library and libpython (if it is a shared library)."""

    executable: Path
    stdlib: Path
    libraries: tuple[Path, ...]

    def binds(self) -> list[str]:
        """bubblewrap arguments that put it under /python."""
        library = f"{HOME}/{sys.platlibdir}"
        arguments = ["--ro-bind", str(self.executable), f"{HOME}/bin/python3", "--ro-bind", str(self.stdlib), f"{library}/{self.stdlib.name}"]
        for path in self.libraries:
            arguments += ["--ro-bind", str(path), f"{HOME}/lib/{path.name}"]
        if (self.stdlib / "site-packages").is_dir():
            packages = f"{library}/{self.stdlib.name}/site-packages"
            arguments += ["--size", "4096", "--tmpfs", packages, "--remount-ro", packages]
        return [*arguments, "--setenv", "LD_LIBRARY_PATH", f"{HOME}/lib"]


def host_interpreter() -> Interpreter:
    """The interpreter behind this process's virtual environment."""
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    libraries = tuple(Path(path) for path in glob.glob(f"{sys.base_prefix}/lib/libpython*.so.*"))
    return Interpreter(executable, Path(sysconfig.get_path("stdlib")).resolve(), libraries)


@functools.cache
def interpreter() -> Interpreter:
    """The interpreter for sandboxes: the host's own, or its copy when the sandbox's uid could not reach it."""
    found = host_interpreter()
    if os.geteuid() != 0 or (_reachable(found.executable) and _reachable(found.stdlib)):
        return found
    return _copied(found)


def _reachable(path: Path) -> bool:
    wanted = stat.S_IXOTH | stat.S_IROTH if path.is_dir() else stat.S_IROTH
    return bool(path.stat().st_mode & wanted == wanted) and all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)


def _copied(source: Interpreter) -> Interpreter:
    key = hashlib.sha256(f"{source.executable}:{sys.version}:{source.executable.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    home = Path(tempfile.gettempdir()) / f"touchstone-python-{os.geteuid()}-{key}"
    copy = Interpreter(
        home / "bin/python3", home / sys.platlibdir / source.stdlib.name, tuple(home / "libpython" / path.name for path in source.libraries)
    )
    if not home.is_dir():
        staging = Path(tempfile.mkdtemp(prefix="touchstone-python-"))
        for folder in ("bin", "libpython", sys.platlibdir):
            (staging / folder).mkdir(exist_ok=True)
        shutil.copy2(source.executable, staging / "bin/python3")
        for path in source.libraries:
            shutil.copy2(path, staging / "libpython" / path.name)
        shutil.copytree(source.stdlib, staging / sys.platlibdir / source.stdlib.name, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        staging.chmod(0o755)
        try:
            staging.rename(home)
        except OSError:  # another process was first
            shutil.rmtree(staging)
    state = home.lstat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o022 or not stat.S_ISDIR(state.st_mode):
        raise InfrastructureError(f"{home} must be a folder that only this user can write; remove it and try again.")
    return copy

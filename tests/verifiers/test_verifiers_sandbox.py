"""What holds a program in: the filter of system calls, the file system, the memory of the whole; and what honest programs may still do."""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from host_effects import measured
from verifier_cases import fenced, problem

from pipelines.verifiers import ProgramLimits, VerifierPool, cgroups, isolation, memory, probe, sandbox, seccomp
from pipelines.verifiers.sandbox import resources

inside = pytest.mark.skipif(bool(probe()), reason=probe())
NATIVE = pytest.mark.skipif(seccomp.program() is None, reason="no filter for this architecture")
THREAD, READ, MEMORY_MAP = 0x3D0F00, {"x86_64": 0, "aarch64": 63}, (2 | 0x20, 1)


def result(source: str, limits: ProgramLimits | None = None) -> Any:
    """What f() of the program returns in a sandbox."""
    limits = limits or ProgramLimits()
    item = {"setup": "", "program": source, "entry_point": "f", "tests": [("args", ([], {}))]} | resources(limits, 10.0)
    outcome = sandbox.run([item], limits, quiet_seconds=10.0, total_seconds=10.0)
    (value,) = [payload for _, test, status, payload in outcome.events if test == 0 and status == "value"] or [outcome]
    return value


def judged(rules: bytes, machine: str, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the filter says of a call: the program of classic BPF, run by hand."""
    arch = seccomp.ARCHITECTURES[machine]
    data = struct.pack("=IIQ6Q", number, arch, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    at, value = 0, 0
    while True:
        code, if_true, if_false, constant = struct.unpack_from("=HBBI", rules, 8 * at)
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        elif code == 0x54:
            value &= constant
        elif code == 0x06:
            return constant
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("worker", [False, True])
def test_the_filter_denies_what_the_table_names_and_nothing_else(machine: str, worker: bool) -> None:
    place = ["x86_64", "aarch64"].index(machine)
    rules = seccomp.program(machine, worker=worker)
    assert rules is not None
    denied = {numbers[place]: name for name, numbers in (seccomp.DENIED | (seccomp.DENIED_TO_WORKERS if worker else {})).items()}
    for number in range(600):
        expected = seccomp.FAIL | seccomp.denial(denied[number]) if number in denied else seccomp.ALLOW
        plain = {seccomp.MMAP[place]: (0, 0, 0, 2 | 0x20), seccomp.SOCKET[place]: (1,), seccomp.CLONE[place]: (THREAD,)}.get(number, ())
        assert judged(rules, machine, number, plain) == expected, (number, denied.get(number))
    for bit in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert judged(rules, machine, seccomp.CLONE[place], (bit | 17,)) == seccomp.FAIL | errno.EPERM
    for family in (0, 2, 10, 16, 17, 38, 40):
        assert judged(rules, machine, seccomp.SOCKET[place], (family,)) == seccomp.FAIL | errno.EAFNOSUPPORT
    for shared in (1 | 0x20, 3 | 0x20):
        assert judged(rules, machine, seccomp.MMAP[place], (0, 0, 0, shared)) == seccomp.FAIL | errno.EPERM
    assert (judged(rules, machine, seccomp.CLONE[place], (17,)) == seccomp.ALLOW) == (not worker), "a new process"
    assert (judged(rules, machine, seccomp.OPENAT[place], (0, 0, os.O_CREAT | os.O_WRONLY)) == seccomp.ALLOW) == (not worker), "a new file"
    assert judged(rules, machine, seccomp.OPENAT[place], (0, 0, os.O_RDONLY | os.O_DIRECTORY)) == seccomp.ALLOW
    other = "aarch64" if machine == "x86_64" else "x86_64"
    assert judged(rules, other, READ[other]) == seccomp.KILL, "the numbers of another architecture"
    if machine == "x86_64":
        assert judged(rules, machine, seccomp.X32 | READ[machine]) == seccomp.FAIL | errno.ENOSYS


CALLS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def f():
    found = {}
    for name, number in NAMES.items():
        ctypes.set_errno(0)
        found[name] = 0 if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 else ctypes.get_errno()
    return found
"""


@inside
@NATIVE
def test_every_denied_call_fails_in_the_sandbox_and_the_filter_is_why(monkeypatch: pytest.MonkeyPatch) -> None:
    place = list(seccomp.ARCHITECTURES).index(os.uname().machine)
    names = {name: numbers[place] for name, numbers in seccomp.DENIED.items() if numbers[place] is not None and name != "vhangup"}
    expected = {name: seccomp.denial(name) for name in names}
    assert result(f"NAMES = {names}\n{CALLS}") == expected
    monkeypatch.setattr(seccomp, "program", lambda **_: None)
    found = result(f"NAMES = {names}\n{CALLS}")
    assert {"ptrace", "memfd_create", "keyctl", "process_vm_readv", "semget"} <= {name for name in names if found[name] != expected[name]}


@inside
@NATIVE
def test_bubblewrap_and_the_filter_each_deny_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\ndef f(): return [libc.unshare(0x10000000), ctypes.get_errno()]"
    assert result(source) == [-1, errno.EPERM]
    if isolation.can_disable_namespaces():
        monkeypatch.setattr(seccomp, "program", lambda **_: None)
        assert result(source) == [-1, errno.ENOSPC]


def test_an_unknown_architecture_goes_without_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seccomp.program("riscv64") is None
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert isolation.enforced()["system calls"] == "NOT filtered on riscv64"


@inside
def test_one_folder_of_bounded_size_can_be_written() -> None:
    source = (
        "import os\ndef f():\n    able, total = [], 0\n    for folder, _, _ in os.walk('/'):\n        if folder.startswith('/proc'): continue\n"
        "        try:\n            for n in range(99):\n                with open(f'{folder}/{n}', 'wb') as file: total += file.write(bytes(1 << 20))\n"
        "        except OSError: pass\n        if os.path.exists(f'{folder}/0'): able.append(folder)\n    return [able, total, os.path.realpath('/dev/shm')]"
    )
    able, total, shared = result(source, ProgramLimits(tmpfs=8 << 20))
    assert (able, shared) == (["/tmp"], "/tmp") and total <= 8 << 20


@inside
def test_files_and_processes_count_together() -> None:
    """48 MiB of files and 48 MiB in memory are within 64 + 64 each, but not with two more processes that hold as much."""
    limits = ProgramLimits(memory=64 << 20, tmpfs=64 << 20)
    source = (
        "import os, time\ndef f():\n    for n in range(12):\n        with open(f'/tmp/{n}', 'wb') as file: file.write(bytes(4 << 20))\n"
        "    for n in range(CHILDREN):\n        if os.fork() == 0: break\n    x = bytearray(b'x') * (40 << 20)\n    time.sleep(0.5)\n    return 'done'"
    )
    assert result(source.replace("CHILDREN", "0"), limits) == "done"
    assert result(source.replace("CHILDREN", "3"), limits).end == "memory"


@inside
def test_files_without_content_count() -> None:
    source = "def f():\n    for n in range(400_000): open(f'/tmp/{n}', 'w').close()\n    return 'done'"
    assert result(source, ProgramLimits(memory=64 << 20, tmpfs=1 << 20)).end == "memory"
    assert result(source.replace("400_000", "20_000"), ProgramLimits(memory=64 << 20, tmpfs=1 << 20)) == "done"


@inside
def test_memory_that_children_share_with_their_parent_counts_once() -> None:
    source = (
        "import os, time\ndef f():\n    x = bytearray(b'x') * (150 << 20)\n    children = []\n    for n in range(6):\n        pid = os.fork()\n"
        "        if pid == 0:\n            time.sleep(0.4)\n            os._exit(0)\n        children.append(pid)\n"
        "    for pid in children: os.waitpid(pid, 0)\n    return 'done'"
    )
    assert result(source, ProgramLimits(memory=256 << 20)) == "done"


HONEST = """
import asyncio, multiprocessing, os, subprocess, sys, tempfile, threading
from concurrent.futures import ThreadPoolExecutor
def square(n): return n * n
async def later(): return await asyncio.sleep(0, 'later')
def f():
    fork = multiprocessing.get_context('fork')
    with fork.Pool(2) as pool: squares = pool.map(square, range(4))
    queue = fork.Queue()
    process = fork.Process(target=queue.put, args=(5,))
    process.start()
    got = queue.get()
    process.join()
    with ThreadPoolExecutor(4) as threads: lengths = list(threads.map(len, ['a', 'bb']))
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + '/x', 'w') as file: file.write('text')
        text = open(folder + '/x').read()
    child = subprocess.run([sys.executable or '/python/bin/python3', '-c', 'print(7)'], capture_output=True, text=True).stdout
    with open('/dev/null', 'w') as null: null.write('x')
    return [squares, got, lengths, text, child, asyncio.run(later()), len(open('/dev/urandom', 'rb').read(4)), os.cpu_count() > 0]
"""


@inside
def test_honest_programs_use_processes_threads_files_and_event_loops() -> None:
    assert result(HONEST) == [[0, 1, 4, 9], 5, [1, 2], "text", "7\n", "later", 4, True]


@inside
def test_programs_read_standard_input_by_its_name() -> None:
    task = problem("", "code", stdin_tests=[{"input": "3\n", "output": "4\n"}])
    with VerifierPool(1) as pool:
        assert pool.verify(task, fenced("print(int(open('/dev/stdin').read()) + 1)")).correct


@inside
def test_a_scored_response_makes_no_process_no_file_and_stops_nobody() -> None:
    """reasoning-gym evaluates the response: what it does there stays its own."""
    entry = {"question": "", "answer": "2*3", "metadata": {"numbers": [2, 3], "target": 6, "expression": "2*3"}}
    task = problem("2*3", "logic", task="countdown", entry=entry)
    hostile = (
        "__import__('os').kill(-1, 9) or 2*3", "[__import__('os').fork() for _ in range(99)] and 2*3", "open('/tmp/mine', 'w') and 2*3",
        "__import__('os').mkdir('/tmp/mine') or 2*3", "__import__('time').sleep(1) or 2*3",
    )  # fmt: skip
    with measured() as effects, VerifierPool(2) as pool:
        assert pool.verify(task, "<answer>3*2</answer>").correct
        honest: list[bool] = []
        others = threading.Thread(target=lambda: honest.extend(pool.verify(task, f"<answer>{'(' * n}3*2{')' * n}</answer>").correct for n in range(8)))
        others.start()
        assert not any(pool.verify(task, f"<answer>{text}</answer>").correct for text in hostile)
        others.join()
    assert honest == [True] * 8, "a neighbour is not disturbed"
    assert effects.processes <= 6 and effects.files <= 1 << 20 and not effects.left


def test_a_place_for_cgroups_is_the_own_group_or_the_one_above(tmp_path: Path) -> None:
    own = tmp_path / "user.slice" / "session.scope"
    own.mkdir(parents=True)
    for folder in (tmp_path, own.parent, own):
        (folder / "cgroup.controllers").write_text("cpu memory pids\n")
        (folder / "cgroup.procs").write_text("")
        (folder / "cgroup.subtree_control").write_text("")
    membership = "1:cpu:/elsewhere\n0::/user.slice/session.scope\n"
    assert cgroups.candidates(tmp_path, membership) == []
    (own.parent / "cgroup.subtree_control").write_text("memory pids\n")
    assert cgroups.candidates(tmp_path, membership) == [own.parent]
    (own / "cgroup.subtree_control").write_text("cpu memory\n")
    assert cgroups.candidates(tmp_path, membership) == [own, own.parent]
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    assert cgroups.candidates(tmp_path, "0::/\n") == [tmp_path], "nothing above the root"
    assert cgroups.candidates(tmp_path, "4:memory:/only/version/1\n") == []


@inside
@pytest.mark.skipif(cgroups.home() is None, reason="no cgroup v2 with the memory controller can be made here")
def test_the_kernel_bounds_a_group() -> None:
    home = cgroups.home()
    assert home is not None
    before = set(home.iterdir())
    source = "import os, time\ndef f():\n    for n in range(6):\n        if os.fork() == 0: break\n    x = bytearray(b'x') * (40 << 20)\n    time.sleep(0.5)\n"
    assert result(source, ProgramLimits(memory=64 << 20, tmpfs=1 << 20)).end == "memory"
    assert set(home.iterdir()) == before


def test_what_is_enforced_is_told_in_short() -> None:
    told = isolation.enforced()
    assert list(told) == ["system calls", "new namespaces", "memory of all processes together"] and json.dumps(told).count("NOT") <= 3
    if cgroups.home() is None and memory.can_watch():
        assert told["memory of all processes together"] == "watched every 50 ms"

"""Programs that try to pass without solving, to escape, to outlive their limit or to leave something behind. None may.

Every attack faces call tests, a `check` and a stdin test whose answers cannot be guessed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from verifier_cases import fenced, problem

from pipelines.verifiers import Limits, ProgramLimits, VerifierPool, probe

pytestmark = pytest.mark.skipif(bool(probe()), reason=probe())
SECONDS = 1.0
TOKEN = "touchstone-attack-7731"
"""What an attack that gets out would leave behind."""
ANSWERS = [918273, 645549, 192837]
KINDS = {
    "calls": problem("", "code", entry_point="f", tests=[{"args": [n], "expected": answer} for n, answer in enumerate(ANSWERS)], time_limit=SECONDS),
    "check": problem(
        "",
        "code",
        entry_point="f",
        check="def check(candidate):\n" + "\n".join(f"    assert candidate({n}) == {answer}" for n, answer in enumerate(ANSWERS)),
        time_limit=SECONDS,
    ),
    "asserts": problem("", "code", asserts=[f"assert [f({n})] == [{answer}]" for n, answer in enumerate(ANSWERS)], time_limit=SECONDS),
    "stdin": problem("", "code", stdin_tests=[{"input": f"{n}\n", "output": f"{answer}\n"} for n, answer in enumerate(ANSWERS)], time_limit=SECONDS),
}
FORGE = """
import gc, os, sys
def forge(*_):
    for frame in sys._current_frames().values():
        while frame:
            for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
                if isinstance(value, str) and len(value) == 32:
                    for fd in range(3, 10):
                        for test in range(-1, 4):
                            try: os.write(fd, f'["{value}",0,{test},"passed",null]\\n["{value}",0,{test},"value",true]\\n'.encode())
                            except OSError: pass
            frame = frame.f_back
"""
ATTACKS = {
    "exit 0 before the tests": "import sys; sys.exit(0)",
    "hard exit 0": "import os; os._exit(0)",
    "hard exit at exit": "import atexit, os; atexit.register(os._exit, 0)\ndef f(x): return None",
    "exit inside the call": "import os\ndef f(x): os._exit(0)",
    "kills itself": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGKILL)",
    "kills everything": "import os, signal\ndef f(x): os.kill(-1, signal.SIGKILL)",
    "always equal": "class A:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    __hash__ = None\ndef f(x): return A()",
    "always equal int": "class A(int):\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\ndef f(x): return A(1)",
    "always equal list": "class A(list):\n    def __eq__(self, other): return True\n    def __iter__(self): return iter([918273])\ndef f(x): return A()",
    "lying repr": "class A(int):\n    def __repr__(self): return '918273'\n    __str__ = __repr__\ndef f(x): return A(1)",
    "metaclass": "class M(type):\n    def __instancecheck__(cls, other): return True\n    def __eq__(cls, other): return True\nclass A(metaclass=M): pass\ndef f(x): return A",
    "prints PASS": "print('PASS'); print('OK'); print(1.0)\ndef f(x): return None",
    "prints the protocol": "print('[\"x\",0,0,\"passed\",null]')\ndef f(x): return None",
    "forges results from frames": FORGE + "forge()\ndef f(x): forge(); return None",
    "forges results and exits": FORGE + "import os\ndef f(x): forge(); os._exit(0)",
    "forges from the collector": "import gc, os\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'nonce' in o:\n"
    "            for t in range(3): os.write(3, f'[\"{o[\"nonce\"]}\",0,{t},\"passed\",null]\\n'.encode())\n    return None",
    "writes to every descriptor": "import os\nfor n in range(3, 64):\n    try: os.write(n, b'V((),(),{})' * 100)\n    except OSError: pass\ndef f(x): return None",
    "answers before it is asked": "import os\nfor n in range(3, 8):\n    try: os.write(n, b'\\x00\\x00\\x00\\x0fV(True,(0,),{})' * 9)\n    except OSError: pass\ndef f(x): return None",
    "closes every descriptor": "import os\nos.closerange(0, 64)\ndef f(x): return 1",
    "patched builtins": "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.len = lambda x: 0\nbuiltins.AssertionError = ValueError\ndef f(x): return None",
    "patched int repr": "import builtins\nbuiltins.int = type('int', (), {'__repr__': lambda s: '918273'})\ndef f(x): return int()",
    "patched json": "import json, sys\njson.loads = json.dumps = lambda *a, **k: 918273\nsys.modules['_json'] = json\ndef f(x): return None",
    "patched os": "import os\nos.write = lambda fd, data: len(data)\nos._exit = lambda code: None\ndef f(x): return None",
    "patched unittest": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef f(x): return None",
    "asserts switched off": "import sys, builtins\nbuiltins.__debug__ = False if False else True\nsys.flags\ndef f(x): return None",
    "reads the frames": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for v in frame.f_locals.values():\n"
    "            if isinstance(v, dict) and 'tests' in v: return v['tests'][x][1][-1]\n        frame = frame.f_back",
    "reads proc": "def f(x):\n    import re\n    seen = b''\n    for p in ('/proc/1/cmdline', '/proc/1/environ', '/proc/self/cmdline', '/proc/self/fd/0'):\n"
    "        try: seen += open(p, 'rb').read()\n        except OSError: pass\n    found = re.findall(rb'\\b\\d{6}\\b', seen)\n    return int(found[x]) if found else None",
    "reads its memory": "import re\ndef f(x):\n    found = []\n    for line in open('/proc/self/maps'):\n        if 'rw' in line:\n            a, b = (int(v, 16) for v in line.split()[0].split('-'))\n"
    "            try:\n                with open('/proc/self/mem', 'rb') as m:\n                    m.seek(a); found += re.findall(rb'(?<!\\d)(918273|645549|192837)(?!\\d)', m.read(min(b - a, 1 << 22)))\n"
    "            except (OSError, ValueError, OverflowError): pass\n    return None",
    "fork bomb": "import os\nwhile True: os.fork()",
    "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
    "memory bomb": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "huge integer": "def f(x): return 9 ** 9 ** 9",
    "huge integer result": "def f(x): return 10 ** 5000000",
    "disk bomb": "def f(x):\n    n = 0\n    while True:\n        open(f'/tmp/{n}', 'wb').write(b'x' * (1 << 24)); n += 1",
    "inode bomb": "def f(x):\n    n = 0\n    while True:\n        open(f'/tmp/{n}', 'w').close(); n += 1",
    "output bomb": "while True: print('x' * 65536)",
    "error output bomb": "import sys\nwhile True: sys.stderr.write('x' * 65536)",
    "result bomb": "def f(x): return 'x' * (64 << 20)",
    "deep result": "def f(x):\n    v = []\n    for _ in range(100000): v = [v]\n    return v",
    "endless result": "class A(list):\n    def __iter__(self):\n        while True: yield 1\ndef f(x): return A()",
    "recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)",
    "ignored signals": "import signal\nfor n in range(1, 64):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
    "alarm reset": "import signal, resource\nsignal.alarm(0)\ntry: resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))\nexcept ValueError: pass\nwhile True: pass",
    "raised limits": "import resource\nfor r in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):\n"
    "    try: resource.setrlimit(r, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n    except (ValueError, OSError): pass\nx = []\nwhile True: x.append(bytearray(1 << 24))",
    "daemon": f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        open('/proc/self/comm', 'w').write('{TOKEN[:15]}')\n        time.sleep(600)\ndef f(x): return None",
    "sleeps": "import time\ndef f(x): time.sleep(600)",
    "hangs on stdin": "def f(x): return input()\ninput(); input(); input()",
    "loopback": "import socket\ndef f(x):\n    s = socket.create_connection(('127.0.0.1', PORT), 0.2); s.send(b'here'); return s.recv(99)\nf(0)",
    "outside": "import socket\ndef f(x): return socket.create_connection(('93.184.216.34', 80), 0.2).recv(9)\nf(0)",
    "abstract socket": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0touchstone')\ndef f(x): return s.recv(9)",
    "writes to the host": f"import os\nfor d in ('/usr', '/usr/lib', '/python', '/var/tmp', '/dev/shm', '/home', '/root', '/', '{os.getcwd()}'):\n"
    f"    try: open(d + '/{TOKEN}', 'w').write('x')\n    except OSError: pass\nopen('/tmp/{TOKEN}', 'w').write('x')\ndef f(x): return None",
    "symlinks": f"import os\nfor n, t in enumerate(('/etc/passwd', '/root', '{__file__}', '/proc/1/root')):\n    os.symlink(t, f'/tmp/{{n}}')\n"
    "def f(x): return open(f'/tmp/{x}').read()\nf(2)",
    "host interpreter": "import subprocess, sys\ndef f(x): return subprocess.run([sys.executable, '-c', 'print(918273)'], capture_output=True).stdout\nprint(f(0))",
    "shell": f"import os\nos.system('touch /tmp/{TOKEN}; touch /usr/{TOKEN}')\ndef f(x): return None",
    "ctypes": "import ctypes\nctypes.string_at(0)\ndef f(x): return None",
    "ctypes system call": "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.mount(b'none', b'/tmp', b'tmpfs', 0, 0)\nlibc.setuid(0)\nlibc.ptrace(16, 1, 0, 0)\nimport os\ndef f(x): return os.getuid()",
    "new namespace": "import ctypes, os\nctypes.CDLL(None).unshare(0x10000000 | 0x20000)\ndef f(x): return open('/etc/shadow').read()",
    "null bytes": "print('918273\\0')\ndef f(x): return '918273\\0'",
    "broken unicode": "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe918273')\ndef f(x): return '\\ud800'",
    "nan": "print('nan')\ndef f(x): return float('nan')",
    "infinity": "print('inf')\ndef f(x): return float('inf')",
    "true for one": "print(True)\ndef f(x): return True",
    "all answers at once": "print(*range(100000))\ndef f(x): return list(range(100000))",
    "generator": "def f(x):\n    while True: yield 918273",
    "raises the wrong thing": "class E(BaseException):\n    def __str__(self): raise E\ndef f(x): raise E",
    "assertion of its own": "def f(x): raise AssertionError\nf = f",
    "name tricks": "__name__ = 'tests'\nnonce = 'x'\ndef check(c): return True\ndef f(x): return None",
    "import hook": "import sys\nclass H:\n    def find_spec(self, *a): raise SystemExit(0)\nsys.meta_path.insert(0, H())\ndef f(x): return None",
    "trace function": "import sys\nsys.settrace(lambda frame, event, arg: frame.f_locals.update(value=918273))\ndef f(x): return None",
}  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(2, limits=Limits(program=ProgramLimits(seconds=SECONDS, total_seconds=3.0))) as shared:
        yield shared


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server on the host that nobody may reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
        server.settimeout(0.01)
        with pytest.raises(TimeoutError):
            server.accept()


def test_there_are_at_least_forty() -> None:
    assert len(ATTACKS) >= 40


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_passes_escapes_or_stays(pool: VerifierPool, port: int, name: str) -> None:
    source = fenced(ATTACKS[name].replace("PORT", str(port)))
    started = time.monotonic()
    verdicts = dict(zip(KINDS, pool.verify_batch([(task, source) for task in KINDS.values()]), strict=True))
    assert not [kind for kind, verdict in verdicts.items() if verdict.score > 0 or verdict.correct], verdicts
    assert "infrastructure" not in {verdict.outcome.value for verdict in verdicts.values()}, verdicts
    # two at a time, each at most the total limit, and a start on a busy machine
    assert time.monotonic() - started < 2 * (3.0 + 0.5) + 3.0, verdicts
    assert not left_behind()


def left_behind() -> list[str]:
    """Processes below this one, and traces of an attack anywhere it could have written."""
    time.sleep(0.02)
    processes = [
        " ".join(process.info["cmdline"] or [process.info["name"]]) for process in psutil.process_iter(["cmdline", "name"]) if stays(process)
    ]
    folders = ("/tmp", "/var/tmp", "/dev/shm", "/usr", "/usr/lib", "/", "/root", "/home", os.getcwd())
    return processes + [folder for folder in folders if (Path(folder) / TOKEN).exists()]


def stays(process: psutil.Process) -> bool:
    if (process.info["name"] or "").startswith(TOKEN[:15]):
        return True
    try:
        return "bwrap" in (process.info["name"] or "") and os.getpid() in [parent.pid for parent in process.parents()]
    except psutil.NoSuchProcess:
        return False


def test_a_solution_passes_each_kind(pool: VerifierPool) -> None:
    honest = f"ANSWERS = {ANSWERS}\ndef f(x): return ANSWERS[x]\nif __name__ == '__main__': print(f(int(input())))"
    verdicts = pool.verify_batch([(task, fenced(honest)) for task in KINDS.values()])
    assert all(verdict.correct for verdict in verdicts), verdicts


def test_the_program_never_sees_what_it_is_judged_by(pool: VerifierPool) -> None:
    """A program that searches every object of its interpreter finds no expected value, but finds one that was put there."""
    reversed_answers = [str(answer)[::-1] for answer in ANSWERS]
    spy = (
        "import gc\n"
        f"WANTED = {reversed_answers}\n"
        "def f(x):\n"
        "    objects = (o for o in gc.get_objects() if isinstance(o, (tuple, list, dict)))\n"
        "    return 'seen' if any(wanted in str(o)[::-1] for o in objects for wanted in WANTED) else 'blind'\n"
        "if __name__ == '__main__': print(f(input()))\n"
    )
    for kind, task in KINDS.items():
        assert "seen" not in pool.verify(task, fenced(spy)).detail, kind
    told = problem("", "code", **{**KINDS["calls"].args, "setup": f"SECRET = {ANSWERS}"})
    assert "seen" in pool.verify(told, fenced(spy)).detail

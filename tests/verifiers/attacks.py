"""The table of attacks: programs that try to pass without solving, to escape, to fill the machine, to outlive their limit or to leave something behind.

PORT is replaced by a port of the host on which somebody listens.
"""

from __future__ import annotations

import os

TOKEN = "touchstone-attack-7731"
"""What an attack that gets out would leave behind."""
CALL = "import ctypes, os, time\nlibc = ctypes.CDLL(None, use_errno=True)\n"
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

SEVERAL = """
import os, time
def several(work, count=24):
    for n in range(count):
        try:
            if os.fork() == 0:
                try: work(n)
                finally: time.sleep(60)
        except OSError: pass
"""
"""`work` in as many processes as there may be, all of which then wait with what they have."""
FILL = """
import os
def fill(folder, piece=1 << 20, most=1 << 30):
    written = n = 0
    try:
        while written < most:
            with open(f"{folder}/fill{n}", "wb") as file: written += file.write(b"x" * piece)
            n += 1
    except OSError: pass
    return written
"""
ATTACKS |= {
    "fills /dev/shm and /dev": FILL + "for folder in ('/dev/shm', '/dev', '/dev/pts'): fill(folder)\ndef f(x): return None\nimport time; time.sleep(0.2)",
    "fills every folder": FILL + "for folder, _, _ in os.walk('/'):\n    if not folder.startswith('/proc'): fill(folder, 1 << 16)\n"
    "def f(x): return None\nimport time; time.sleep(0.2)",
    "user namespace with a tmpfs": CALL + FILL + "libc.unshare(0x10000000 | 0x20000)\nlibc.mount(b'none', b'/tmp', b'tmpfs', 0, b'size=4g')\nfill('/tmp', 1 << 23)\n"
    "time.sleep(0.3)\ndef f(x): return None",
    "namespaces by clone": CALL + "for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):\n"
    "    pid = libc.syscall(56, 0x10000000 | bit | 17, 0, 0, 0, 0)\n    if pid == 0:\n        time.sleep(0.3)\n        os._exit(0)\ntime.sleep(0.3)\ndef f(x): return None",
    "namespaces in namespaces": CALL + "for _ in range(40):\n    if libc.unshare(0x10000000) == 0: time.sleep(0.01)\ntime.sleep(0.2)\ndef f(x): return None",
    "memory in many processes": SEVERAL + "several(lambda n: globals().update(x=bytearray(b'x') * (90 << 20)))\ntime.sleep(60)",
    "shared memory that nobody maps": SEVERAL + CALL + "import mmap\ndef hide(n):\n    for _ in range(4):\n        m = mmap.mmap(-1, 20 << 20)\n        for k in range(20): m[k << 20:(k + 1) << 20] = b'x' * (1 << 20)\n"
    "        m.madvise(mmap.MADV_DONTNEED)\nseveral(hide)\ntime.sleep(60)",
    "shared mapping of /dev/zero": SEVERAL + "import mmap\ndef hide(n):\n    fd = os.open('/dev/zero', os.O_RDWR)\n    m = mmap.mmap(fd, 80 << 20)\n"
    "    for k in range(80): m[k << 20:(k + 1) << 20] = b'x' * (1 << 20)\n    m.madvise(mmap.MADV_DONTNEED)\nseveral(hide)\ntime.sleep(60)",
    "memfd": SEVERAL + "def hide(n):\n    for k in range(50):\n        fd = os.memfd_create('x')\n        os.write(fd, b'x' * (4 << 20))\nseveral(hide)\ntime.sleep(60)",
    "System V shared memory": CALL + "libc.shmat.restype = ctypes.c_void_p\nfor n in range(40):\n    i = libc.shmget(0, 32 << 20, 0o1600)\n    p = libc.shmat(i, None, 0)\n"
    "    if p not in (None, 2 ** 64 - 1):\n        ctypes.memset(p, 1, 32 << 20)\n        libc.shmdt(ctypes.c_void_p(p))\ntime.sleep(60)",
    "System V messages": CALL + "for n in range(20000):\n    q = libc.msgget(0, 0o1600)\n    libc.msgsnd(q, ctypes.create_string_buffer(b'\\1' * 8200), 8192, 0o4000)\ntime.sleep(60)",
    "full sockets": SEVERAL + "import socket\ndef hide(n):\n    kept = []\n    while True:\n        try: pair = socket.socketpair()\n        except OSError: break\n        kept += pair\n"
    "        for one in pair:\n            one.setblocking(False)\n            try:\n                while True: one.send(b'x' * 65536)\n            except OSError: pass\nseveral(hide)\ntime.sleep(60)",
    "full pipes": SEVERAL + "def hide(n):\n    while True:\n        try: a, b = os.pipe()\n        except OSError: break\n        os.set_blocking(b, False)\n"
    "        try:\n            while True: os.write(b, b'x' * 65536)\n        except OSError: pass\nseveral(hide)\ntime.sleep(60)",
    "empty files": SEVERAL + "def work(n):\n    os.mkdir(f'/tmp/{n}')\n    k = 0\n    while True:\n        os.close(os.open(f'/tmp/{n}/{k}', os.O_CREAT)); k += 1\nseveral(work)\ntime.sleep(60)",
    "hard links": "import os\nopen('/tmp/a', 'w').close()\nn = 0\nwhile True:\n    os.link('/tmp/a', f'/tmp/{n}'); n += 1",
    "deep folders": "import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')",
    "unlinked files that stay open": FILL + "kept = []\nwhile len(kept) < 40:\n    fd = os.open('/tmp/gone', os.O_CREAT | os.O_RDWR)\n    os.unlink('/tmp/gone')\n"
    "    try: os.write(fd, b'x' * (4 << 20))\n    except OSError: pass\n    kept.append(fd)\nimport time; time.sleep(60)",
    "sparse file": "with open('/tmp/s', 'wb') as file:\n    file.truncate(4 << 20)\n    file.seek(1 << 40)\n    file.write(b'x')\ndef f(x): return None",
    "extended attributes": "import os\nn = 0\nwhile True:\n    open(f'/tmp/{n}', 'w').close(); os.setxattr(f'/tmp/{n}', 'user.x', b'x' * 60000); n += 1",
    "swapped or locked memory": CALL + SEVERAL + "def work(n):\n    global x\n    x = bytearray(b'x') * (60 << 20)\n    libc.mlockall(3)\nseveral(work)\ntime.sleep(60)",
    "signals to the parent": "import os, signal\nfor pid in (os.getppid(), 1, 2, 3, 0, -1):\n    for n in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):\n"
    "        try: os.kill(pid, n)\n        except OSError: pass\ndef f(x): return None",
    "daemons by double fork": f"import os, time\nfor n in range(8):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            open('/proc/self/comm', 'w').write('{TOKEN[:15]}')\n"
    "            for d in range(64):\n                try: os.close(d)\n                except OSError: pass\n            time.sleep(600)\n        os._exit(0)\ndef f(x): return None",
    "writes to proc": "import glob\nfor path in ['/proc/sysrq-trigger', '/proc/self/oom_score_adj', '/proc/1/oom_score_adj', '/proc/self/mem', '/proc/1/mem', '/proc/1/fd/0', '/proc/1/fd/2', '/proc/1/comm',\n"
    "             '/proc/self/uid_map', '/proc/self/setgroups', '/proc/sys/kernel/core_pattern', '/proc/sys/kernel/hostname', *glob.glob('/proc/sys/user/*'), *glob.glob('/proc/sys/fs/*')]:\n"
    "    try:\n        with open(path, 'w') as file: file.write('-1000')\n    except (OSError, ValueError): pass\ndef f(x): return None",
    "standard files of init": "import os\nfor n in range(10):\n    try:\n        fd = os.open(f'/proc/1/fd/{n}', os.O_RDWR)\n        for _ in range(400): os.write(fd, b'x' * (1 << 20))\n"
    "    except OSError: pass\ndef f(x): return None",
    "devices": "import os, stat\nfor kind in (stat.S_IFCHR, stat.S_IFBLK):\n    for device in ((1, 1), (1, 2), (1, 5), (5, 0), (8, 0), (254, 0)):\n"
    "        try:\n            os.mknod('/tmp/device', kind | 0o600, os.makedev(*device))\n            os.open('/tmp/device', os.O_RDWR)\n        except OSError: pass\ndef f(x): return None",
    "virtual machine's socket": "import socket\ns = socket.socket(40, socket.SOCK_STREAM)\ns.settimeout(0.2)\ns.connect((2, PORT))\ndef f(x): return s.recv(9)",
    "traces its parent": CALL + "libc.ptrace(16, os.getppid(), 0, 0)\nlibc.ptrace(0x4206, 1, 0, 0)\nlibc.process_vm_readv(1, 0, 0, 0, 0, 0)\ndef f(x): return None",
    "io_uring": CALL + "ring = ctypes.create_string_buffer(120)\nprint(libc.syscall(425, 8, ring))\ndef f(x): return None",
    "keys of the kernel": CALL + "for n in range(2000): libc.syscall(248, b'user', b'k%d' % n, b'x' * 4096, 4096, -4)\ndef f(x): return None",
    "capabilities by a set-uid program": "import os, subprocess\nfor name in ('su', 'mount', 'ping', 'newuidmap'):\n    for folder in ('/bin', '/usr/bin', '/sbin'):\n"
    "        try: subprocess.run([f'{folder}/{name}', '--help'])\n        except OSError: pass\ndef f(x): return None",
    "mounts over mounts": CALL + "for target in (b'/', b'/tmp', b'/dev', b'/usr'):\n    libc.mount(None, target, None, 32 | 4096, None)\n    libc.umount2(target, 2)\n"
    "    libc.mount(b'proc', target, b'proc', 0, None)\nlibc.pivot_root(b'/tmp', b'/tmp')\nlibc.chroot(b'/tmp')\ndef f(x): return None",
}  # fmt: skip
"""Those that go for the machine: what they get is measured there."""

"""The system calls that a sandboxed program may not make, as a seccomp filter: classic BPF, assembled by hand for x86_64 and aarch64.

Denied: whatever makes or enters namespaces, mounts, traces or reads other processes, loads code into the kernel, opens files past the mounts, and
whatever holds memory that no process is seen to hold (memfd, System V shared memory and queues, shared anonymous mappings), which would pass by
`memory.py`. Sockets are of the Unix family alone: network, packet, vsock and crypto sockets are no use in there. A denied call fails with an errno
and the program goes on. A call by another architecture's numbering ends the process.

`program(worker=True)` is for an engine's fork that judges one response (engine.py): it also makes no process and no file and signals nobody.

On another architecture there is no filter: `program` gives None, and `isolation.enforced` says so.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""`uname -m` -> AUDIT_ARCH_*."""
DENIED = {  # name: (number on x86_64, on aarch64); None where there is no such call
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_setup": (206, 0),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "set_mempolicy": (238, 237),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "uselib": (134, None),
    "vhangup": (153, 58),
}
DENIED_TO_WORKERS = {
    "creat": (85, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "ioprio_set": (251, 30),
    "kill": (62, 129),
    "link": (86, None),
    "linkat": (265, 37),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "openat2": (437, 437),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "setpriority": (141, 140),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "vfork": (58, None),
}
ABSENT = {"clone3", "io_uring_setup", "io_uring_enter", "io_uring_register", "memfd_create", "memfd_secret", "userfaultfd", "mq_open"}
"""Calls that fail as if the kernel had none: libraries then take the older way."""
CLONE, MMAP, OPEN, OPENAT, PRLIMIT, SOCKET = (56, 220), (9, 222), (2, None), (257, 56), (302, 261), (41, 198)
NAMESPACES = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET; a new time namespace takes clone3 or unshare."""
CLONE_THREAD = 0x10000
SHARED_ANONYMOUS = 0x21
NEW_FILE = 0x400040
"""O_CREAT, and the bit that O_TMPFILE has over O_DIRECTORY."""
X32 = 0x40000000
LOAD, AND, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE = 0, 4


def program(machine: str | None = None, *, worker: bool = False) -> bytes | None:
    """The filter for `machine` (this one) as struct sock_filter[]; None for an architecture that is not in the tables."""
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        return None
    place = list(ARCHITECTURES).index(machine)
    lines = [_line(LOAD, ARCHITECTURE), _line(EQUAL, ARCHITECTURES[machine], 1, 0), _line(RETURN, KILL), _line(LOAD, NUMBER)]
    if machine == "x86_64":
        lines += [_line(AT_LEAST, X32, 0, 1), _line(RETURN, FAIL | errno.ENOSYS)]
    for name, numbers in (DENIED | (DENIED_TO_WORKERS if worker else {})).items():
        if (number := numbers[place]) is not None:
            lines += [_line(EQUAL, number, 0, 1), _line(RETURN, FAIL | denial(name))]
    lines += _when(CLONE[place], 0, [_line(ANY_BIT, NAMESPACES, 0, 1), _line(RETURN, FAIL | errno.EPERM)])
    lines += _when(SOCKET[place], 0, [_line(EQUAL, socket.AF_UNIX, 1, 0), _line(RETURN, FAIL | errno.EAFNOSUPPORT)])
    shared = [_line(AND, SHARED_ANONYMOUS), _line(EQUAL, SHARED_ANONYMOUS, 0, 1), _line(RETURN, FAIL | errno.EPERM)]
    lines += _when(MMAP[place], 3, shared)
    if worker:
        lines += _when(CLONE[place], 0, [_line(ANY_BIT, CLONE_THREAD, 1, 0), _line(RETURN, FAIL | errno.EPERM)])
        lines += _when(PRLIMIT[place], 0, [_line(EQUAL, 0, 1, 0), _line(RETURN, FAIL | errno.EPERM)])
        for numbers, argument in ((OPEN, 1), (OPENAT, 2)):
            lines += _when(numbers[place], argument, [_line(ANY_BIT, NEW_FILE, 0, 1), _line(RETURN, FAIL | errno.EPERM)])
    return b"".join([*lines, _line(RETURN, ALLOW)])


def denial(name: str) -> int:
    """The errno with which a denied call fails."""
    return errno.ENOSYS if name in ABSENT else errno.EPERM


def _line(code: int, constant: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter: operation, how many lines to skip when the comparison holds and when not, constant."""
    return struct.pack("=HBBI", code, if_true, if_false, constant)


def _when(number: int | None, argument: int, lines: list[bytes]) -> list[bytes]:
    """For one call, where there is one: the lines, with the low half of an argument loaded before and the number of the call after them."""
    if number is None:
        return []
    body = [_line(LOAD, 16 + 8 * argument), *lines, _line(LOAD, NUMBER)]
    return [_line(EQUAL, number, 0, len(body)), *body]

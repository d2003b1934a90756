"""On PYTHONPATH: cl_runner finds Python as Windows has it, as far as that can be had elsewhere.

- Our modules, and only they, import an `os`, `signal` and `sys` without the names of Unix, and with
  `sys.platform == "win32"`; `fcntl`, `resource` and the like are not there for them, nor is /proc.
  `os.kill` with SIGTERM ends a process at once.
- Below the folder LIKE_WINDOWS nobody removes or replaces a file that a process of the same group
  has open or mapped, opens a folder, or gives a file a name that Windows forbids.
- LIKE_WINDOWS_CTRL_C=NAME: Ctrl-C reaches the process when it has replaced that file twice.
- LIKE_WINDOWS_TESTS=1: the tests find it so, too (see CONTRIBUTING.md).

It is not Windows: paths, encodings, the console and all that other packages do are this system's.
"""

import builtins
import os
import re
import signal
import sys
import types
from collections import Counter

OURS = ("cl_runner", "hydra_plugins.cl_runner_launcher")
if os.environ.get("LIKE_WINDOWS_TESTS") == "1":
    OURS += ("test_", "conftest")
FOLDER = os.path.realpath(os.environ["LIKE_WINDOWS"]) + os.sep
ABSENT = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
# What the documentation of Python 3.11 says to be in os on Unix only, EX_* aside.
OF_UNIX = """
    chown chroot confstr ctermid fchdir fchmod fchown fdatasync fork forkpty fpathconf fstatvfs
    getegid geteuid getgid getgrouplist getgroups getloadavg getpgid getpgrp getpriority getresgid
    getresuid getsid getuid initgroups killpg lchown lockf major makedev minor mkfifo mknod nice
    openpty pathconf pidfd_open pipe2 posix_fadvise posix_fallocate posix_spawn posix_spawnp pread
    preadv pwrite pwritev readv sched_getaffinity sched_getparam sched_setaffinity sched_yield
    sendfile setegid seteuid setgid setgroups setpgid setpriority setregid setresgid setresuid
    setreuid setsid setuid statvfs sync sysconf tcgetpgrp tcsetpgrp ttyname uname wait wait3 wait4
    waitid writev O_CLOEXEC O_DIRECTORY O_DSYNC O_NDELAY O_NOCTTY O_NOFOLLOW O_NONBLOCK O_SYNC
    WNOHANG
"""
SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
SIGBREAK = 21  # Windows's number, which is SIGTTIN's here
ABOUT_SIGNALS = "alarm pause pthread_kill pthread_sigmask setitimer siginterrupt sigwait"
FORBIDDEN = re.compile(
    r'[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE
)
LONGEST = 259 - 60  # characters of a path, less what may stand before the folder


class Instead(types.ModuleType):
    """A module with some names changed and some left out."""

    def __init__(self, module, without, **changed):
        super().__init__(module.__name__)
        own = {"_module": module, "_without": frozenset(without), "_changed": changed}
        super().__getattribute__("__dict__").update(own)

    def __getattribute__(self, name):
        own = super().__getattribute__("__dict__")
        if name in own["_changed"]:
            return own["_changed"][name]
        if name in own["_without"]:
            raise AttributeError(f"module {own['__name__']!r} has no attribute {name!r} on Windows")
        return getattr(own["_module"], name)

    def __setattr__(self, name, value):
        setattr(super().__getattribute__("__dict__")["_module"], name, value)


def os_of_windows():
    def kill(pid, number):
        os.kill(pid, signal.SIGKILL if number == signal.SIGTERM else number)

    absent = {*re.findall(r"\w+", OF_UNIX), *(name for name in dir(os) if name.startswith("EX_"))}
    return Instead(os, absent, name="nt", kill=kill)


def signal_of_windows():
    def handle(number, handler):
        if number not in {SIGBREAK, *(getattr(signal, name) for name in SIGNALS)}:
            raise ValueError("invalid signal value")
        return signal.signal(number, handler)

    others = {name for name in dir(signal) if re.fullmatch("SIG[A-Z0-9]+", name)} - SIGNALS
    absent = {*others, *re.findall(r"\w+", ABOUT_SIGNALS)}
    return Instead(signal, absent, SIGBREAK=SIGBREAK, signal=handle)


def psutil_of_windows():
    import psutil

    class Process(psutil.Process):
        def memory_info(self):
            return types.SimpleNamespace(peak_wset=super().memory_info().rss)

    return Instead(psutil, (), Process=Process)


CHANGED = {
    "os": os_of_windows,
    "signal": signal_of_windows,
    "sys": lambda: Instead(sys, (), platform="win32"),
    "psutil": psutil_of_windows,
}
made = {}  # what stands for these modules
original_import, original_open = builtins.__import__, open


def ours(variables):
    """Whether these are the variables of a module of ours."""
    name = variables.get("__package__") or variables.get("__name__") or ""
    return name.startswith(OURS)


def imported(name, *rest, **keywords):
    top = name.partition(".")[0]
    variables = rest[0] if rest else keywords.get("globals")
    if (top in CHANGED or top in ABSENT) and ours(variables or {}):
        if top in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if top not in made:
            made[top] = CHANGED[top]()
        return made[top]
    return original_import(name, *rest, **keywords)


def caller():
    """The variables of the module that opens or removes a file, be it by way of pathlib."""
    frame = sys._getframe(1)
    while frame.f_globals["__name__"].partition(".")[0] in ("contextlib", "pathlib", __name__):
        frame = frame.f_back
    return frame.f_globals


def below(path):
    """The whole path, if it lies below FOLDER; else None."""
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    path = os.fsdecode(path)
    path = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
    return path if path.startswith(FOLDER) else None


def in_use():
    """The files that processes of this process's group have open or mapped."""
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.getpgid(int(pid)) == os.getpgrp():
                numbers = os.listdir(f"/proc/{pid}/fd")
                found.update(os.readlink(f"/proc/{pid}/fd/{number}") for number in numbers)
                with original_open(f"/proc/{pid}/maps", "rb") as maps:
                    lines = [os.fsdecode(line).rstrip("\n") for line in maps]
                found.update(line[line.index(FOLDER) :] for line in lines if FOLDER in line)
        except OSError:  # it is gone, or closes a file meanwhile
            continue
    return found


def check_name(path):
    if any(map(FORBIDDEN.search, path[len(FOLDER) :].split(os.sep))):
        raise OSError(22, "like Windows: Invalid argument", path)
    if len(path) - len(FOLDER) > LONGEST:
        raise FileNotFoundError(2, "like Windows: the path is too long", path)


def check_unused(*paths):
    if busy := in_use().intersection(paths):
        raise PermissionError(13, "like Windows: another process uses the file", *busy)


def opening(path, mode, flags):
    whole = below(path)
    if whole is None:
        text = os.fsdecode(path) if isinstance(path, str | os.PathLike) else ""
        if text.startswith(("/proc/", "/sys/")) and ours(caller()):
            raise FileNotFoundError(2, "like Windows: No such file or directory", text)
        return
    if os.path.isdir(whole) and caller()["__name__"] != "shutil":  # which does without on Windows
        raise PermissionError(13, "like Windows: Permission denied", whole)
    if (mode or "r")[0] in "wxa" or (isinstance(flags, int) and flags & os.O_CREAT):
        check_name(whole)


def making(path, *_):
    if whole := below(path):
        check_name(whole)


def removing(path, *_):
    # The package filelock has code of its own for Windows, which is not what runs here.
    if (whole := below(path)) and not caller()["__name__"].startswith("filelock."):
        check_unused(whole)


def renaming(source, target, *_):
    before, after = below(source), below(target)
    if before and after:
        check_name(after)
        check_unused(before, after)
        replaced[os.path.basename(after)] += 1
        if replaced[os.environ.get("LIKE_WINDOWS_CTRL_C")] == 2:
            replaced.clear()
            os.kill(os.getpid(), signal.SIGINT)


replaced = Counter()
ACTS = {"open": opening, "os.mkdir": making, "os.remove": removing, "os.rename": renaming}


def watch(event, args):
    """An audit hook: what it raises ends what was about to be done."""
    if event in ACTS:
        ACTS[event](*args)


builtins.__import__ = imported
sys.addaudithook(watch)

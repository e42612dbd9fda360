"""Child processes: run to the end, measured, or in the background with a certain end.

Promise: background children are ended on leaving their `with`, and die with this program (parent-death signal);
measured ones are killed if the measurement is interrupted. Errors carry the command and the end of its stderr.
"""

import contextlib
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
# How often a child's peak memory is looked at. The kernel keeps the peak; only growth in the last interval is missed.
_MEMORY_POLL_S = 0.002


class CommandFailed(Exception):
    """A command ended with an error; the text says which and why."""


@dataclass(frozen=True)
class Usage:
    """What one command cost."""

    wall_s: float
    cpu_s: float
    peak_kib: int


def _die_with_parent():
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _spawn(argv, env, stdout, stderr, bound=True):
    """Starts a child; a bound one dies with this program. An unbound one is started by vfork and costs less itself."""
    try:
        return subprocess.Popen(
            [str(word) for word in argv],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            preexec_fn=_die_with_parent if bound else None,
        )
    except OSError as error:
        raise CommandFailed(f"{argv[0]}: {error.strerror}") from error


def spelled(argv):
    """The command as one would type it."""
    return shlex.join(str(word) for word in argv)


def _failure(argv, status, stderr):
    return CommandFailed(f"{spelled(argv)}\nended with {status}: {stderr.strip()[-2000:]}")


def run(argv, env=None):
    """Runs a command to its end and returns its stdout. Raises CommandFailed."""
    with _spawn(argv, env, subprocess.PIPE, subprocess.PIPE) as child:
        out, err = child.communicate()
    if child.returncode != 0:
        raise _failure(argv, child.returncode, err.decode(errors="replace"))
    return out.decode(errors="replace")


def peak_memory_kib(pid):
    """Peak resident memory (VmHWM) of a living process, 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def wait_until(done, what, timeout_s=60):
    """Waits until `done()` is true; raises CommandFailed if that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise CommandFailed(f"{what}: not there within {timeout_s} s")
        time.sleep(0.02)


class Background:
    """A running command. Use it in `with`: leaving ends it by SIGTERM, then SIGKILL."""

    def __init__(self, argv, env=None):
        self.argv = argv
        self._stderr = tempfile.TemporaryFile()
        self._child = _spawn(argv, env, subprocess.DEVNULL, self._stderr)

    @property
    def pid(self):
        """Process id."""
        return self._child.pid

    def running(self):
        """Whether it has not ended yet."""
        return self._child.poll() is None

    def errors(self):
        """What it has written to stderr."""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def wait(self):
        """Waits for the end; raises CommandFailed if that is a failure."""
        if self._child.wait() != 0:
            raise _failure(self.argv, self._child.returncode, self.errors())

    def interrupt(self):
        """Interrupts it as by Ctrl-C, and waits for its end."""
        self._child.send_signal(signal.SIGINT)
        self._child.wait(60)

    def wait_for_socket(self, path, timeout_s=60):
        """Waits until an NBD server greets on the Unix socket `path`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.running():
                raise _failure(self.argv, self._child.returncode, self.errors())
            with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
                client.settimeout(5)
                client.connect(str(path))
                if client.recv(8) == b"NBDMAGIC":
                    return
            time.sleep(0.02)
        raise CommandFailed(f"{spelled(self.argv)}\nhas not listened on {path} within {timeout_s} s: {self.errors()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.running():
            self._child.terminate()
            try:
                self._child.wait(20)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._stderr.close()


def measure(argv, env=None):
    """Runs a command to its end and returns its Usage. Raises CommandFailed.

    Memory is VmHWM, watched while it runs: the maximum that wait4 gives includes what this program had when it forked.
    """
    peak_kib = 0
    done = threading.Event()

    def watch(pid):
        nonlocal peak_kib
        while not done.is_set():
            peak_kib = max(peak_kib, peak_memory_kib(pid))
            time.sleep(_MEMORY_POLL_S)

    with tempfile.TemporaryFile() as stderr:
        start = time.monotonic()
        child = _spawn(argv, env, subprocess.DEVNULL, stderr, bound=False)
        watcher = threading.Thread(target=watch, args=(child.pid,))
        watcher.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
            wall_s = time.monotonic() - start
            # Popen must not wait for it again.
            child.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            done.set()
            watcher.join()
        if child.returncode != 0:
            stderr.seek(0)
            raise _failure(argv, child.returncode, stderr.read().decode(errors="replace"))
    return Usage(wall_s, usage.ru_utime + usage.ru_stime, peak_kib)

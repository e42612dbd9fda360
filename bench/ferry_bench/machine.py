"""What the figures were measured on, and with what."""

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

_VERSIONS = {
    "fio": ["fio", "--version"],
    "qemu": ["qemu-nbd", "--version"],
    "nbdkit": ["nbdkit", "--version"],
    "libnbd": ["nbdcopy", "--version"],
    "coreutils": ["cp", "--version"],
    "xfsprogs": ["mkfs.xfs", "-V"],
}


def _first_line(argv, cwd=None):
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True, cwd=cwd)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else "unknown"


def _field(path, name):
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _file_system(path):
    """Type of the file system of a directory, by the longest mount point that holds it."""
    resolved = str(Path(path).resolve())
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        _, mountpoint, type_, *_ = line.split(" ")
        mountpoint = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mountpoint)
        inside = resolved == mountpoint or resolved.startswith(mountpoint.rstrip("/") + "/")
        if inside and len(mountpoint) >= len(best):
            best, kind = mountpoint, type_
    return kind


def _commit(source):
    commit = _first_line(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=source)
    return commit


def describe(plan, source):
    """Everything about the machine that a reader of the figures may ask for, by name."""
    memory_kib = int(_field("/proc/meminfo", "MemTotal").split()[0])
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(source),
        "ferry": _first_line([str(plan.binary), "--version"]),
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / (1 << 20), 1),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),
        "disk_file_system": _file_system(plan.disk),
        "memory_file_system": _file_system(plan.memory),
        **{name: _first_line(argv) for name, argv in _VERSIONS.items() if shutil.which(argv[0])},
    }

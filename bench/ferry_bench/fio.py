"""fio with its nbd engine: the one client that all servers get. And with the engine of a peer that is a library."""

import json
import shlex

from .processes import CommandFailed, run

# The client's own cost is kept small, since it takes a core of the machine that the servers would have.
_COMMON = [
    "--name=job",
    "--thread=1",
    "--norandommap=1",
    "--scramble_buffers=0",
    "--output-format=json",
]


def nbd(uri):
    """The options that say what to work on: an NBD export."""
    return ["--ioengine=nbd", f"--uri={uri}"]


def argv(uri, rw, block_size, depth, *extra):
    """The command line of one job on an NBD export."""
    return argv_on(nbd(uri), rw, block_size, depth, *extra)


def argv_on(engine, rw, block_size, depth, *extra):
    """The command line of one job on what `engine` says."""
    return ["fio", *_COMMON, *engine, f"--rw={rw}", f"--bs={block_size}", f"--iodepth={depth}", *extra]


def parse(text):
    """The one job of fio's JSON, which fio may precede with remarks. Raises CommandFailed."""
    try:
        job = json.loads(text[text.index("{") :])["jobs"][0]
    except (ValueError, KeyError, IndexError) as error:
        raise CommandFailed(f"fio gave no result: {text[:500]!r}") from error
    if job.get("error"):
        raise CommandFailed(f"fio's job ended with error {job['error']}")
    return job


def job(uri, rw, block_size, depth, *extra):
    """Runs one job on an NBD export and returns fio's record of it. Raises CommandFailed."""
    return job_on(nbd(uri), rw, block_size, depth, *extra)


def job_on(engine, rw, block_size, depth, *extra, env=None):
    """The same on what `engine` says."""
    command = argv_on(engine, rw, block_size, depth, *extra)
    result = parse(run(command, env))
    if operations(result) == 0:
        raise CommandFailed(f"no operation was done: {shlex.join(command)}")
    return result


def timed(job_ms, warm_up_ms):
    """Options of a job that runs for a time; what it does while warming up does not count."""
    return ["--time_based", f"--runtime={job_ms}ms", f"--ramp_time={warm_up_ms}ms", "--gtod_reduce=1"]


def operations(result):
    """Reads and writes done."""
    return result["read"]["total_ios"] + result["write"]["total_ios"]


def iops(result):
    """Reads and writes per second."""
    return result["read"]["iops"] + result["write"]["iops"]


def mib_per_s(result):
    """Throughput."""
    return (result["read"]["bw_bytes"] + result["write"]["bw_bytes"]) / (1 << 20)


def fill(uri, size_bytes, stride_bytes=0, block_size_bytes=4 << 20):
    """Writes `size_bytes` of random data in blocks, from the start or `stride_bytes` apart, and flushes."""
    skip = stride_bytes - block_size_bytes if stride_bytes else 0
    rw = f"write:{skip}" if skip else "write"
    return job(uri, rw, block_size_bytes, 4, f"--io_size={size_bytes}", "--end_fsync=1")

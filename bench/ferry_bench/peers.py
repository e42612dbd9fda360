"""The programs that Ferry is measured against, each started as its own documentation has it for a plain raw file."""

import contextlib

from .ferry import Served
from .processes import Background

QEMU_NBD = "qemu-nbd"
NBDKIT = "nbdkit"


@contextlib.contextmanager
def qemu_nbd(file):
    """qemu-nbd on a raw file. Cache mode writeback is its default: the page cache, and a flush is a flush."""
    socket = file.with_suffix(".qemu-nbd.sock")
    argv = ["qemu-nbd", "--format=raw", "--cache=writeback", "--shared=16", "--persistent", "--socket", socket, file]
    with Background(argv) as server:
        server.wait_for_socket(socket)
        yield Served(f"nbd+unix:///?socket={socket}", server)


@contextlib.contextmanager
def qemu_nbd_on_ceph(conf, image, socket):
    """qemu-nbd on an image of a cluster, through librbd: Debian's qemu-block-extra brings the driver. `image` is POOL/IMAGE."""
    argv = ["qemu-nbd", "--format=raw", "--cache=writeback", "--shared=16", "--persistent", "--socket", socket]
    with Background([*argv, f"rbd:{image}:conf={conf}"]) as server:
        server.wait_for_socket(socket)
        yield Served(f"nbd+unix:///?socket={socket}", server)


@contextlib.contextmanager
def nbdkit(file):
    """nbdkit with its file plugin."""
    socket = file.with_suffix(".nbdkit.sock")
    with Background(["nbdkit", "--foreground", "--unix", socket, "file", file]) as server:
        server.wait_for_socket(socket)
        yield Served(f"nbd+unix:///?socket={socket}", server)


SERVERS = {QEMU_NBD: qemu_nbd, NBDKIT: nbdkit}

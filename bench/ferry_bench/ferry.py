"""Ferry as a user has it: a store, commands on it, a server on one image."""

import contextlib
import itertools

from . import processes

POOL = "rbd"


class Ferry:
    """A local store in a directory, with the pool that every new store has, and the binary to use it with."""

    _numbers = itertools.count()

    def __init__(self, binary, store):
        self.binary = binary
        self.store = store
        self._env = {"FERRY_STORE": str(store)}

    def argv(self, *words):
        """The command line of `rbd WORDS`."""
        return [self.binary, *words]

    def run(self, *words):
        """Runs `rbd WORDS` and returns its stdout."""
        return processes.run(self.argv(*words), self._env)

    def measure(self, *words):
        """Runs `rbd WORDS` and returns what it cost."""
        return processes.measure(self.argv(*words), self._env)

    def background(self, *words):
        """Starts `rbd WORDS`."""
        return processes.Background(self.argv(*words), self._env)

    def spec(self, image):
        """The spec of an image of the pool."""
        return f"{POOL}/{image}"

    def import_file(self, path, image):
        """Makes an image with the bytes of a file."""
        self.run("import", path, self.spec(image), "--no-progress")

    def create(self, image, size_bytes):
        """Makes an empty image; sizes in whole MiB."""
        self.run("create", self.spec(image), "--size", f"{size_bytes >> 20}M")

    @contextlib.contextmanager
    def serve(self, image):
        """Serves one image; gives its Served."""
        socket = self.store.parent / f"ferry{next(self._numbers)}.sock"
        with self.background("serve", self.spec(image), "--socket", socket) as server:
            server.wait_for_socket(socket)
            yield Served(f"nbd+unix:///{self.spec(image)}?socket={socket}", server)
        with contextlib.suppress(FileNotFoundError):
            socket.unlink()


class Served:
    """An NBD export and the process behind it."""

    def __init__(self, uri, server):
        self.uri = uri
        self.server = server

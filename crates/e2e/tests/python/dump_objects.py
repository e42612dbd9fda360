"""Prints all objects of some pools as JSON, in names that do not tell when and by whom they were made.

usage: dump_objects.py CEPH_CONF POOL/NAMESPACE...

Of each object: xattrs, omap, bytes, and the clones with what they share and hold. Replaced are: ids of images by <pool.name>, ids of
groups and their snapshots by names, ids of snapshots by their rank among those of their pool (each pool counts for itself), the namespace, and times. What only Ferry writes
(omap keys ferry_*) is left out.
"""
import hashlib
import json
import re
import struct
import subprocess
import sys
import time

import rados

PAGE = 1000
# Records of headers that hold ids of snapshots.
WITH_SNAPS = ("snap_seq", "snapshot_", "migration", "parent", "snap_children_")


def omap(ioctx, name):
    pairs = {}
    after = ""
    while True:
        with rados.ReadOpCtx() as op:
            page, _ = ioctx.get_omap_vals(op, after, "", PAGE)
            ioctx.operate_read_op(op, name)
            page = list(page)
        for key, value in page:
            pairs[key] = value
            after = key
        if len(page) < PAGE:
            return {key: value for key, value in pairs.items() if not key.startswith("ferry_")}


def clones(conf, pool, namespace, name):
    words = ["rados", "-c", conf, "-p", pool, "listsnaps", name, "--format", "json"]
    if namespace:
        words += ["--namespace", namespace]
    return json.loads(subprocess.run(words, check=True, capture_output=True).stdout)["clones"]


def read_all(cluster, conf, place):
    pool, _, namespace = place.partition("/")
    ioctx = cluster.open_ioctx(pool)
    ioctx.set_namespace(namespace)
    objects = {}
    for found in ioctx.list_objects():
        name = found.key
        entry = {"clones": clones(conf, pool, namespace, name), "bytes": {}, "xattrs": {}, "omap": {}}
        for clone in entry["clones"]:
            is_head = clone["id"] == "head"
            ioctx.set_read(rados.LIBRADOS_SNAP_HEAD if is_head else int(clone["id"]))
            size, _ = ioctx.stat(name)
            entry["bytes"][clone["id"]] = ioctx.read(name, size) if size else b""
            if is_head:
                entry["xattrs"] = dict(ioctx.get_xattrs(name))
                entry["omap"] = omap(ioctx, name)
        ioctx.set_read(rados.LIBRADOS_SNAP_HEAD)
        objects[name] = entry
    ioctx.close()
    return objects


def u64(data):
    return struct.unpack("<Q", data[:8])[0]


def group_snapshot(data):
    """A record of a group's snapshot: versions, id, name, state, and of every part version, pool, image and snapshot."""
    ident = text(data[6:])
    at = 6 + 4 + len(ident)
    name = text(data[at:])
    at += 4 + len(name)
    state, count = struct.unpack("<BI", data[at : at + 5])
    at += 5
    parts = []
    for _ in range(count):
        version, _, length, pool = struct.unpack("<BBIQ", data[at : at + 14])
        image = text(data[at + 14 :])
        parts.append((version, pool, image, u64(data[at + 18 + len(image) :])))
        at += 6 + length
    assert at == len(data), "bytes behind the record"
    return list(data[:2]), ident, name, state, parts


def text(data):
    length = struct.unpack("<I", data[:4])[0]
    return data[4 : 4 + length].decode()


class Names:
    """What is replaced by what."""

    def __init__(self, places):
        self.ids = {}
        snaps = {}
        self.namespaces = sorted({place.partition("/")[2] for place in places} - {""})
        for place, objects in places.items():
            pool = place.partition("/")[0]
            of_pool = snaps.setdefault(pool, set())
            for name, entry in objects.items():
                for key, value in entry["omap"].items():
                    if name == "rbd_directory" and key.startswith("name_"):
                        self.ids[text(value)] = f"<{pool}.{key[5:]}>"
                    if name == "rbd_trash" and key.startswith("id_"):
                        self.ids[key[3:]] = f"<trash.{pool}.{text(value[7:])}>"
                    if name == "rbd_group_directory" and key.startswith("name_"):
                        self.ids[text(value)] = f"<group {pool}.{key[5:]}>"
                    if name.startswith("rbd_group_header."):
                        if key.startswith("snapshot_"):
                            self.ids[key[9:]] = f"<group snapshot {group_snapshot(value)[2]}>"
                        continue
                    if key == "snap_seq":
                        of_pool.add(u64(value))
                    if key.startswith("snapshot_"):
                        of_pool.add(int(key[9:], 16))
                for clone in entry["clones"]:
                    of_pool.update(snap["id"] for snap in clone["snapshots"])
        self.ranks = {
            pool: {snap: rank for rank, snap in enumerate(sorted(of_pool - {0}))} for pool, of_pool in snaps.items()
        }

    def snap(self, number, pool):
        return self.ranks[pool].get(number, "?")

    def pair(self, data, pool):
        """A pair of a source's snapshot, of the other pool, and the target's, which a migration's record maps it to."""
        if len(data) < 16 or u64(data[8:]) not in self.ranks[pool]:
            return None
        for other, ranks in self.ranks.items():
            if other != pool and u64(data) in ranks:
                return f"<snap {ranks[u64(data)]} of {other}><snap {self.snap(u64(data[8:]), pool)}>"
        return None

    def frames_an_id(self, data):
        """Whether a record begins here (version, oldest that can read it, length) whose length depends on an id in it."""
        if len(data) < 6:
            return False
        version, compat, length = struct.unpack("<BBI", data[:6])
        content = data[6 : 6 + length]
        if not 1 <= compat <= version < 16 or len(content) != length:
            return False
        return b".group." in content or any(
            struct.pack("<I", len(number)) + number.encode() in content or b"rbd_data." + number.encode() in content
            for number in self.ids
        )

    def word(self, word, pool):
        for number, name in self.ids.items():
            word = word.replace(number, name)
        for namespace in self.namespaces:
            word = word.replace(namespace, "<ns>")
        tail = re.search(r"^(rbd_object_map\..*\.|snapshot_|snap_children_)([0-9a-f]{16})$", word)
        if tail:
            word = f"{tail[1]}<snap {self.snap(int(tail[2], 16), pool)}>"
        return word

    def value(self, data, pool, key="", of_group=False):
        """Bytes as text: printable ones as they are, others in hexadecimal."""
        if of_group and key.startswith("snapshot_"):
            version, ident, name, state, parts = group_snapshot(data)
            parts = [
                (version, pool_id, self.ids[image], self.snap(snap, self.ids[image][1:].partition(".")[0]))
                for version, pool_id, image, snap in parts
            ]
            return f"{version} {self.ids[ident]} {name} {state} {parts}"
        with_snaps = key.startswith(WITH_SNAPS)
        out = ""
        at = 0
        now = time.time()
        while at < len(data):
            rest = data[at : at + 8]
            found = None
            for number, name in self.ids.items():
                encoded = number.encode()
                # With its length in front, which depends on the id.
                if data[at + 4 :].startswith(encoded) and struct.unpack("<I", rest[:4])[0] == len(encoded):
                    found = (name, 4 + len(encoded))
                prefix = re.match(rb"rbd_data\.([0-9]+\.)?" + encoded, data[at + 4 :])
                if prefix and struct.unpack("<I", rest[:4])[0] == prefix.end():
                    found = (prefix[0].decode().replace(number, name), 4 + prefix.end())
            part = re.match(rb"\.group\.[0-9a-f]+_[0-9a-f]+_[0-9a-f]+", data[at + 4 :])
            if part and struct.unpack("<I", rest[:4])[0] == part.end():
                found = (self.word(part[0].decode(), pool), 4 + part.end())
            for namespace in self.namespaces:
                if data[at:].startswith(namespace.encode()):
                    found = ("<ns>", len(namespace))
            if found is None and self.frames_an_id(data[at:]):
                found = (f"\\{data[at]:02x}\\{data[at + 1]:02x}<length>", 6)
            if found is None and len(rest) == 8:
                seconds, nanoseconds = struct.unpack("<II", rest)
                if abs(seconds - now) < 86400 and nanoseconds < 10**9:
                    found = ("<time>", 8)
                elif key == "migration" and self.pair(data[at : at + 16], pool):
                    found = (self.pair(data[at : at + 16], pool), 16)
                elif key.startswith("snapshot_") and at != 6:
                    # Of a snapshot's record only its own id, behind the frame; a size may look like another's.
                    pass
                elif with_snaps and key != "migration" and u64(rest) in self.ranks[pool]:
                    found = (f"<snap {self.snap(u64(rest), pool)}>", 8)
            if found is None:
                byte = data[at]
                found = (chr(byte) if 33 <= byte < 127 else f"\\{byte:02x}", 1)
            out += found[0]
            at += found[1]
        return out


def describe(entry, pool, names, of_group):
    def snap(number):
        return number if number == "head" else f"snap {names.snap(int(number), pool)}"

    lines = {}
    for key, value in entry["xattrs"].items():
        lines[f"xattr {key}"] = names.value(value, pool)
    for key, value in entry["omap"].items():
        lines[f"omap {names.word(key, pool)}"] = names.value(value, pool, key, of_group)
    for clone in entry["clones"]:
        seen = [snap(one["id"]) for one in clone["snapshots"]]
        lines[f"clone {snap(clone['id'])}"] = f"at {seen}, shares {clone.get('overlaps')}"
    for number, data in entry["bytes"].items():
        small = names.value(data, pool) if len(data) <= 256 else hashlib.sha256(data).hexdigest()
        lines[f"bytes {snap(number)}"] = small
    return lines


def main():
    conf, wanted = sys.argv[1], sys.argv[2:]
    cluster = rados.Rados(conffile=conf)
    cluster.connect(timeout=30)
    places = {place: read_all(cluster, conf, place) for place in wanted}
    cluster.shutdown()
    names = Names(places)
    out = {}
    for place, objects in places.items():
        pool = place.partition("/")[0]
        for name, entry in objects.items():
            out[f"{pool}: {names.word(name, pool)}"] = describe(entry, pool, names, name.startswith("rbd_group_header."))
    json.dump(out, sys.stdout, indent=1, sort_keys=True)


main()

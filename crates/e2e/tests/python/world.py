"""Answers questions about all images of a namespace through Ceph's librbd, and writes to them. One line of JSON each way.

usage: world.py CEPH_CONF

    ["shape", NAMESPACE]           images and trash of the pools rbd and other: sizes, snapshots, parents, migrations
    ["contents", NAMESPACE]        digests of the bytes of all versions of all images
    ["changes", NAMESPACE, IMAGE, SNAP or null, SNAP or null]   blocks that differ between two versions, as offsets in bytes
    ["write", NAMESPACE, IMAGE, [[KIND, OFFSET, LENGTH, BYTE], ...]]     KIND is write, discard or zero

Images are named `/IMAGE` in the pool rbd and `+/IMAGE` in the other one. Answers are `["ok", ANSWER]` or `["error", ERRNO, MESSAGE]`.
"""
import hashlib
import json
import struct
import sys

import rados
import rbd

POOLS = {"": "rbd", "+": "other"}
MIGRATING = 512
BLOCK = 512
STATES = {
    rbd.RBD_IMAGE_MIGRATION_STATE_ERROR: "error",
    rbd.RBD_IMAGE_MIGRATION_STATE_PREPARING: "preparing",
    rbd.RBD_IMAGE_MIGRATION_STATE_PREPARED: "prepared",
    rbd.RBD_IMAGE_MIGRATION_STATE_EXECUTING: "executing",
    rbd.RBD_IMAGE_MIGRATION_STATE_EXECUTED: "executed",
    rbd.RBD_IMAGE_MIGRATION_STATE_ABORTING: "aborting",
}
cluster = rados.Rados(conffile=sys.argv[1])
# A discard is done to the byte, as Ferry does it, not in whole granules.
cluster.conf_set("rbd_skip_partial_discard", "false")
cluster.connect(timeout=30)


class Pools:
    """The two pools in a namespace."""

    def __init__(self, namespace):
        self.contexts = {}
        for sign, pool in POOLS.items():
            self.contexts[sign] = cluster.open_ioctx(pool)
            self.contexts[sign].set_namespace(namespace)

    def __enter__(self):
        return self.contexts.items()

    def __exit__(self, *_):
        for context in self.contexts.values():
            context.close()


def signed(pool, namespace, name):
    for sign, known in POOLS.items():
        if pool == known:
            return f"{sign}/{name}"
    return f"{pool}/{namespace}/{name}"


def user_snaps(image):
    return [snap for snap in image.list_snaps() if snap["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER]


def parent(image):
    try:
        spec = image.get_parent_image_spec()
        overlap = image.overlap()
    except rbd.ImageNotFound:
        return None
    return {
        "image": signed(spec["pool_name"], spec["pool_namespace"], spec["image_name"]),
        "snap": spec["snap_name"],
        "overlap": overlap,
    }


def migration(context, name, features):
    if not features & MIGRATING:
        return None
    try:
        status = rbd.RBD().migration_status(context, name)
    except rbd.Error as error:
        return {"state": "error", "errno": error.errno}
    return {
        "state": STATES[status["state"]],
        "source": signed_by_id(status, "source"),
        "target": signed_by_id(status, "dest"),
    }


def signed_by_id(status, end):
    pool = cluster.pool_reverse_lookup(status[f"{end}_pool_id"])
    return signed(pool, status[f"{end}_pool_namespace"], status[f"{end}_image_name"])


def describe(context, name):
    try:
        with rbd.Image(context, name, read_only=True) as image:
            features = image.features()
            snaps = []
            for snap in user_snaps(image):
                image.set_snap(snap["name"])
                snaps.append(
                    {
                        "name": snap["name"],
                        "size": snap["size"],
                        "protected": image.is_protected_snap(snap["name"]),
                        "children": sorted(
                            signed(child["pool"], child["pool_namespace"], child["image"])
                            for child in image.list_children2()
                        ),
                    }
                )
            image.set_snap(None)
            return {
                "size": image.size(),
                "order": image.stat()["order"],
                "features": features,
                "flags": image.flags(),
                "snaps": snaps,
                "hidden": len(list(image.list_snaps())) - len(snaps),
                "parent": parent(image),
                "metadata": dict(image.metadata_list()),
                "migration": migration(context, name, features),
            }
    except rbd.Error as error:
        return {"unreadable": str(error), "migration": migration(context, name, MIGRATING)}


SOURCES = {0: "user", 1: "mirroring", 2: "migration", 3: "removing"}


def shape(namespace):
    images, trash = {}, []
    with Pools(namespace) as pools:
        for sign, context in pools:
            for name in sorted(rbd.RBD().list(context)):
                images[f"{sign}/{name}"] = describe(context, name)
            for number, source, name in trash_entries(context):
                trash.append({"pool": sign, "name": name, "source": SOURCES.get(source, "?"), "id": number})
    trash.sort(key=lambda entry: (entry["pool"], entry["name"]))
    return {"images": images, "trash": trash}


def trash_entries(context):
    """Ids, sources and names, from the records: the binding of 16.2.15 fails where the source of a migration is in the trash."""
    try:
        with rados.ReadOpCtx() as op:
            page, _ = context.get_omap_vals(op, "", "id_", 1000)
            context.operate_read_op(op, "rbd_trash")
            page = list(page)
    except rados.ObjectNotFound:
        return
    for key, value in page:
        length = struct.unpack_from("<I", value, 7)[0]
        yield key[3:], value[6], value[11 : 11 + length].decode()


def digest(image):
    size = image.size()
    return [size, hashlib.sha256(image.read(0, size)).hexdigest() if size else ""]


def versions(context, name):
    found = {}
    try:
        with rbd.Image(context, name, read_only=True) as image:
            found[""] = digest(image)
            for snap in user_snaps(image):
                image.set_snap(snap["name"])
                found[snap["name"]] = digest(image)
    except rbd.Error as error:
        found["unreadable"] = str(error)
    return found


def contents(namespace):
    found = {}
    with Pools(namespace) as pools:
        for sign, context in pools:
            for name in sorted(rbd.RBD().list(context)):
                found[f"{sign}/{name}"] = versions(context, name)
    return found


def at(image, snap):
    image.set_snap(snap)
    size = image.size()
    return image.read(0, size) if size else b""


def changes(namespace, name, before, now):
    with Pools(namespace) as pools:
        sign, _, bare = name.partition("/")
        with rbd.Image(dict(pools)[sign], bare, read_only=True) as image:
            new = at(image, now)
            old = (at(image, before) if before else b"").ljust(len(new), b"\0")
    return [start for start in range(0, len(new), BLOCK) if new[start : start + BLOCK] != old[: len(new)][start : start + BLOCK]]


def write(namespace, name, requests):
    with Pools(namespace) as pools:
        sign, _, bare = name.partition("/")
        with rbd.Image(dict(pools)[sign], bare) as image:
            for kind, offset, length, byte in requests:
                if kind == "write":
                    image.write(bytes([byte]) * length, offset)
                elif kind == "discard":
                    image.discard(offset, length)
                else:
                    image.write_zeroes(offset, length)
            image.flush()


def main():
    verbs = {"shape": shape, "contents": contents, "changes": changes, "write": write}
    while line := sys.stdin.readline():
        verb, *words = json.loads(line)
        try:
            answer = ["ok", verbs[verb](*words)]
        except rbd.Error as error:
            answer = ["error", getattr(error, "errno", 0), str(error)]
        print(json.dumps(answer), flush=True)


main()

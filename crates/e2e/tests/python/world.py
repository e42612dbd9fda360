"""Answers questions about all images of a namespace through Ceph's librbd, and writes to them. One line of JSON each way.

usage: world.py CEPH_CONF

    ["shape", NAMESPACE]           images, groups and trash of the side's places: sizes, snapshots, parents, migrations
    ["contents", NAMESPACE]        digests of the bytes of all versions of all images
    ["changes", NAMESPACE, IMAGE, SNAP or null, SNAP or null]   blocks that differ between two versions, as offsets in bytes
    ["write", NAMESPACE, IMAGE, [[KIND, OFFSET, LENGTH, BYTE], ...]]     KIND is write, discard or zero

Images are named `/IMAGE` in the pool rbd and `+/IMAGE` in the other one, both in the namespace, and `=/IMAGE` in the pool rbd without
a namespace, where their names begin with NAMESPACE and a dot. So are groups. Answers are `["ok", ANSWER]` or `["error", ERRNO, MESSAGE]`.
"""
import hashlib
import json
import struct
import sys

import rados
import rbd

POOLS = {"": "rbd", "+": "other", "=": "rbd"}
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


class Place:
    """Where a side has images: a pool, a namespace or none, and how names begin there."""

    def __init__(self, sign, namespace):
        self.sign = sign
        self.prefix = f"{namespace}." if sign == "=" else ""
        self.context = cluster.open_ioctx(POOLS[sign])
        self.context.set_namespace("" if sign == "=" else namespace)

    def names(self, all_names):
        """The side's own among them, without the prefix."""
        return sorted(name[len(self.prefix) :] for name in all_names if name.startswith(self.prefix))

    def open(self, name, read_only=True):
        return rbd.Image(self.context, self.prefix + name, read_only=read_only)


class Places:
    """All places of a side."""

    def __init__(self, namespace):
        self.all = [Place(sign, namespace) for sign in POOLS]

    def __enter__(self):
        return self.all

    def __exit__(self, *_):
        for place in self.all:
            place.context.close()


def find(places, name):
    """Place and bare name of an image."""
    sign, _, bare = name.partition("/")
    return next(place for place in places if place.sign == sign), bare


def signed(pool, namespace, name):
    if not namespace and "." in name:
        return "=/" + name.split(".", 1)[1]
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


def migration(place, name, features, old):
    if not features & MIGRATING and not old:
        return None
    try:
        status = rbd.RBD().migration_status(place.context, place.prefix + name)
    except rbd.Error as error:
        return {"state": "error", "errno": error.errno} if features & MIGRATING else None
    return {
        "state": STATES[status["state"]],
        "source": signed_by_id(status, "source"),
        "target": signed_by_id(status, "dest"),
    }


def signed_by_id(status, end):
    pool = cluster.pool_reverse_lookup(status[f"{end}_pool_id"])
    return signed(pool, status[f"{end}_pool_namespace"], status[f"{end}_image_name"])


def group_snaps(image):
    """Snapshots of groups that the image has a part of."""
    found = []
    for snap in image.list_snaps():
        if snap["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_GROUP:
            group = image.snap_get_group_namespace(snap["id"])
            found.append(f"{bare(group['name'])}@{group['snap_name']}")
    return found


def describe(place, name):
    """What an image is, and the state of its migration."""
    try:
        with place.open(name) as image:
            said = describe_open(image)
            old, features = said["old"], said["features"]
        return said | {"migration": migration(place, name, features, old)}
    except rbd.Error as error:
        return {"unreadable": str(error), "migration": migration(place, name, MIGRATING, False)}


def describe_trashed(place, number):
    """What an image in the trash is, which takes part in no migration."""
    try:
        with rbd.Image(place.context, image_id=number, read_only=True) as image:
            return describe_open(image) | {"migration": None}
    except rbd.Error as error:
        return {"unreadable": str(error)}


def describe_open(image):
    old = image.old_format()
    snaps = []
    for snap in user_snaps(image):
        image.set_snap(snap["name"])
        snaps.append(
            {
                "name": snap["name"],
                "size": snap["size"],
                "protected": not old and image.is_protected_snap(snap["name"]),
                "children": sorted(
                    signed(child["pool"], child["pool_namespace"], child["image"]) for child in image.list_children2()
                ),
            }
        )
    image.set_snap(None)
    return {
        "size": image.size(),
        "old": old,
        "order": image.stat()["order"],
        "features": image.features(),
        "flags": image.flags(),
        "snaps": snaps,
        "group_snaps": group_snaps(image),
        "hidden": len(list(image.list_snaps())) - len(snaps),
        "parent": parent(image),
        "metadata": dict(image.metadata_list()),
    }


SOURCES = {0: "user", 1: "mirroring", 2: "migration", 3: "removing"}


def bare(name):
    """A group's name without the prefix of its place."""
    return name.rsplit(".", 1)[-1]


def group(place, name):
    with_group = rbd.Group(place.context, place.prefix + name)
    members = [(cluster.pool_reverse_lookup(member["pool"]), member["name"]) for member in with_group.list_images()]
    if not members:
        members = recorded_members(place, name)
    signs = {"rbd": "=" if place.sign == "=" else "", "other": "+"}
    return {
        "images": sorted(f"{signs[pool]}/{bare(member)}" for pool, member in members),
        "snaps": [[snap["name"], snap["state"]] for snap in with_group.list_snaps()],
    }


def recorded_members(place, name):
    """Pools and names, from the records: librbd's list of a group is empty where one of the images is in the trash."""
    number = text(omap(place.context, "rbd_group_directory")[f"name_{place.prefix}{name}"])
    for key in omap(place.context, f"rbd_group_header.{number}"):
        if key.startswith("image_"):
            _, pool, image = key.split("_", 2)
            pool = cluster.pool_reverse_lookup(int(pool, 16))
            with cluster.open_ioctx(pool) as context:
                context.set_namespace(place.context.get_namespace())
                names = {key[3:]: text(value) for key, value in omap(context, "rbd_directory").items() if key.startswith("id_")}
                names |= {number: name for number, _, name in trash_entries(context)}
            yield pool, names[image]


def omap(context, name):
    with rados.ReadOpCtx() as op:
        page, _ = context.get_omap_vals(op, "", "", 1000)
        context.operate_read_op(op, name)
        return dict(page)


def text(record):
    return record[4:].decode()


def shape(namespace):
    images, trash, groups = {}, [], {}
    with Places(namespace) as places:
        for place in places:
            for name in place.names(rbd.RBD().list(place.context)):
                images[f"{place.sign}/{name}"] = describe(place, name)
            for number, source, name in trash_entries(place.context):
                for mine in place.names([name]):
                    entry = {"pool": place.sign, "name": mine, "source": SOURCES.get(source, "?"), "id": number}
                    if entry["source"] == "user":
                        entry["image"] = describe_trashed(place, number)
                    trash.append(entry)
            for name in place.names(rbd.RBD().group_list(place.context)):
                groups[f"{place.sign}/{name}"] = group(place, name)
    trash.sort(key=lambda entry: (entry["pool"], entry["name"]))
    return {"images": images, "trash": trash, "groups": groups}


def trash_entries(context):
    """Ids, sources and names, from the records: the binding of 16.2.15 fails where the source of a migration is in the trash."""
    try:
        entries = omap(context, "rbd_trash")
    except rados.ObjectNotFound:
        return
    for key, value in entries.items():
        if key.startswith("id_"):
            length = struct.unpack_from("<I", value, 7)[0]
            yield key[3:], value[6], value[11 : 11 + length].decode()


def digest(image):
    size = image.size()
    return [size, hashlib.sha256(image.read(0, size)).hexdigest() if size else ""]


def versions(place, name):
    """Also of the snapshots that are not the user's, which have numbers for names."""
    found = {}
    try:
        with place.open(name) as image:
            found[""] = digest(image)
            for number, snap in enumerate(image.list_snaps()):
                user = snap["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER
                image.set_snap_by_id(snap["id"])
                found[snap["name"] if user else f"#{number}"] = digest(image)
    except rbd.Error as error:
        found["unreadable"] = str(error)
    return found


def contents(namespace):
    found = {}
    with Places(namespace) as places:
        for place in places:
            for name in place.names(rbd.RBD().list(place.context)):
                found[f"{place.sign}/{name}"] = versions(place, name)
    return found


def at(image, snap):
    image.set_snap(snap)
    size = image.size()
    return image.read(0, size) if size else b""


def changes(namespace, name, before, now):
    with Places(namespace) as places:
        place, bare_name = find(places, name)
        with place.open(bare_name) as image:
            new = at(image, now)
            old = (at(image, before) if before else b"").ljust(len(new), b"\0")
    return [start for start in range(0, len(new), BLOCK) if new[start : start + BLOCK] != old[: len(new)][start : start + BLOCK]]


def write(namespace, name, requests):
    with Places(namespace) as places:
        place, bare_name = find(places, name)
        with place.open(bare_name, read_only=False) as image:
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

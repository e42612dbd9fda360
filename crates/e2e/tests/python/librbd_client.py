"""A client on librbd that does what it is told, line by line, and answers each line with one of its own.

usage: librbd_client.py CEPH_CONF POOL/NAMESPACE IMAGE

    lock | owner | unlock | flush | size | features | snaps | close
    write OFFSET LENGTH BYTE | discard OFFSET LENGTH | read OFFSET LENGTH      (read answers with a digest)
    hammer BYTE      writes without a pause until the next line comes, and answers with how often
    stamps BLOCKS STRIDE     answers, then writes 1, 2, 3... to as many blocks of 4 KiB in turn, each after the last was
                             acknowledged, until a line other than `where` comes; answers each line with the last number
    metadata KEY

Answers are `ok ...` or `error ERRNO MESSAGE`.
"""
import hashlib
import select
import struct
import sys

import rados
import rbd


def obey(image, line):
    verb, *words = line.split()
    if verb == "lock":
        image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
    elif verb == "unlock":
        image.lock_release()
    elif verb == "owner":
        return str(image.is_exclusive_lock_owner())
    elif verb == "flush":
        image.flush()
    elif verb == "size":
        return str(image.size())
    elif verb == "features":
        return str(image.features())
    elif verb == "snaps":
        return " ".join(snap["name"] for snap in image.list_snaps())
    elif verb == "metadata":
        return image.metadata_get(words[0])
    elif verb == "write":
        offset, length, byte = map(int, words)
        image.write(bytes([byte]) * length, offset)
    elif verb == "discard":
        image.discard(*map(int, words))
    elif verb == "read":
        return hashlib.sha256(image.read(*map(int, words))).hexdigest()
    elif verb == "hammer":
        count = 0
        size = image.size()
        data = bytes([int(words[0])]) * 4096
        while not select.select([sys.stdin], [], [], 0)[0]:
            image.write(data, count * 4096 % size)
            count += 1
        return str(count)
    elif verb == "stamps":
        return write_stamps(image, *map(int, words))
    else:
        raise ValueError(verb)
    return ""


def write_stamps(image, blocks, stride):
    # Whoever waits for this sends no line that would be read together with the one before, where select does not see it.
    print("ok", flush=True)
    stamp = 0
    while True:
        if select.select([sys.stdin], [], [], 0)[0]:
            if sys.stdin.readline().strip() != "where":
                break
            print("ok", stamp, flush=True)
        image.write(struct.pack("<Q", stamp + 1) * 512, stamp % blocks * stride)
        stamp += 1
        if stamp % 4 == 0:
            image.flush()
    image.flush()
    return str(stamp)


def main():
    conf, place, name = sys.argv[1:]
    pool, _, namespace = place.partition("/")
    cluster = rados.Rados(conffile=conf)
    cluster.connect(timeout=30)
    ioctx = cluster.open_ioctx(pool)
    ioctx.set_namespace(namespace)
    image = rbd.Image(ioctx, name)
    print("ok", flush=True)
    while line := sys.stdin.readline():
        if line.strip() == "close":
            break
        try:
            print("ok", obey(image, line), flush=True)
        # A key that an image's metadata lack is a KeyError.
        except (rbd.Error, KeyError) as error:
            print("error", getattr(error, "errno", 0), error, flush=True)
    image.close()
    ioctx.close()
    cluster.shutdown()
    print("ok", flush=True)


main()

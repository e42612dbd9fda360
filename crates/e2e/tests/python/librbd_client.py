"""A client on librbd that does what it is told, line by line, and answers each line with one of its own.

usage: librbd_client.py CEPH_CONF POOL/NAMESPACE IMAGE

    lock | owner | unlock | flush | size | features | snaps | close
    write OFFSET LENGTH BYTE | discard OFFSET LENGTH | read OFFSET LENGTH      (read answers with a digest)
    hammer BYTE      writes without a pause until the next line comes, and answers with how often
    metadata KEY

Answers are `ok ...` or `error ERRNO MESSAGE`.
"""
import hashlib
import select
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
    else:
        raise ValueError(verb)
    return ""


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
        except rbd.Error as error:
            print("error", getattr(error, "errno", 0), error, flush=True)
    image.close()
    ioctx.close()
    cluster.shutdown()
    print("ok", flush=True)


main()

//! Where corpora begin: right input for every target, made by the same code that writes it in the product.
//!
//! `cargo run -p ferry-hostile --example seeds -- fuzz/corpus` writes them, each under a name that tells its content.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_cls::encoding::{BitVector, Encode};
use ferry_cls::rbd::v1::{V1Header, V1Snapshot};
use ferry_cls::rbd::{SnapshotNamespace, feature};
use ferry_cls::testing::samples::{payloads, records, rich_object};
use ferry_image::export_format::diff::{encode_end, encode_head, encode_run};
use ferry_image::export_format::{DiffHead, ImageHead, Run, RunKind, Version};
use ferry_image::watch::messages::{AsyncRequestId, ClientId, Message, Request};
use ferry_nbd::proto::{
    ChunkHeader, ExtendedChunkHeader, OptionHeader, RequestHeader, SimpleReply, chunk, cmd, opt,
};
use ferry_store::SnapId;

use crate::cls::{LOCK_METHODS, METHODS};
use crate::nbd::{EXPORT, good_handshake};
use crate::shape::part;

/// Inputs for the target of this name; none for one that is not known.
#[must_use]
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "cls_records" => kinds(
            0..23,
            &records()
                .into_iter()
                .map(|(_, bytes, _)| bytes)
                .collect::<Vec<_>>(),
        ),
        "cls_answers" => answers(),
        "cls_calls" => calls()
            .iter()
            .map(|call| [call.clone(), call.clone()].concat())
            .collect(),
        "cls_stored" => stored(),
        "object_map" => object_maps(),
        "image_header" => rich_object()
            .omap
            .values()
            .enumerate()
            .map(|(at, value)| [&(at as u16).to_le_bytes()[..], &part(value)].concat())
            .collect(),
        "image_header_v1" => vec![v1_header(false), v1_header(true)],
        "image_messages" => messages(),
        "export_files" => export_files(),
        "import_files" => vec![
            [&[0][..], &export(2)].concat(),
            [&[1][..], &diff(Version::V1, None, None)].concat(),
            [&[1][..], &diff(Version::V1, None, Some("s"))].concat(),
        ],
        "nbd_codec" => nbd_codec(),
        "nbd_server" => nbd_server(),
        "nbd_client" => nbd_client(),
        "local_columns" => local_columns(),
        "local_rows" => local_rows(),
        "local_files" => (0..12u16)
            .map(|file| {
                let place = u64::from(file) * 97;
                [
                    &file.to_le_bytes()[..],
                    &[2],
                    &place.to_le_bytes(),
                    &part(b"\xff\0\x80"),
                ]
                .concat()
            })
            .collect(),
        "cli_names" => texts(&[
            "pool/ns/image@snap",
            "image",
            "pool/image",
            "p/n",
            "16M",
            "1.5G",
            "auto",
            "none",
            "layering,exclusive-lock",
            "22",
            "0.5",
            "18446744073709551615",
            "61",
            "a/b/c/d",
            "i@a/b",
        ]),
        "cli_lines" => lines(),
        _ => Vec::new(),
    }
}

/// Every input with every first byte of these.
fn kinds(kinds: std::ops::Range<u8>, inputs: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let with = |kind| inputs.iter().map(move |input| [&[kind][..], input].concat());
    kinds.flat_map(with).collect()
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn calls() -> Vec<Vec<u8>> {
    let number = |class: &str, method: &str| {
        let locks = LOCK_METHODS
            .iter()
            .position(|known| *known == method && class == "lock");
        match METHODS
            .iter()
            .position(|known| *known == method && class == "rbd")
        {
            Some(number) => number as u8,
            // The first numbers behind the methods of `rbd` that lead to it.
            None => {
                let first = METHODS.len().next_multiple_of(LOCK_METHODS.len());
                (first + locks.unwrap_or(0)) as u8
            }
        }
    };
    let call = |(class, method, payload): (&str, &str, Bytes)| {
        [&[number(class, method)][..], &part(&payload)].concat()
    };
    payloads().into_iter().map(call).collect()
}

fn stored() -> Vec<Vec<u8>> {
    let values: Vec<Vec<u8>> = rich_object().omap.values().map(|value| value.to_vec()).collect();
    let with_value = |(at, value): (usize, &Vec<u8>)| {
        let call = &calls()[at % calls().len()];
        [&[0][..], &part(b""), &[at as u8 + 1], &part(value), &[0], call].concat()
    };
    let mut all: Vec<Vec<u8>> = values.iter().enumerate().map(with_value).collect();
    let map = BitVector::new(9, 1).map(|map| map.to_bytes()).unwrap_or_default();
    all.push([&[1][..], &part(&map), &[0], &calls().concat()].concat());
    all.push([&[1][..], &part(&v1_header(false)), &[0], &calls().concat()].concat());
    all
}

fn answers() -> Vec<Vec<u8>> {
    let mut object = rich_object();
    let mut answers = vec![vec![0; 16]];
    for method in METHODS {
        for payload in [&[][..], &4u64.to_le_bytes(), &[0; 12]] {
            let step = ("rbd", *method, Bytes::copy_from_slice(payload));
            answers.extend(object.operate(&[step]).ok().filter(|answer| !answer.is_empty()));
        }
    }
    answers.sort();
    answers.dedup();
    kinds(0..29, &answers)
}

fn object_maps() -> Vec<Vec<u8>> {
    let before = [
        &1u16.to_le_bytes()[..],
        &3u16.to_le_bytes(),
        &70u16.to_le_bytes(),
        &[1],
    ]
    .concat();
    [0, 1, 9, 1000, 17_000]
        .into_iter()
        .filter_map(|objects| BitVector::new(objects, 2))
        .map(|map| [&before[..], &map.to_bytes()].concat())
        .collect()
}

fn v1_header(migrating: bool) -> Vec<u8> {
    let snap = |id, name: &str| V1Snapshot {
        id: SnapId(id),
        image_size_bytes: 1 << 22,
        name: name.to_owned(),
    };
    let header = V1Header {
        migrating,
        block_name: "rb.0.1".to_owned(),
        order: 22,
        image_size_bytes: 1 << 22,
        snap_seq: 5,
        snaps: vec![snap(5, "new"), snap(4, "old")],
    };
    header.to_bytes().to_vec()
}

fn messages() -> Vec<Vec<u8>> {
    let client = ClientId { gid: 4100, handle: 7 };
    let id = AsyncRequestId { client, request: 3 };
    let (name, namespace) = ("s".to_owned(), SnapshotNamespace::User);
    let requests = [
        Request::Flatten,
        Request::Resize {
            size_bytes: 1 << 22,
            allow_shrink: true,
        },
        Request::SnapCreate {
            name: name.clone(),
            namespace: namespace.clone(),
            flags: 0,
        },
        Request::SnapRemove {
            name: name.clone(),
            namespace: namespace.clone(),
        },
        Request::RebuildObjectMap,
        Request::SnapRename {
            snap: SnapId(4),
            new_name: name.clone(),
        },
        Request::SnapProtect {
            name: name.clone(),
            namespace: namespace.clone(),
        },
        Request::SnapUnprotect {
            name: name.clone(),
            namespace,
        },
        Request::Rename {
            new_name: name.clone(),
        },
        Request::UpdateFeatures {
            features: feature::FAST_DIFF,
            enabled: true,
        },
        Request::Migrate,
        Request::Sparsify {
            sparse_size_bytes: 4096,
        },
        Request::MetadataUpdate {
            key: name,
            value: Some(Bytes::from_static(b"v")),
        },
    ];
    let requests = requests.into_iter().map(|request| Message::Request {
        request,
        id: Some(id),
    });
    let others = [
        Message::AcquiredLock(client),
        Message::ReleasedLock(client),
        Message::RequestLock { client, force: true },
        Message::HeaderUpdate,
        Message::AsyncProgress {
            id,
            offset: 1,
            total: 2,
        },
        Message::AsyncComplete { id, result: -22 },
        Message::Quiesce(id),
        Message::Unquiesce(id),
    ];
    others
        .into_iter()
        .chain(requests)
        .map(|message| message.encode().to_vec())
        .collect()
}

fn diff(version: Version, from: Option<&str>, to: Option<&str>) -> Vec<u8> {
    let head = DiffHead {
        from: from.map(str::to_owned),
        to: to.map(str::to_owned),
        protected: version == Version::V2,
        size_bytes: 1 << 20,
    };
    let run = |kind, offset, length_bytes| {
        encode_run(
            version,
            Run {
                kind,
                offset,
                length_bytes,
            },
        )
    };
    [
        encode_head(version, &head),
        run(RunKind::Write, 4096, 16),
        vec![7; 16],
        run(RunKind::Zero, 8192, 8192),
        encode_end().to_vec(),
    ]
    .concat()
}

fn export(diffs: u64) -> Vec<u8> {
    let head = ImageHead {
        order: Some(22),
        features: Some(feature::LAYERING | feature::EXCLUSIVE_LOCK),
        stripe_unit_bytes: Some(1 << 22),
        stripe_count: Some(1),
        metadata: BTreeMap::from([("k".to_owned(), Bytes::from_static(b"v"))]),
        diffs,
        skipped_tags: Vec::new(),
    };
    let mut out = head.encode();
    out.extend(diff(Version::V2, None, Some("s1")));
    if diffs > 1 {
        out.extend(diff(Version::V2, Some("s1"), None));
    }
    out
}

fn export_files() -> Vec<Vec<u8>> {
    let first = diff(Version::V1, None, Some("s1"));
    let second = diff(Version::V1, Some("s1"), Some("s2"));
    let mut all = vec![[&[6][..], &part(&first), &second].concat()];
    for pipe in [0, 1] {
        all.push([&[pipe][..], &first].concat());
        all.push([&[2 | pipe][..], &diff(Version::V2, None, Some("s1"))].concat());
        all.push([&[4 | pipe][..], &export(2)].concat());
    }
    all
}

fn request(command: u16, flags: u16, offset: u64, length: u64) -> RequestHeader {
    RequestHeader {
        flags,
        command,
        cookie: 1,
        offset,
        length,
    }
}

fn requests() -> Vec<RequestHeader> {
    vec![
        request(cmd::READ, 0, 0, 4096),
        request(cmd::WRITE, 1, 512, 8),
        request(cmd::FLUSH, 0, 0, 0),
        request(cmd::TRIM, 0, 4096, 8192),
        request(cmd::CACHE, 0, 0, 512),
        request(cmd::WRITE_ZEROES, 2, 0, 8192),
        request(cmd::BLOCK_STATUS, 8, 0, 65536),
        request(cmd::DISC, 0, 0, 0),
    ]
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

fn go() -> Vec<u8> {
    [&string(EXPORT)[..], &[0, 1, 0, 3]].concat()
}

fn meta() -> Vec<u8> {
    [
        &string(EXPORT)[..],
        &1u32.to_be_bytes(),
        &string("base:allocation"),
    ]
    .concat()
}

fn nbd_codec() -> Vec<Vec<u8>> {
    let mut all = vec![
        go(),
        meta(),
        string("name"),
        b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0".to_vec(),
    ];
    all.push([&[0, 0][..], &(1u64 << 20).to_be_bytes(), &[5, 0xff]].concat());
    all.push(b"\0\0\0\x01base:allocation".to_vec());
    all.push(
        OptionHeader {
            option: opt::GO,
            length: 8,
        }
        .encode()
        .to_vec(),
    );
    all.push(SimpleReply { error: 0, cookie: 1 }.encode().to_vec());
    for header in requests() {
        for framing in [0b10u8, 0b110, 0b1010, 0b1011] {
            let device = [&[framing, 9][..], &(1u64 << 20).to_be_bytes()].concat();
            let header = match framing >> 2 {
                2.. => header.encode_extended().to_vec(),
                _ => header.encode().to_vec(),
            };
            all.push([device, header].concat());
        }
    }
    all
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    [&OptionHeader { option, length }.encode()[..], data].concat()
}

fn nbd_server() -> Vec<Vec<u8>> {
    let flags = vec![0, 0, 0, 3];
    let mut all = vec![
        [flags.clone(), option(opt::LIST, b""), option(opt::ABORT, b"")].concat(),
        [
            flags.clone(),
            option(opt::INFO, &go()),
            option(opt::LIST_META_CONTEXT, &meta()),
        ]
        .concat(),
        [flags.clone(), option(opt::STARTTLS, b""), option(99, b"what?")].concat(),
        [
            flags.clone(),
            option(opt::EXPORT_NAME, EXPORT.as_bytes()),
            requests()[0].encode().to_vec(),
        ]
        .concat(),
    ];
    for framing in 0..3 {
        let mut bytes = flags.clone();
        bytes.extend(match framing {
            0 => vec![],
            1 => option(opt::STRUCTURED_REPLY, b""),
            _ => option(opt::EXTENDED_HEADERS, b""),
        });
        if framing > 0 {
            bytes.extend(option(opt::SET_META_CONTEXT, &meta()));
        }
        bytes.extend(option(opt::GO, &go()));
        for header in requests() {
            bytes.extend(match framing {
                2 if header.command == cmd::WRITE => {
                    let flagged = RequestHeader {
                        flags: header.flags | 1 << 5,
                        ..header
                    };
                    flagged.encode_extended().to_vec()
                }
                2 => header.encode_extended().to_vec(),
                _ => header.encode().to_vec(),
            });
            if header.command == cmd::WRITE {
                bytes.extend(b"8 bytes!");
            }
        }
        all.push(bytes);
    }
    all
}

fn nbd_client() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for ask in 0..3u8 {
        for framing in 0..3u8 {
            all.push([&[ask << 3 | framing][..], &good_handshake(framing)].concat());
        }
    }
    let simple = |cookie| SimpleReply { error: 0, cookie }.encode().to_vec();
    all.push([&[4][..], &simple(1), &[9; 4096], &simple(2)].concat());
    let data = [&8192u64.to_be_bytes()[..], &[3; 4096]].concat();
    let status = [
        &1u32.to_be_bytes()[..],
        &8192u32.to_be_bytes(),
        &3u32.to_be_bytes(),
    ]
    .concat();
    let part = |kind, cookie, payload: &[u8]| {
        let (flags, length) = (chunk::FLAG_DONE, payload.len() as u32);
        [
            &ChunkHeader {
                flags,
                kind,
                cookie,
                length,
            }
            .encode()[..],
            payload,
        ]
        .concat()
    };
    let read = part(chunk::OFFSET_DATA, 1, &data);
    let extents = part(chunk::BLOCK_STATUS, 2, &status);
    all.push([&[4 | 2][..], &read, &extents, &part(chunk::NONE, 3, b"")].concat());
    let error = part(chunk::ERROR, 1, b"\0\0\0\x05\0\x03bad");
    all.push([&[4 | 2][..], &error, &extents].concat());
    let extended = |kind, cookie, payload: &[u8]| {
        let header = ExtendedChunkHeader {
            flags: chunk::FLAG_DONE,
            kind,
            cookie,
            offset: 8192,
            length: payload.len() as u64,
        };
        [&header.encode()[..], payload].concat()
    };
    all.push(
        [
            &[4 | 1][..],
            &extended(chunk::OFFSET_DATA, 1, &data),
            &extended(chunk::NONE, 3, b""),
        ]
        .concat(),
    );
    all
}

fn local_columns() -> Vec<Vec<u8>> {
    let words = |numbers: &[u64]| {
        numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let step = |kind: u8, first: u64, second: u64, data: &[u8]| {
        [&[kind][..], &words(&[first, second]), data].concat()
    };
    let strings = [&b"ns"[..], b"object", b"hello"];
    let strings = strings
        .map(|text| [&(text.len() as u32).to_le_bytes()[..], text].concat())
        .concat();
    let body = [&[1][..], &words(&[7, 4100, 3]), &strings].concat();
    let frame = [&b"FNT1"[..], &(body.len() as u32).to_le_bytes(), &body].concat();
    vec![
        words(&[0, 4096, 8192, 4096]),
        words(&[4, 3, 2]),
        [step(1, 5, 3, b"abc"), step(2, 1, 2, b""), step(3, 7, 0, b"")].concat(),
        [frame.clone(), frame].concat(),
        [&b"FNT1"[..], &1u32.to_le_bytes(), &[2]].concat(),
        [&words(&[9])[..], &5u32.to_le_bytes(), b"hello"].concat(),
        b"1a2b.3".to_vec(),
    ]
}

fn local_rows() -> Vec<Vec<u8>> {
    let small = |number: u8| vec![1, number];
    let large = |number: i64| [&[2][..], &number.to_le_bytes()].concat();
    let blob = |bytes: &[u8]| [&[4, bytes.len() as u8][..], bytes].concat();
    let name = |number: u8| vec![3, number];
    let null = vec![0];
    let snaps = blob(&4u64.to_le_bytes());
    let none = blob(b"");
    let head = [
        null.clone(),
        none.clone(),
        large(4096),
        small(9),
        small(1),
        small(2),
        small(1),
        none.clone(),
    ]
    .concat();
    let clone = [
        small(4),
        snaps,
        large(4096),
        small(8),
        small(1),
        small(2),
        small(2),
        blob(&[0; 16]),
    ]
    .concat();
    let first = [
        small(1),
        name(1),
        small(2),
        small(1),
        large(4096),
        blob(&[1]),
        null.clone(),
    ]
    .concat();
    let second = [
        small(2),
        name(2),
        null.clone(),
        small(0),
        large(4096),
        none.clone(),
        null,
    ]
    .concat();
    vec![
        [small(4), head.clone(), first, clone, second].concat(),
        [small(4), head].concat(),
    ]
}

fn lines() -> Vec<Vec<u8>> {
    let lines = [
        "create pool/ns/image --size 16M --order 22 --image-feature layering",
        "snap create -p pool -i image --snap s1",
        "migration prepare a b --dest-pool q",
        "cp a@s b",
        "--rbd_default_order=20 info image --format json --pretty-format",
        "serve --listen unix:/tmp/s --listen 127.0.0.1:1 pool/image@snap pool2/image",
        "help migration prepare",
        "export-diff image@b --from-snap a --whole-object -",
        "group create pool/ns/group",
        "trash mv image --expires-at tomorrow",
        "-v",
        "-- ls -l pool",
        "import --stripe-unit 4K --stripe-count 3 --object-size 1M - image",
    ];
    lines
        .iter()
        .map(|line| line.replace(' ', "\0").into_bytes())
        .collect()
}

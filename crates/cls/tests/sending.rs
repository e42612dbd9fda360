//! Typed requests against an engine that runs the methods (the memory engine): steps, decoding with place, lists in
//! pages, and the guards of migration writes under real snapshot contexts.

#![allow(clippy::unwrap_used)] // in helpers of tests

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_cls::rbd::client as rbd;
use ferry_cls::rbd::{DirectoryState, SnapcAssertion, names};
use ferry_cls::{CallExt, exec_read, exec_write};
use ferry_store::memory::MemoryCluster;
use ferry_store::{Errno, IoCtx, PoolId, PoolOptions, ReadOp, Scope, SnapContext, SnapId, Store, WriteOp};

async fn pool() -> IoCtx {
    let store = MemoryCluster::new(ferry_cls::registry()).connect();
    let pool = store.pool_create("p", PoolOptions::default()).await.unwrap();
    IoCtx::new(store, Scope::new(pool))
}

#[tokio::test]
async fn several_calls_share_one_operation() {
    let io = pool().await;
    let header = names::header_object("1a");
    let pairs = BTreeMap::from([("k".to_owned(), Bytes::from_static(b"v"))]);
    let write = WriteOp::new()
        .create(true)
        .class_call(&rbd::create(1 << 22, 22, 61, "p", PoolId::NONE))
        .class_call(&rbd::metadata_set(&pairs));
    io.write_meta(&header, write).await.unwrap();
    let (size, key) = (rbd::get_size(SnapId::HEAD), rbd::metadata_get("k"));
    let op = ReadOp::new().class_call(&size).class_call(&key);
    let reply = io.read(&header, SnapId::HEAD, op).await.unwrap();
    assert_eq!(size.decode_step(&reply, 0).unwrap().order, 22);
    assert_eq!(key.decode_step(&reply, 1).unwrap(), Bytes::from_static(b"v"));
}

#[tokio::test]
async fn errors_name_the_object_and_answers_that_do_not_decode_the_field() {
    let io = pool().await;
    let error = exec_read(&io, "rbd_directory", rbd::dir_get_id("x"))
        .await
        .unwrap_err();
    assert_eq!(error.errno, Errno::ENOENT);
    let ready = rbd::dir_state_set(DirectoryState::Ready);
    exec_write(&io, "rbd_directory", ready).await.unwrap();
    // A request whose answer is read as another method's: as if the store were damaged.
    let mut call = rbd::get_snapcontext();
    call.method = "get_all_features";
    let error = exec_read(&io, "rbd_directory", call).await.unwrap_err();
    assert_eq!(error.errno, Errno::EIO);
    let expected = format!(
        "answer of rbd.get_all_features on {}: field 'snapshot ids' at byte 8: needs 4 bytes, 0 are left",
        io.object("rbd_directory")
    );
    assert_eq!(error.what, expected);
}

#[tokio::test]
async fn lists_of_missing_objects_are_empty() {
    let io = pool().await;
    assert!(rbd::dir_list_all(&io).await.unwrap().is_empty());
    assert!(rbd::group_dir_list_all(&io).await.unwrap().is_empty());
    assert!(rbd::trash_list_all(&io).await.unwrap().is_empty());
    assert!(rbd::namespace_list_all(&io).await.unwrap().is_empty());
    assert!(rbd::metadata_list_all(&io, "rbd_info").await.unwrap().is_empty());
}

#[tokio::test]
async fn lists_longer_than_a_page_come_whole() {
    let io = pool().await;
    for count in [63, 64, 65, 128, 130] {
        let object = format!("h{count}");
        let pair = |n: u8| (format!("k{n}"), Bytes::from(vec![n]));
        let pairs: BTreeMap<String, Bytes> = (0..count).map(pair).collect();
        exec_write(&io, &object, rbd::metadata_set(&pairs)).await.unwrap();
        assert_eq!(
            rbd::metadata_list_all(&io, &object).await.unwrap(),
            pairs,
            "{count}"
        );
    }
    let mut op = WriteOp::new();
    for n in 0..1030 {
        op = op.class_call(&rbd::namespace_add(&format!("n{n}")));
    }
    io.write_meta(names::NAMESPACE, op).await.unwrap();
    assert_eq!(rbd::namespace_list_all(&io).await.unwrap().len(), 1030);
}

#[tokio::test]
async fn migration_guards_tell_copied_objects_from_others() {
    let io = pool().await;
    let old = SnapContext::new(4, vec![SnapId(4)]).unwrap();
    let new = SnapContext::new(5, vec![SnapId(5), SnapId(4)]).unwrap();
    let guard = |seq, assertion| WriteOp::new().class_call(&rbd::assert_snapc_seq(seq, assertion));
    let copied = || guard(5, SnapcAssertion::LessOrEqualObject).write(0, "user");
    let not_copied = |seq| guard(seq, SnapcAssertion::GreaterThanObject);

    // A guest's write waits for the copy, which starts with the oldest snapshot.
    let refused = io.write("data", &new, copied()).await.unwrap_err();
    assert_eq!((refused.errno, refused.step), (Errno::ERANGE, Some(0)));
    io.write("data", &old, not_copied(4)).await.unwrap();
    assert!(
        !io.exists("data").await.unwrap(),
        "a passing assertion creates nothing"
    );
    io.write("data", &old, not_copied(4).write(0, "snap"))
        .await
        .unwrap();
    let again = io.write("data", &old, not_copied(4).write(0, "twice")).await;
    assert_eq!(again.unwrap_err().errno, Errno::ERANGE);
    // The last step of the copy writes the guest's data in the same operation.
    let merged = WriteOp::new()
        .class_call(&rbd::sparse_copyup(&BTreeMap::new(), &[]))
        .write(0, "head");
    io.write("data", &new, merged).await.unwrap();
    io.write("data", &new, copied()).await.unwrap();
    for (snap, expected) in [(SnapId(5), "snap"), (SnapId::HEAD, "user")] {
        let reply = io.read("data", snap, ReadOp::new().read(0, 10)).await.unwrap();
        assert_eq!(reply.data(0), expected, "{snap}");
    }
    // A removed head with clones still counts as copied.
    let newest = SnapContext::new(6, vec![SnapId(6), SnapId(5), SnapId(4)]).unwrap();
    io.write("data", &newest, WriteOp::new().remove()).await.unwrap();
    let assertion = guard(6, SnapcAssertion::LessOrEqualObject);
    io.write("data", &newest, assertion).await.unwrap();
    let refused = io.write("data", &newest, not_copied(6)).await.unwrap_err();
    assert_eq!(refused.errno, Errno::ERANGE);
}

#[tokio::test]
async fn sparse_copyup_fills_before_a_write_of_the_same_operation() {
    let io = pool().await;
    let merged = WriteOp::new()
        .class_call(&rbd::sparse_copyup(&BTreeMap::from([(0, 6)]), b"parent"))
        .write(2, "XY");
    io.write("data", &SnapContext::empty(), merged).await.unwrap();
    let reply = io
        .read("data", SnapId::HEAD, ReadOp::new().read(0, 10))
        .await
        .unwrap();
    assert_eq!(reply.data(0), "paXYnt");
}

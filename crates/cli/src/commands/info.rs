//! `rbd info`.

use ferry_cls::rbd::{feature, flag, op_feature};
use ferry_image::admin::info::{self, ImageInfo, ParentInfo};
use ferry_image::{ImageKey, SnapKey};

use super::session::{Session, open_failed};
use crate::exit::Failure;
use crate::output::{Document, Node, bytes, timestamp};
use crate::spec::{ImageQuery, ImageRef, SnapRule};

pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let image = args.image_or_id(ImageQuery::source().snap(SnapRule::Optional))?;
    let format = args.output_format()?;
    args.finish()?;
    let (place, key, name, snap) = match &image {
        ImageRef::Name(spec) => (
            spec.pool_spec(),
            ImageKey::Name(&spec.image),
            &spec.image,
            &spec.snap,
        ),
        ImageRef::Id { place, id, snap } => (place.clone(), ImageKey::Id(id), id, snap),
    };
    let io = session.place(&place).await?;
    let snap = snap.clone().map(SnapKey::Name);
    let info = info::info(&io, key, snap.as_ref())
        .await
        .map_err(|error| open_failed(error, name))?;
    session.print(format, || text(&info), || document(&info))
}

fn text(info: &ImageInfo) -> String {
    let object_size = bytes(info.object_size_bytes);
    let mut lines = vec![
        format!("size {} in {} objects", bytes(info.size_bytes), info.object_count),
        format!("order {} ({object_size} objects)", info.order),
        format!("snapshot_count: {}", info.snapshot_count),
    ];
    if info.id.is_empty() {
        lines.push(format!("block_name_prefix: {}", info.block_name_prefix));
        lines.push("format: 1".to_owned());
        lines.extend(protected_line(info));
        lines.extend(
            info.snapshot_limit
                .map(|limit| format!("snapshot_limit: {limit}")),
        );
        return under_name(info, &lines);
    }
    lines.push(format!("id: {}", info.id));
    if let Some(pool) = &info.data_pool {
        lines.push(format!("data_pool: {pool}"));
    }
    lines.extend([
        format!("block_name_prefix: {}", info.block_name_prefix),
        "format: 2".to_owned(),
        format!("features: {}", feature::names(info.features).join(", ")),
        format!("op_features: {}", op_feature::names(info.op_features).join(", ")),
        format!("flags: {}", flag::names(info.flags).join(", ")),
    ]);
    if let Some(group) = &info.group {
        lines.push(format!("group: {group}"));
    }
    for (name, time) in times(info) {
        lines.push(format!("{name}: {time}"));
    }
    lines.extend(protected_line(info));
    if let Some(limit) = info.snapshot_limit {
        lines.push(format!("snapshot_limit: {limit}"));
    }
    if let Some(parent) = &info.parent {
        let trash = if parent.trash { " (trash)" } else { "" };
        lines.push(format!("parent: {}{trash}", parent_name(parent)));
        lines.push(format!("overlap: {}", bytes(parent.overlap_bytes.unwrap_or(0))));
    }
    if let Some((unit_bytes, count)) = info.striping {
        lines.push(format!("stripe unit: {}", bytes(unit_bytes)));
        lines.push(format!("stripe count: {count}"));
    }
    under_name(info, &lines)
}

fn protected_line(info: &ImageInfo) -> Option<String> {
    let word = if info.protected? { "True" } else { "False" };
    Some(format!("protected: {word}"))
}

fn under_name(info: &ImageInfo, lines: &[String]) -> String {
    let mut text = format!("rbd image '{}':\n", info.name);
    for line in lines {
        text.push_str(&format!("\t{line}\n"));
    }
    text
}

fn times(info: &ImageInfo) -> [(&'static str, String); 3] {
    [
        ("create_timestamp", info.create_timestamp),
        ("access_timestamp", info.access_timestamp),
        ("modify_timestamp", info.modify_timestamp),
    ]
    .map(|(name, time)| (name, timestamp(time.seconds.into())))
}

/// `POOL/[NAMESPACE/]IMAGE@SNAP`, as `info` and `ls -l` show a parent.
pub(super) fn parent_name(parent: &ParentInfo) -> String {
    let namespace = match parent.pool_namespace.as_str() {
        "" => String::new(),
        namespace => format!("{namespace}/"),
    };
    format!("{}/{namespace}{}@{}", parent.pool, parent.image, parent.snapshot)
}

fn document(info: &ImageInfo) -> Document {
    let mut node = Node::map()
        .with("name", &info.name)
        .with("id", &info.id)
        .with("size", info.size_bytes)
        .with("objects", info.object_count)
        .with("order", info.order)
        .with("object_size", info.object_size_bytes)
        .with("snapshot_count", info.snapshot_count)
        .with_some("data_pool", info.data_pool.as_deref())
        .with("block_name_prefix", &info.block_name_prefix);
    if info.id.is_empty() {
        node = node
            .with("format", 1u64)
            .with_some("protected", info.protected.map(Node::str_bool))
            .with_some("snapshot_limit", info.snapshot_limit);
        return Document::new("image", node);
    }
    node = node
        .with("format", 2u64)
        .with(
            "features",
            Node::list_of("feature", feature::names(info.features)),
        )
        .with(
            "op_features",
            Node::list_of("op_feature", op_feature::names(info.op_features)),
        )
        .with("flags", Node::list_of("flag", flag::names(info.flags)));
    if let Some(group) = &info.group {
        node.set("group", group.to_string());
    }
    for (name, time) in times(info) {
        node.set(name, time);
    }
    node = node
        .with_some("protected", info.protected.map(Node::str_bool))
        .with_some("snapshot_limit", info.snapshot_limit);
    if let Some(parent) = &info.parent {
        node.set("parent", parent_node(parent));
    }
    if let Some((unit_bytes, count)) = info.striping {
        node.set("stripe_unit", unit_bytes);
        node.set("stripe_count", count);
    }
    Document::new("image", node)
}

fn parent_node(parent: &ParentInfo) -> Node {
    Node::map()
        .with("pool", &parent.pool)
        .with("pool_namespace", &parent.pool_namespace)
        .with("image", &parent.image)
        .with("id", &parent.image_id)
        .with("snapshot", &parent.snapshot)
        .with("trash", parent.trash)
        .with("overlap", parent.overlap_bytes.unwrap_or(0))
}

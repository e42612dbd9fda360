//! Commands on whole images.

use super::super::options::*;
use super::*;

pub(super) const COMMANDS: &[Command] = &[
    Command::built(
        CommandId::Bench,
        &["bench"],
        "Measure reads and writes of an image.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[
        IMAGE_NAMES,
        &[IO_SIZE, IO_THREADS, IO_TOTAL, IO_PATTERN, RW_MIX_READ, IO_TYPE],
    ])
    .notes(&["Writes overwrite the image's data."]),
    Command::built(CommandId::Create, &["create"], "Make an empty image.")
        .positionals(&[IMAGE_SPEC])
        .options(&[
            IMAGE_NAMES,
            IMAGE_FORMAT,
            LAYOUT,
            &[THICK_PROVISION, SIZE, NO_PROGRESS],
        ])
        .notes(&[FEATURES_NOTE]),
    Command::built(
        CommandId::Diff,
        &["diff"],
        "List the extents that changed since a snapshot or since the image was made.",
    )
    .positionals(&[IMAGE_OR_SNAP_SPEC])
    .options(&[SNAP_NAMES, &[FROM_SNAP, WHOLE_OBJECT], FORMAT]),
    Command::built(
        CommandId::DiskUsage,
        &["disk-usage"],
        "Show how much space a pool, an image or a snapshot takes.",
    )
    .aliases(&[&["du"]])
    .positionals(&[IMAGE_OR_SNAP_SPEC])
    .options(&[SNAP_NAMES, FORMAT, &[FROM_SNAP, EXACT, MERGE_SNAPSHOTS]]),
    Command::built(CommandId::Export, &["export"], "Write an image to a file.")
        .positionals(&[SOURCE_IMAGE_OR_SNAP_SPEC, EXPORT_PATH])
        .options(&[SOURCE_NAMES, SOURCE_SNAP, &[PATH, NO_PROGRESS, EXPORT_FORMAT]]),
    Command::built(CommandId::Import, &["import"], "Make an image from a file.")
        .positionals(&[IMPORT_PATH, DEST_IMAGE_SPEC])
        .options(&[
            &[PATH],
            DEST_NAMES,
            IMAGE_FORMAT,
            LAYOUT,
            &[SPARSE_SIZE, NO_PROGRESS, EXPORT_FORMAT],
            &[
                POOL.help("old spelling of --dest-pool"),
                IMAGE.help("old spelling of --dest"),
            ],
        ])
        .notes(&[
            "Without a destination the image is named after the file.",
            FEATURES_NOTE,
        ]),
    Command::built(
        CommandId::Info,
        &["info"],
        "Show an image's size, layout, features and times.",
    )
    .positionals(&[IMAGE_OR_SNAP_SPEC])
    .options(&[SNAP_NAMES, &[IMAGE_ID], FORMAT]),
    Command::built(CommandId::List, &["list"], "List the images of a pool.")
        .aliases(&[&["ls"]])
        .positionals(&[POOL_SPEC])
        .options(&[&[LONG], POOL_NAMES, FORMAT]),
    Command::built(CommandId::Remove, &["remove"], "Delete an image.")
        .aliases(&[&["rm"]])
        .positionals(&[IMAGE_SPEC])
        .options(&[IMAGE_NAMES, &[NO_PROGRESS]]),
    Command::built(
        CommandId::Rename,
        &["rename"],
        "Give an image another name in its pool.",
    )
    .aliases(&[&["mv"]])
    .positionals(&[SOURCE_IMAGE_SPEC, DEST_IMAGE_SPEC])
    .options(&[SOURCE_NAMES, DEST_NAMES]),
    Command::built(CommandId::Resize, &["resize"], "Make an image larger or smaller.")
        .positionals(&[IMAGE_SPEC])
        .options(&[IMAGE_NAMES, &[SIZE, ALLOW_SHRINK, NO_PROGRESS]]),
    Command::built(
        CommandId::Status,
        &["status"],
        "Show who uses an image and how its migration stands.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, FORMAT]),
    Command::built(
        CommandId::Watch,
        &["watch"],
        "Print the notifications of an image as they come.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES]),
    Command::built(
        CommandId::ExportDiff,
        &["export-diff"],
        "Write what changed since a snapshot to a file.",
    )
    .positionals(&[SOURCE_IMAGE_OR_SNAP_SPEC, EXPORT_PATH])
    .options(&[
        SOURCE_NAMES,
        SOURCE_SNAP,
        &[PATH, FROM_SNAP, WHOLE_OBJECT, NO_PROGRESS],
    ]),
    Command::built(
        CommandId::ImportDiff,
        &["import-diff"],
        "Apply a file of changes to an image.",
    )
    .positionals(&[IMPORT_PATH, IMAGE_SPEC])
    .options(&[&[PATH], IMAGE_NAMES, &[SPARSE_SIZE, NO_PROGRESS]]),
    Command::built(
        CommandId::MergeDiff,
        &["merge-diff"],
        "Join two files of changes that follow each other.",
    )
    .positionals(&[
        positional("diff1-path", "first file of changes ('-' for stdin)"),
        positional("diff2-path", "second file of changes"),
        EXPORT_PATH,
    ])
    .options(&[&[PATH, NO_PROGRESS]]),
    Command::built(
        CommandId::Copy,
        &["copy"],
        "Copy an image or one snapshot to a new image.",
    )
    .aliases(&[&["cp"]])
    .positionals(&[SOURCE_IMAGE_OR_SNAP_SPEC, DEST_IMAGE_SPEC])
    .options(&[
        SOURCE_NAMES,
        SOURCE_SNAP,
        DEST_NAMES,
        LAYOUT,
        &[SPARSE_SIZE, NO_PROGRESS],
    ]),
    Command::built(
        CommandId::DeepCopy,
        &["deep", "copy"],
        "Copy an image with its snapshots to a new image.",
    )
    .aliases(&[&["deep", "cp"]])
    .positionals(&[SOURCE_IMAGE_OR_SNAP_SPEC, DEST_IMAGE_SPEC])
    .options(&[
        SOURCE_NAMES,
        SOURCE_SNAP,
        DEST_NAMES,
        LAYOUT,
        &[FLATTEN, NO_PROGRESS],
    ]),
    Command::built(
        CommandId::Sparsify,
        &["sparsify"],
        "Give back the space of an image's zeros.",
    )
    .positionals(&[IMAGE_SPEC])
    .options(&[IMAGE_NAMES, &[NO_PROGRESS, SPARSE_SIZE]]),
];

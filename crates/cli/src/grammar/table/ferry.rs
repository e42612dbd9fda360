//! Commands that Ceph's `rbd` does not have.

use super::super::options::*;
use super::*;

pub(super) const COMMANDS: &[Command] = &[
    Command::built(
        CommandId::Serve,
        &["serve"],
        "Serve images over NBD until interrupted.",
    )
    .positionals(&[any_number(
        "image-spec",
        "images to serve, as [POOL/[NAMESPACE/]]IMAGE[@SNAP]; without any, every image of the store, or of the pool or namespace that is named",
    )])
    .options(&[SERVE, POOL_NAMES])
    .notes(&[
        "An image is an NBD export under its spec; a name without a pool is looked up in the one that --pool says. With --pool and no image, the images of that pool and its namespaces can be reached and no others; with --namespace, only those of this one. They are found when a client asks, so new ones are served too.",
        "Sockets that systemd passes on (LISTEN_FDS) are served beside those of --socket and --listen; with none at all, it is run/nbd.sock in the directory of the store. An address beyond this machine needs --tls-certificates with --tls-verify-peer, or --allow-anyone: whoever reaches the port can read and write the images.",
        "With NOTIFY_SOCKET set, systemd is told when the server is ready and when it stops.",
        "An addition of Ferry.",
    ]),
    Command::built(
        CommandId::Fsck,
        &["fsck"],
        "Look for damage in a store and its images.",
    )
    .positionals(&[optional(
        "pool-or-image",
        "pool to look at, or POOL/[NAMESPACE/]IMAGE for one image; without it, the whole store",
    )])
    .options(&[&[POOL], FSCK, FORMAT, &[NO_PROGRESS]])
    .notes(&[
        "Looks at what the engine keeps, then at the images: names, headers, object maps, data objects, clones, groups and migrations. Of one image, only at that. Reads only, without --repair, and may run beside servers; object maps of images that are open are not compared with their objects. --repair never removes data or headers. Exit codes: 0 when nothing is wrong, 117 when something is left over that harms nobody, 5 when something is damaged; what --repair has put right does not count.",
        "An addition of Ferry.",
    ]),
    Command::new(
        State::Frame(FrameCommand::Help),
        &["help"],
        "Explain rbd or one of its commands.",
    )
    .positionals(&[any_number("command", "words of the command's name")]),
    Command::new(
        State::Frame(FrameCommand::Version),
        &["version"],
        "Print the version.",
    )
    .notes(&["An addition of Ferry; --version does the same."]),
];

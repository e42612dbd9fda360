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
        "images to serve, as [POOL/[NAMESPACE/]]IMAGE[@SNAP]; without any, every image of the store",
    )])
    .options(&[&[SOCKET, LISTEN], POOL_NAMES])
    .notes(&[
        "An image is an NBD export under its spec; a name without a pool is looked up in the one that --pool says. Without --socket and --listen, the socket is run/nbd.sock in the directory of the store.",
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

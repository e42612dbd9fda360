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
        "images to serve, as [POOL/[NAMESPACE/]]IMAGE[@SNAP]; without any, every image of the pool",
    )])
    .options(&[&[SOCKET, LISTEN], POOL_NAMES])
    .notes(&[
        "One of --socket and --listen is used. An image is an NBD export under the name that was given here.",
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

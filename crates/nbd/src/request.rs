//! What a request may ask.
//!
//! The promise: [`validate`] is the one place that decides whether a request is carried out, with one
//! [`Violation`] per rule. It is pure, and it sees the device as it is at the moment of the request.

use crate::device::{BlockSizes, Errno};
use crate::proto::{Framing, RequestHeader, cmd, cmd_flag, command_name};

/// What requests are checked against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) size_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) sizes: BlockSizes,
    pub(crate) framing: Framing,
    /// The context `base:allocation` was selected.
    pub(crate) allocation: bool,
}

/// A request that may be carried out. Ranges lie inside the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Read {
        offset: u64,
        length: u32,
        fragment: bool,
    },
    Write {
        offset: u64,
        length: u32,
        fua: bool,
    },
    Flush,
    Trim {
        offset: u64,
        length: u64,
        fua: bool,
    },
    Cache {
        offset: u64,
        length: u64,
    },
    WriteZeroes {
        offset: u64,
        length: u64,
        no_hole: bool,
        fua: bool,
        /// Fail at once rather than be slow.
        fast: bool,
    },
    BlockStatus {
        offset: u64,
        length: u64,
        one: bool,
    },
    Disconnect,
}

/// A rule that a request breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("command {command} is not known")]
    UnknownCommand { command: u16 },
    #[error("flags {flags:#x} are not valid for {}", command_name(*command))]
    BadFlags { command: u16, flags: u16 },
    #[error("{} refused: it takes no payload", command_name(*command))]
    UnwantedPayload { command: u16 },
    #[error("{} refused: the export is read-only", command_name(*command))]
    ReadOnly { command: u16 },
    #[error("block status refused: the handshake selected no metadata context")]
    NoContext,
    #[error("block status refused: the range is empty")]
    EmptyStatus,
    #[error("flush refused: offset and length must be zero")]
    FlushWithRange,
    #[error("{} of {length} bytes refused: the maximum is {maximum}", command_name(*command))]
    TooLong {
        command: u16,
        length: u64,
        maximum: u32,
        overflow: bool,
    },
    #[error(
        "{} at offset {offset}, length {length} refused: not aligned to the minimum block size {minimum}",
        command_name(*command)
    )]
    Misaligned {
        command: u16,
        offset: u64,
        length: u64,
        minimum: u32,
    },
    #[error(
        "{} at offset {offset}, length {length} refused: beyond the end of the export at {size_bytes}",
        command_name(*command)
    )]
    PastEnd {
        command: u16,
        offset: u64,
        length: u64,
        size_bytes: u64,
    },
}

impl Violation {
    /// The error that the protocol asks for.
    pub(crate) fn errno(self) -> Errno {
        match self {
            Self::ReadOnly { .. } => Errno::Perm,
            Self::TooLong { overflow: true, .. } => Errno::Overflow,
            Self::PastEnd {
                command: cmd::WRITE | cmd::WRITE_ZEROES,
                ..
            } => Errno::NoSpc,
            _ => Errno::Inval,
        }
    }
}

/// Checks a request against the protocol and the device.
pub(crate) fn validate(header: &RequestHeader, limits: &Limits) -> Result<Command, Violation> {
    let RequestHeader {
        flags,
        command,
        offset,
        length,
        ..
    } = *header;
    // FUA is allowed on every command once it is advertised, and means nothing on those that don't write.
    let allowed = cmd_flag::FUA
        | match command {
            // A disconnect has no reply that could carry an error.
            cmd::DISC => return Ok(Command::Disconnect),
            cmd::READ if limits.framing.has_chunks() => cmd_flag::DF,
            cmd::READ | cmd::WRITE | cmd::FLUSH | cmd::TRIM | cmd::CACHE => 0,
            cmd::WRITE_ZEROES => cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO,
            cmd::BLOCK_STATUS => cmd_flag::REQ_ONE,
            _ => return Err(Violation::UnknownCommand { command }),
        };
    let allowed = match (limits.framing, command) {
        (Framing::Extended, cmd::WRITE) => allowed | cmd_flag::PAYLOAD_LEN,
        // The filter of block status among them: it is not advertised.
        (Framing::Extended, _) if flags & cmd_flag::PAYLOAD_LEN != 0 => {
            return Err(Violation::UnwantedPayload { command });
        }
        _ => allowed,
    };
    if flags & !allowed != 0 {
        return Err(Violation::BadFlags { command, flags });
    }
    if limits.read_only && matches!(command, cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES) {
        return Err(Violation::ReadOnly { command });
    }
    if command == cmd::FLUSH {
        return if offset == 0 && length == 0 {
            Ok(Command::Flush)
        } else {
            Err(Violation::FlushWithRange)
        };
    }
    if command == cmd::BLOCK_STATUS && !limits.allocation {
        return Err(Violation::NoContext);
    }
    if command == cmd::BLOCK_STATUS && length == 0 {
        return Err(Violation::EmptyStatus);
    }
    let maximum = limits.sizes.maximum;
    if length > u64::from(maximum) && matches!(command, cmd::READ | cmd::WRITE) {
        // The protocol allows EOVERFLOW only for reads whose replies come in chunks.
        let overflow = command == cmd::READ && limits.framing.has_chunks();
        return Err(Violation::TooLong {
            command,
            length,
            maximum,
            overflow,
        });
    }
    let minimum = limits.sizes.minimum;
    if !offset.is_multiple_of(u64::from(minimum)) || !length.is_multiple_of(u64::from(minimum)) {
        return Err(Violation::Misaligned {
            command,
            offset,
            length,
            minimum,
        });
    }
    let size_bytes = limits.size_bytes;
    if offset.checked_add(length).is_none_or(|end| end > size_bytes) {
        return Err(Violation::PastEnd {
            command,
            offset,
            length,
            size_bytes,
        });
    }
    let fua = flags & cmd_flag::FUA != 0;
    // Reads and writes are not longer than `maximum`.
    let payload_length = length as u32;
    match command {
        cmd::READ => Ok(Command::Read {
            offset,
            length: payload_length,
            fragment: flags & cmd_flag::DF == 0,
        }),
        cmd::WRITE => Ok(Command::Write {
            offset,
            length: payload_length,
            fua,
        }),
        cmd::TRIM => Ok(Command::Trim { offset, length, fua }),
        cmd::WRITE_ZEROES => Ok(Command::WriteZeroes {
            offset,
            length,
            no_hole: flags & cmd_flag::NO_HOLE != 0,
            fua,
            fast: flags & cmd_flag::FAST_ZERO != 0,
        }),
        cmd::CACHE => Ok(Command::Cache { offset, length }),
        cmd::BLOCK_STATUS => Ok(Command::BlockStatus {
            offset,
            length,
            one: flags & cmd_flag::REQ_ONE != 0,
        }),
        _ => Err(Violation::UnknownCommand { command }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn limits() -> Limits {
        Limits {
            size_bytes: SIZE,
            read_only: false,
            sizes: BlockSizes {
                minimum: 1,
                preferred: 4096,
                maximum: 1 << 16,
            },
            framing: Framing::Structured,
            allocation: true,
        }
    }

    fn extended() -> Limits {
        Limits {
            framing: Framing::Extended,
            ..limits()
        }
    }

    fn request(command: u16, flags: u16, offset: u64, length: u64) -> RequestHeader {
        RequestHeader {
            flags,
            command,
            cookie: 7,
            offset,
            length,
        }
    }

    fn refusal(command: u16, flags: u16, offset: u64, length: u64, limits: &Limits) -> (Errno, Violation) {
        let violation = validate(&request(command, flags, offset, length), limits).unwrap_err();
        (violation.errno(), violation)
    }

    #[test]
    fn requests_up_to_the_last_byte_are_carried_out() {
        let good = limits();
        assert_eq!(
            validate(&request(cmd::READ, cmd_flag::DF, SIZE - 5, 5), &good),
            Ok(Command::Read {
                offset: SIZE - 5,
                length: 5,
                fragment: false
            })
        );
        assert_eq!(
            validate(&request(cmd::WRITE, cmd_flag::FUA, 0, 1 << 16), &good),
            Ok(Command::Write {
                offset: 0,
                length: 1 << 16,
                fua: true
            })
        );
        assert_eq!(
            validate(&request(cmd::FLUSH, cmd_flag::FUA, 0, 0), &good),
            Ok(Command::Flush)
        );
        assert_eq!(
            validate(&request(cmd::TRIM, 0, 0, 1 << 20), &good),
            Ok(Command::Trim {
                offset: 0,
                length: 1 << 20,
                fua: false
            })
        );
        assert_eq!(
            validate(&request(cmd::WRITE_ZEROES, cmd_flag::NO_HOLE, 3, 4), &good),
            Ok(Command::WriteZeroes {
                offset: 3,
                length: 4,
                no_hole: true,
                fua: false,
                fast: false
            })
        );
        assert_eq!(
            validate(&request(cmd::BLOCK_STATUS, cmd_flag::REQ_ONE, 0, 1 << 20), &good),
            Ok(Command::BlockStatus {
                offset: 0,
                length: 1 << 20,
                one: true
            })
        );
        assert_eq!(
            validate(&request(cmd::DISC, 0xffff, 1, 1), &good),
            Ok(Command::Disconnect)
        );
        assert_eq!(
            validate(&request(cmd::READ, 0, SIZE, 0), &good),
            Ok(Command::Read {
                offset: SIZE,
                length: 0,
                fragment: true
            })
        );
    }

    #[test]
    fn every_rule_has_its_error() {
        let good = limits();
        for command in [8, 9, 0x8000, 0xffff] {
            assert_eq!(
                refusal(command, 0, 0, 0, &good),
                (Errno::Inval, Violation::UnknownCommand { command })
            );
        }
        for (command, flags) in [
            (cmd::READ, cmd_flag::NO_HOLE),
            (cmd::READ, cmd_flag::REQ_ONE),
            (cmd::WRITE, cmd_flag::DF),
            (cmd::FLUSH, cmd_flag::DF),
            (cmd::TRIM, cmd_flag::NO_HOLE),
            (cmd::WRITE_ZEROES, cmd_flag::DF),
            (cmd::CACHE, cmd_flag::FAST_ZERO),
            (cmd::WRITE, cmd_flag::PAYLOAD_LEN),
            (cmd::READ, cmd_flag::PAYLOAD_LEN),
            (cmd::BLOCK_STATUS, cmd_flag::DF),
            (cmd::WRITE, 1 << 15),
        ] {
            assert_eq!(
                refusal(command, flags, 0, 1, &good),
                (Errno::Inval, Violation::BadFlags { command, flags })
            );
        }
        let simple = Limits {
            framing: Framing::Simple,
            allocation: false,
            ..good
        };
        assert_eq!(refusal(cmd::READ, cmd_flag::DF, 0, 1, &simple).0, Errno::Inval);
        assert_eq!(
            refusal(cmd::BLOCK_STATUS, 0, 0, 1, &simple),
            (Errno::Inval, Violation::NoContext)
        );
        assert_eq!(
            refusal(cmd::BLOCK_STATUS, 0, 0, 0, &good),
            (Errno::Inval, Violation::EmptyStatus)
        );
        assert_eq!(
            refusal(cmd::FLUSH, 0, 0, 1, &good),
            (Errno::Inval, Violation::FlushWithRange)
        );
        assert_eq!(
            refusal(cmd::FLUSH, 0, 1, 0, &good),
            (Errno::Inval, Violation::FlushWithRange)
        );
        let read_only = Limits {
            read_only: true,
            ..good
        };
        for command in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
            assert_eq!(
                refusal(command, 0, 0, 1, &read_only),
                (Errno::Perm, Violation::ReadOnly { command })
            );
        }
    }

    #[test]
    fn extended_requests_reach_beyond_four_gibibytes_and_only_writes_carry_a_payload() {
        let large = Limits {
            size_bytes: 1 << 44,
            ..extended()
        };
        let length = 1 << 40;
        assert_eq!(
            validate(&request(cmd::TRIM, cmd_flag::FUA, 0, length), &large),
            Ok(Command::Trim {
                offset: 0,
                length,
                fua: true
            })
        );
        assert_eq!(
            validate(
                &request(cmd::WRITE_ZEROES, cmd_flag::FAST_ZERO, 0, length),
                &large
            ),
            Ok(Command::WriteZeroes {
                offset: 0,
                length,
                no_hole: false,
                fua: false,
                fast: true
            })
        );
        assert_eq!(
            validate(&request(cmd::CACHE, 0, 1 << 43, length), &large),
            Ok(Command::Cache {
                offset: 1 << 43,
                length
            })
        );
        assert_eq!(
            validate(&request(cmd::BLOCK_STATUS, 0, 0, 1 << 44), &large),
            Ok(Command::BlockStatus {
                offset: 0,
                length: 1 << 44,
                one: false
            })
        );
        for flags in [cmd_flag::PAYLOAD_LEN, 0] {
            assert_eq!(
                validate(&request(cmd::WRITE, flags, 0, 512), &large),
                Ok(Command::Write {
                    offset: 0,
                    length: 512,
                    fua: false
                })
            );
        }
        for command in [
            cmd::READ,
            cmd::TRIM,
            cmd::FLUSH,
            cmd::CACHE,
            cmd::WRITE_ZEROES,
            cmd::BLOCK_STATUS,
        ] {
            assert_eq!(
                refusal(command, cmd_flag::PAYLOAD_LEN, 0, 12, &large),
                (Errno::Inval, Violation::UnwantedPayload { command })
            );
        }
        // Lengths whose lower half alone would look harmless.
        assert_eq!(
            refusal(cmd::READ, 0, 0, (1 << 32) + 512, &large).0,
            Errno::Overflow
        );
        assert_eq!(
            refusal(cmd::WRITE, cmd_flag::PAYLOAD_LEN, 0, (1 << 32) + 512, &large).0,
            Errno::Inval
        );
        for command in [cmd::TRIM, cmd::CACHE, cmd::BLOCK_STATUS] {
            assert_eq!(refusal(command, 0, 512, 1 << 44, &large).0, Errno::Inval);
            assert_eq!(refusal(command, 0, 512, u64::MAX, &large).0, Errno::Inval);
        }
        assert_eq!(
            refusal(cmd::WRITE_ZEROES, 0, 512, u64::MAX, &large).0,
            Errno::NoSpc
        );
    }

    #[test]
    fn too_long_is_overflow_only_where_the_protocol_allows_it() {
        let good = limits();
        let simple = Limits {
            framing: Framing::Simple,
            allocation: false,
            ..good
        };
        assert_eq!(refusal(cmd::READ, 0, 0, 65537, &good).0, Errno::Overflow);
        assert_eq!(refusal(cmd::READ, 0, 0, 65537, &simple).0, Errno::Inval);
        assert_eq!(refusal(cmd::WRITE, 0, 0, 65537, &good).0, Errno::Inval);
    }

    #[test]
    fn beyond_the_end_is_no_space_for_writers_and_invalid_for_others() {
        let good = limits();
        for (command, errno) in [
            (cmd::READ, Errno::Inval),
            (cmd::TRIM, Errno::Inval),
            (cmd::BLOCK_STATUS, Errno::Inval),
            (cmd::WRITE, Errno::NoSpc),
            (cmd::WRITE_ZEROES, Errno::NoSpc),
        ] {
            for (offset, length) in [(SIZE - 1, 2), (SIZE, 1), (u64::MAX, 1), (u64::MAX - 1, 10)] {
                let (found, violation) = refusal(command, 0, offset, length, &good);
                assert_eq!(found, errno, "{violation}");
                assert_eq!(
                    violation,
                    Violation::PastEnd {
                        command,
                        offset,
                        length,
                        size_bytes: SIZE
                    }
                );
            }
        }
    }

    #[test]
    fn ranges_off_the_minimum_block_size_are_refused() {
        let coarse = Limits {
            sizes: BlockSizes {
                minimum: 512,
                preferred: 4096,
                maximum: 1 << 16,
            },
            ..limits()
        };
        for command in [
            cmd::READ,
            cmd::WRITE,
            cmd::TRIM,
            cmd::WRITE_ZEROES,
            cmd::BLOCK_STATUS,
        ] {
            for (offset, length) in [(1, 512), (512, 511), (256, 256)] {
                assert_eq!(
                    refusal(command, 0, offset, length, &coarse),
                    (
                        Errno::Inval,
                        Violation::Misaligned {
                            command,
                            offset,
                            length,
                            minimum: 512
                        }
                    )
                );
            }
        }
    }
}

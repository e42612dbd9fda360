//! The command table: every command of Ceph's `rbd` 16.2.15 and Ferry's own, as data.
//!
//! Parsing, help and the "not supported" answers are all derived from it. To build a command: give it a variant in [`CommandId`],
//! make its entry `built`, and write its body.

mod clone;
mod ferry;
mod group;
mod image;
mod later;
mod meta;
mod migration;
mod pool;
mod snap;
mod trash;
mod unsupported;

use super::options::{GLOBAL, Opt};

/// A command that has a body. A dispatcher's `match` over this is checked for completeness by the compiler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(
    missing_docs,
    reason = "each variant is the command of that name in the table"
)]
pub enum CommandId {
    Bench,
    Children,
    Clone,
    Copy,
    Create,
    DeepCopy,
    DeviceList,
    DeviceMap,
    DeviceUnmap,
    Diff,
    DiskUsage,
    Export,
    ExportDiff,
    FeatureDisable,
    FeatureEnable,
    Flatten,
    Fsck,
    GroupCreate,
    GroupImageAdd,
    GroupImageList,
    GroupImageRemove,
    GroupList,
    GroupRemove,
    GroupRename,
    GroupSnapCreate,
    GroupSnapList,
    GroupSnapRemove,
    GroupSnapRename,
    GroupSnapRollback,
    ConfigGlobalGet,
    ConfigGlobalList,
    ConfigGlobalRemove,
    ConfigGlobalSet,
    ConfigImageGet,
    ConfigImageList,
    ConfigImageRemove,
    ConfigImageSet,
    ConfigPoolGet,
    ConfigPoolList,
    ConfigPoolRemove,
    ConfigPoolSet,
    ImageMetaGet,
    ImageMetaList,
    ImageMetaRemove,
    ImageMetaSet,
    Import,
    ImportDiff,
    Info,
    List,
    LockAdd,
    LockList,
    LockRemove,
    MergeDiff,
    MigrationAbort,
    MigrationCommit,
    MigrationExecute,
    MigrationPause,
    MigrationPrepare,
    MigrationResume,
    MigrationThrottle,
    NamespaceCreate,
    NamespaceList,
    NamespaceRemove,
    ObjectMapCheck,
    ObjectMapRebuild,
    PoolCreate,
    PoolInit,
    PoolList,
    PoolRemove,
    PoolStats,
    Remove,
    Rename,
    Resize,
    Serve,
    SnapCreate,
    SnapLimitClear,
    SnapLimitSet,
    SnapList,
    SnapProtect,
    SnapPurge,
    SnapRemove,
    SnapRename,
    SnapRollback,
    SnapUnprotect,
    Sparsify,
    Status,
    TrashList,
    TrashMove,
    TrashPurge,
    TrashRemove,
    TrashRestore,
    Watch,
}

impl CommandId {
    /// The command's full name, e.g. `migration prepare`.
    pub fn name(self) -> String {
        commands()
            .find(|command| command.state == State::Built(self))
            .map(Command::name)
            .unwrap_or_default()
    }
}

/// Whether a command can be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has a body.
    Built(CommandId),
    /// `version` and `help` are answered by the frame itself.
    Frame(FrameCommand),
    /// Known, and not what Ferry does; the reason. Exit 95.
    Unsupported(&'static str),
}

/// Commands that need nothing but the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameCommand {
    /// `rbd help [COMMAND]`.
    Help,
    /// `rbd version`.
    Version,
}

/// How often a positional argument may appear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arity {
    /// Shown as `<name>`. Options may stand in for it, so the parser does not insist.
    One,
    /// Shown as `[<name>]`.
    Optional,
    /// Shown as `<name> [<name> ...]`; any number from here on.
    Many,
    /// Shown as `[<name> ...]`.
    AnyNumber,
}

/// One positional argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positional {
    /// Name without angle brackets.
    pub name: &'static str,
    /// Help text.
    pub help: &'static str,
    /// How often.
    pub arity: Arity,
}

/// One command.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// The words of its name.
    pub path: &'static [&'static str],
    /// Other names.
    pub aliases: &'static [&'static [&'static str]],
    /// One sentence about it.
    pub summary: &'static str,
    /// Positional arguments in order.
    pub positionals: &'static [Positional],
    /// Its options, in groups.
    pub options: &'static [&'static [Opt]],
    /// Paragraphs at the end of its help.
    pub notes: &'static [&'static str],
    /// Whether it can be run.
    pub state: State,
}

impl Command {
    const fn built(id: CommandId, path: &'static [&'static str], summary: &'static str) -> Self {
        Self::new(State::Built(id), path, summary)
    }

    const fn unsupported(reason: &'static str, path: &'static [&'static str], summary: &'static str) -> Self {
        Self::new(State::Unsupported(reason), path, summary)
    }

    const fn new(state: State, path: &'static [&'static str], summary: &'static str) -> Self {
        Self {
            path,
            aliases: &[],
            summary,
            positionals: &[],
            options: &[],
            notes: &[],
            state,
        }
    }

    const fn aliases(mut self, aliases: &'static [&'static [&'static str]]) -> Self {
        self.aliases = aliases;
        self
    }

    const fn positionals(mut self, positionals: &'static [Positional]) -> Self {
        self.positionals = positionals;
        self
    }

    const fn options(mut self, options: &'static [&'static [Opt]]) -> Self {
        self.options = options;
        self
    }

    const fn notes(mut self, notes: &'static [&'static str]) -> Self {
        self.notes = notes;
        self
    }

    /// The full name, e.g. `snap limit set`.
    pub fn name(&self) -> String {
        self.path.join(" ")
    }

    /// The command's own options, without the global ones.
    pub fn own_options(&self) -> impl Iterator<Item = &'static Opt> + use<> {
        self.options.iter().copied().flatten()
    }

    /// Every option that may be given with the command.
    pub fn all_options(&self) -> impl Iterator<Item = &'static Opt> + use<> {
        self.own_options().chain(GLOBAL)
    }

    /// Largest number of positional arguments; `None` is no limit.
    pub fn max_positionals(&self) -> Option<usize> {
        let unbounded = |p: &Positional| matches!(p.arity, Arity::Many | Arity::AnyNumber);
        if self.positionals.iter().any(unbounded) {
            None
        } else {
            Some(self.positionals.len())
        }
    }
}

const fn positional(name: &'static str, help: &'static str) -> Positional {
    Positional {
        name,
        help,
        arity: Arity::One,
    }
}

const fn optional(name: &'static str, help: &'static str) -> Positional {
    Positional {
        name,
        help,
        arity: Arity::Optional,
    }
}

const fn many(name: &'static str, help: &'static str) -> Positional {
    Positional {
        name,
        help,
        arity: Arity::Many,
    }
}

const fn any_number(name: &'static str, help: &'static str) -> Positional {
    Positional {
        name,
        help,
        arity: Arity::AnyNumber,
    }
}

const IMAGE_SPEC: Positional = positional("image-spec", "image, as [POOL/[NAMESPACE/]]IMAGE");
const SNAP_SPEC: Positional = positional("snap-spec", "snapshot, as [POOL/[NAMESPACE/]]IMAGE@SNAP");
const IMAGE_OR_SNAP_SPEC: Positional = positional(
    "image-or-snap-spec",
    "image or snapshot, as [POOL/[NAMESPACE/]]IMAGE[@SNAP]",
);
const SOURCE_IMAGE_SPEC: Positional =
    positional("source-image-spec", "source image, as [POOL/[NAMESPACE/]]IMAGE");
const SOURCE_SNAP_SPEC: Positional = positional(
    "source-snap-spec",
    "source snapshot, as [POOL/[NAMESPACE/]]IMAGE@SNAP",
);
const SOURCE_IMAGE_OR_SNAP_SPEC: Positional = positional(
    "source-image-or-snap-spec",
    "source image or snapshot, as [POOL/[NAMESPACE/]]IMAGE[@SNAP]",
);
const DEST_IMAGE_SPEC: Positional = positional(
    "dest-image-spec",
    "destination image, as [POOL/[NAMESPACE/]]IMAGE",
);
const POOL_SPEC: Positional = positional("pool-spec", "pool and perhaps namespace, as POOL[/NAMESPACE]");
const POOL_NAME: Positional = positional("pool-name", "name of the pool");
const EXPORT_PATH: Positional = positional("path-name", "file to write ('-' for stdout)");
const IMPORT_PATH: Positional = positional("path-name", "file to read ('-' for stdin)");

const FAMILIES: [&[Command]; 11] = [
    clone::COMMANDS,
    group::COMMANDS,
    image::COMMANDS,
    migration::COMMANDS,
    snap::COMMANDS,
    trash::COMMANDS,
    pool::COMMANDS,
    meta::COMMANDS,
    ferry::COMMANDS,
    later::COMMANDS,
    unsupported::COMMANDS,
];

/// Every command, in no particular order.
pub fn commands() -> impl Iterator<Item = &'static Command> {
    FAMILIES.into_iter().flatten()
}

/// The command whose name or alias is the longest that `words` start with, and how many words that is.
pub fn find(words: &[&str]) -> Option<(&'static Command, usize)> {
    commands()
        .flat_map(|command| {
            std::iter::once(command.path)
                .chain(command.aliases.iter().copied())
                .map(move |p| (command, p))
        })
        .filter(|(_, path)| words.starts_with(path))
        .max_by_key(|(_, path)| path.len())
        .map(|(command, path)| (command, path.len()))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::super::options::Kind;
    use super::*;

    #[test]
    fn no_two_commands_share_a_name() {
        let mut seen = HashSet::new();
        for command in commands() {
            for path in std::iter::once(&command.path).chain(command.aliases) {
                assert!(!path.is_empty() && seen.insert(path.join(" ")), "{path:?}");
            }
        }
        assert!(seen.len() > 120, "{}", seen.len());
    }

    #[test]
    fn every_built_command_has_exactly_one_entry() {
        let ids: Vec<CommandId> = commands()
            .filter_map(|c| {
                if let State::Built(id) = c.state {
                    Some(id)
                } else {
                    None
                }
            })
            .collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
        assert!(ids.contains(&CommandId::Watch) && ids.contains(&CommandId::Serve));
        for id in ids {
            assert_eq!(
                find(&id.name().split(' ').collect::<Vec<_>>()).unwrap().0.state,
                State::Built(id)
            );
        }
    }

    #[test]
    fn no_command_declares_an_option_twice() {
        for command in commands() {
            let (mut long, mut short) = (HashSet::new(), HashSet::new());
            for option in command.all_options() {
                assert!(long.insert(option.long), "{}: --{}", command.name(), option.long);
                assert!(
                    option.short.is_none_or(|s| short.insert(s)),
                    "{}: -{:?}",
                    command.name(),
                    option.short
                );
            }
        }
    }

    #[test]
    fn an_option_takes_a_value_everywhere_or_nowhere() {
        // The words of a command's name are found before the command is known, so this must not depend on it.
        let mut known: HashMap<String, bool> = HashMap::new();
        for option in commands().flat_map(Command::all_options) {
            let short = option.short.map(|s| s.to_string());
            for name in [
                Some(option.long.to_owned()),
                option.alias.map(str::to_owned),
                short,
            ]
            .into_iter()
            .flatten()
            {
                let takes_value = *known.entry(name.clone()).or_insert(option.takes_value());
                assert_eq!(takes_value, option.kind != Kind::Switch, "{name}");
            }
        }
    }

    #[test]
    fn only_the_last_positional_may_repeat() {
        for command in commands() {
            if let Some((_, rest)) = command.positionals.split_last() {
                assert!(
                    rest.iter()
                        .all(|p| !matches!(p.arity, Arity::Many | Arity::AnyNumber)),
                    "{}",
                    command.name()
                );
            }
        }
    }

    #[test]
    fn the_longest_name_wins() {
        assert_eq!(
            find(&["trash", "purge", "schedule", "add"]).unwrap().0.name(),
            "trash purge schedule add"
        );
        assert_eq!(find(&["trash", "purge", "rbd"]).unwrap().1, 2);
        assert_eq!(find(&["du", "x"]).unwrap().0.name(), "disk-usage");
        assert_eq!(
            find(&["snap", "revert", "x@y"]).unwrap().0.name(),
            "snap rollback"
        );
        assert!(find(&["snap"]).is_none());
    }
}

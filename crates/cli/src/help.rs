//! Help texts, rendered from the command table at 80 columns: `rbd`, `rbd help`, `rbd help <command>`,
//! `rbd <command> --help`, and the list that follows an unknown command.
//!
//! Command bodies do not use this module; they get their help by having an entry in the table.
//!
//! Invariant: no line is longer than 80 columns unless a single word is, and none ends in a blank.

use crate::VERSION;
use crate::exit::{EPERM, Failure};
use crate::grammar::HONOURED;
use crate::grammar::options::{GLOBAL, Need, Opt};
use crate::grammar::table::{Arity, Command, Positional, State, commands};

const WIDTH: usize = 80;
/// Column of the descriptions in lists of commands.
const COMMAND_COLUMN: usize = 38;
/// Names longer than this get a line of their own, so that descriptions keep most of the width.
const MAX_OPTION_COLUMN: usize = 30;

/// The text of `rbd version` and `rbd --version`.
pub fn version() -> String {
    format!("ferry version {VERSION} (rbd command line of Ceph 16.2.15)\n")
}

/// The text of `rbd help`.
pub fn overview() -> String {
    let mut text = String::from(
        "usage: rbd <command> ...\n\nManage RBD images and move them while they are in use.\n\n",
    );
    text.push_str("Positional arguments:\n  <command>\n");
    text.push_str(&command_list(&[]));
    text.push_str("\nOptional arguments:\n");
    text.push_str(&option_list(GLOBAL));
    text.push_str("\nSettings, as --NAME=VALUE or --NAME VALUE:\n");
    for (name, meaning) in HONOURED {
        text.push_str(&row(name, meaning, COMMAND_COLUMN));
    }
    text.push_str(&row(
        "rbd_cache*",
        "as in Ceph, on a cluster; without effect on a local store",
        COMMAND_COLUMN,
    ));
    text.push('\n');
    text.push_str(&paragraph(
        "A * marks commands that are not supported; they end with exit code 95.",
    ));
    text.push_str("See 'rbd help <command>' for help on a specific command.\n");
    text
}

/// The text of `rbd help <command>`.
pub fn command(command: &Command) -> String {
    let mut text = usage(command);
    text.push('\n');
    text.push_str(&paragraph(command.summary));
    for alias in command.aliases {
        text.push_str(&paragraph(&format!("Also: rbd {}", alias.join(" "))));
    }
    if !command.positionals.is_empty() {
        text.push_str("\nPositional arguments\n");
        let longest = command
            .positionals
            .iter()
            .map(|p| p.name.len() + 2)
            .max()
            .unwrap_or(0);
        for positional in command.positionals {
            text.push_str(&row(
                &format!("<{}>", positional.name),
                positional.help,
                column(longest),
            ));
        }
    }
    let options: Vec<Opt> = command.own_options().copied().collect();
    if options.iter().any(|option| option.visible) {
        text.push_str("\nOptional arguments\n");
        text.push_str(&option_list(&options));
    }
    for note in command.notes {
        text.push('\n');
        text.push_str(&paragraph(note));
    }
    if let State::Unsupported(reason) = command.state {
        text.push('\n');
        text.push_str(&paragraph(&format!(
            "Not supported: {reason}. The command ends with exit code 95."
        )));
    }
    text
}

/// The failure for words that are no command: the error line, then the commands that begin with the first word, or
/// all of them.
pub fn unknown_command(words: &[&str]) -> Failure {
    let error = format!("error: unknown option '{}'", words.join(" "));
    let family = command_list(&words[..words.len().min(1)]);
    let rest = if family.is_empty() {
        overview()
    } else {
        format!("usage: rbd <command> ...\n\n{family}")
    };
    Failure::message(format!("{error}\n\n{}", rest.trim_end()), EPERM)
}

/// The commands whose names start with `prefix`, sorted, with their summaries.
fn command_list(prefix: &[&str]) -> String {
    let mut listed: Vec<&Command> = commands()
        .filter(|command| command.path.starts_with(prefix))
        .collect();
    listed.sort_by_key(|command| command.path);
    listed
        .into_iter()
        .map(|command| {
            let mark = if is_refused(command) { " *" } else { "" };
            row(
                &format!("  {}{mark}", name_with_alias(command)),
                command.summary,
                COMMAND_COLUMN,
            )
        })
        .collect()
}

/// Whether the command only says that it cannot be run.
fn is_refused(command: &Command) -> bool {
    matches!(command.state, State::Unsupported(_))
}

fn name_with_alias(command: &Command) -> String {
    let name = command.name();
    let Some(alias) = command.aliases.first() else {
        return name;
    };
    let full = format!("{name} ({})", alias.join(" "));
    if full.len() + 6 <= COMMAND_COLUMN {
        full
    } else {
        format!("{name} (... {})", alias[alias.len() - 1])
    }
}

fn usage(command: &Command) -> String {
    let head = format!("usage: rbd {} ", command.name());
    let options = command
        .own_options()
        .filter(|option| option.visible)
        .map(|option| {
            let value = if option.takes_value() {
                format!(" <{}>", option.long)
            } else {
                String::new()
            };
            match option.need {
                Need::Optional => format!("[--{}{value}]", option.long),
                Need::ByCommand | Need::ByParser => format!("--{}{value}", option.long),
            }
        });
    let words: Vec<String> = options
        .chain(command.positionals.iter().map(usage_positional))
        .collect();
    // A long command name would leave no room beside it.
    let indent = head.len().min(COMMAND_COLUMN);
    let mut text = String::new();
    let mut line = head.trim_end().to_owned();
    if head.len() > COMMAND_COLUMN && !words.is_empty() {
        text.push_str(&line);
        text.push('\n');
        line = String::new();
    }
    for word in words {
        if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = String::new();
        }
        if line.is_empty() {
            line = " ".repeat(indent);
        } else {
            line.push(' ');
        }
        line.push_str(&word);
    }
    text.push_str(&line);
    text.push('\n');
    text
}

fn usage_positional(positional: &Positional) -> String {
    let name = positional.name;
    match positional.arity {
        Arity::One => format!("<{name}>"),
        Arity::Optional => format!("[<{name}>]"),
        Arity::Many => format!("<{name}> [<{name}> ...]"),
        Arity::AnyNumber => format!("[<{name}> ...]"),
    }
}

fn option_list(options: &[Opt]) -> String {
    let shown: Vec<(String, &Opt)> = options
        .iter()
        .filter(|option| option.visible)
        .map(|option| (option_name(option), option))
        .collect();
    let longest = shown.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    shown
        .iter()
        .map(|(name, option)| {
            let refused = option.refused.map_or("", |_| " (not supported)");
            row(name, &format!("{}{refused}", option.help), column(longest))
        })
        .collect()
}

fn option_name(option: &Opt) -> String {
    let value = if option.takes_value() { " arg" } else { "" };
    match option.short {
        Some(short) => format!("-{short} [ --{} ]{value}", option.long),
        None => format!("--{}{value}", option.long),
    }
}

fn column(longest: usize) -> usize {
    (longest + 4).min(MAX_OPTION_COLUMN)
}

/// A name, indented by two, and its description from `column` on, wrapped.
fn row(name: &str, description: &str, column: usize) -> String {
    let mut text = format!("  {name}");
    let mut lines = wrap(description, WIDTH - column).into_iter();
    if text.len() < column {
        text = format!("{text:<column$}{}", lines.next().unwrap_or_default());
    }
    let mut out = format!("{}\n", text.trim_end());
    for line in lines {
        out.push_str(&format!("{:column$}{line}\n", ""));
    }
    out
}

fn paragraph(text: &str) -> String {
    wrap(text, WIDTH).into_iter().map(|line| line + "\n").collect()
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_help_text_fits_a_terminal_and_names_every_visible_option() {
        let check = |text: &str| {
            for line in text.lines() {
                assert!(
                    line.len() <= WIDTH && line.trim_end() == line,
                    "{}: {line:?}",
                    line.len()
                );
            }
        };
        check(&overview());
        for entry in commands() {
            let text = command(entry);
            check(&text);
            assert!(
                text.starts_with(&format!("usage: rbd {}", entry.name())),
                "{text}"
            );
            assert!(entry.summary.ends_with('.'), "{}", entry.summary);
            for option in entry.own_options().filter(|option| option.visible) {
                assert!(
                    text.contains(&format!("--{}", option.long)),
                    "{}: --{}",
                    entry.name(),
                    option.long
                );
            }
            assert_eq!(text.contains("Not supported: "), is_refused(entry));
        }
    }

    #[test]
    fn the_overview_lists_every_command_once() {
        let text = overview();
        let listed: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("    ").filter(|rest| !rest.starts_with(' ')))
            .map(|rest| rest.split("  ").next().unwrap_or(rest))
            .collect();
        for entry in commands() {
            // The longest names leave a single blank before the summary.
            let name = name_with_alias(entry);
            let mark = if is_refused(entry) { " *" } else { "" };
            let wanted = format!("{name}{mark}");
            let count = listed
                .iter()
                .filter(|line| **line == wanted || line.starts_with(&format!("{wanted} ")))
                .count();
            assert!(count >= 1, "{wanted}");
        }
        assert_eq!(listed.len(), commands().count());
    }

    #[test]
    fn a_first_word_that_is_known_gets_its_family() {
        let failure = unknown_command(&["snap"]);
        assert_eq!(failure.code(), 1);
        assert!(
            failure
                .text()
                .starts_with("error: unknown option 'snap'\n\nusage: rbd <command> ...\n\n")
        );
        assert!(failure.text().contains("    snap create (snap add)"));
        assert!(!failure.text().contains("migration"));
        assert!(
            unknown_command(&["bogus", "x"])
                .text()
                .contains("migration prepare")
        );
    }
}

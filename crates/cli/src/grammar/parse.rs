//! From words to an [`Invocation`].
//!
//! Three steps: `--rbd_*` settings are taken out; the words of the command's name are found among the positionals,
//! wherever options stand between them (as Ceph does, this needs only to know which options take a value); then
//! clap parses what is left with the options of that one command. clap's own help and error texts are not used.

use std::collections::HashMap;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction};

use super::args::Args;
use super::config::ConfigOverrides;
use super::globals::{Environment, Globals};
use super::options::{GLOBAL, Kind, Need, Opt};
use super::table::{self, Command, CommandId, FrameCommand, State, commands};
use super::values::{Value, check};
use crate::exit::Failure;
use crate::help;

/// Most arguments that are looked at; more is an error, not work.
const MAX_ARGUMENTS: usize = 10_000;

/// A command to run, with everything from the command line that concerns it.
#[derive(Debug)]
pub struct Invocation {
    /// Which command.
    pub command: CommandId,
    /// Engine and store.
    pub globals: Globals,
    /// Its own options and positionals.
    pub args: Args,
    /// `--rbd_*` settings.
    pub config_overrides: ConfigOverrides,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// A command with a body.
    Run(Box<Invocation>),
    /// Help or the version: a text for stdout, exit 0.
    Print(String),
}

/// Parses the arguments of the process, without its name.
///
/// # Errors
/// A [`Failure`] with the text and exit code that `rbd` users know; 95 for what Ferry has not built.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<Parsed, Failure> {
    let mut words = Vec::new();
    for argument in arguments {
        if words.len() == MAX_ARGUMENTS {
            return Err(Failure::usage("too many arguments"));
        }
        let word = argument.into_string().map_err(|argument| {
            Failure::invalid(format_args!(
                "argument '{}' is not valid UTF-8",
                argument.to_string_lossy()
            ))
        })?;
        words.push(word);
    }
    let (config_overrides, words) = ConfigOverrides::extract(words)?;
    let scan = Scan::new(&words)?;
    let names = scan.positionals();
    if scan.help {
        return help_for(&names, true);
    }
    if scan.version {
        return Ok(Parsed::Print(help::version()));
    }
    let Some((command, length)) = table::find(&names) else {
        return match (names.is_empty(), scan.unknown) {
            (true, Some(option)) => Err(unrecognised(option)),
            (true, None) => Ok(Parsed::Print(help::overview())),
            (false, _) => Err(help::unknown_command(&names)),
        };
    };
    let id = match command.state {
        State::Built(id) => id,
        State::Frame(FrameCommand::Help) => return help_for(&names[length..], false),
        State::Frame(FrameCommand::Version) if names.len() > length => {
            return Err(Failure::usage("too many arguments"));
        }
        State::Frame(FrameCommand::Version) => return Ok(Parsed::Print(help::version())),
        State::Unsupported(reason) => return Err(Failure::not_supported(&command.name(), reason)),
    };
    let rest = scan.without_positionals(length);
    let (values, positionals) = parse_options(command, &rest)?;
    let globals = globals(&values, environment);
    let args = Args::new(command, values, positionals, config_overrides.default_pool());
    Ok(Parsed::Run(Box::new(Invocation {
        command: id,
        globals,
        args,
        config_overrides,
    })))
}

/// `rbd help WORDS` must name a command; `rbd WORDS --help` may have the command's arguments behind its name.
fn help_for(words: &[&str], arguments_follow: bool) -> Result<Parsed, Failure> {
    if words.is_empty() {
        return Ok(Parsed::Print(help::overview()));
    }
    match table::find(words) {
        Some((command, length)) if length == words.len() || arguments_follow => {
            Ok(Parsed::Print(help::command(command)))
        }
        _ => Err(help::unknown_command(words)),
    }
}

fn unrecognised(option: &str) -> Failure {
    Failure::usage(format_args!("unrecognised option '{option}'"))
}

/// Which words are positionals, found without knowing the command.
struct Scan<'a> {
    words: &'a [String],
    positionals: Vec<usize>,
    help: bool,
    version: bool,
    unknown: Option<&'a str>,
}

impl<'a> Scan<'a> {
    fn new(words: &'a [String]) -> Result<Self, Failure> {
        let known = known_options();
        let mut scan = Self {
            words,
            positionals: Vec::new(),
            help: false,
            version: false,
            unknown: None,
        };
        let mut index = 0;
        while index < words.len() {
            let word = words[index].as_str();
            match word {
                "--" => {
                    scan.positionals.extend(index + 1..words.len());
                    break;
                }
                "-h" | "--help" => scan.help = true,
                "-v" | "--version" => scan.version = true,
                _ if !word.starts_with('-') || word == "-" => scan.positionals.push(index),
                _ => {
                    if let Some(option) = scan.wants_next_word(word, &known)? {
                        // A known option here means that the value was forgotten.
                        match words.get(index + 1) {
                            Some(next) if !is_known(next, &known) => index += 1,
                            _ => return Err(missing_value(option)),
                        }
                    }
                }
            }
            index += 1;
        }
        Ok(scan)
    }

    /// The option's long name if its value is the next word. An unknown option is taken to have a value too; which
    /// of the two mistakes follows does not matter, because an unknown option is reported in the end.
    fn wants_next_word(
        &mut self,
        word: &'a str,
        known: &HashMap<String, &'static Opt>,
    ) -> Result<Option<&'a str>, Failure> {
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = long
                .split_once('=')
                .map_or((long, None), |(name, value)| (name, Some(value)));
            return match (known.get(name), value) {
                (Some(option), Some("")) if option.takes_value() => Err(Failure::usage(format_args!(
                    "the argument for option '--{}' should follow immediately after the equal sign",
                    option.long
                ))),
                (Some(option), None) if option.takes_value() => Ok(Some(option.long)),
                (None, _) => {
                    self.unknown.get_or_insert(word.split('=').next().unwrap_or(word));
                    Ok(None)
                }
                _ => Ok(None),
            };
        }
        let letters = &word[1..];
        for (position, letter) in letters.char_indices() {
            match known.get(&format!("-{letter}")) {
                None => {
                    self.unknown.get_or_insert(word);
                    return Ok(None);
                }
                Some(option) if option.takes_value() => {
                    let last = position + letter.len_utf8() == letters.len();
                    return Ok(last.then_some(option.long));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }

    fn positionals(&self) -> Vec<&'a str> {
        self.positionals
            .iter()
            .map(|index| self.words[*index].as_str())
            .collect()
    }

    /// All words except the first `count` positionals.
    fn without_positionals(&self, count: usize) -> Vec<&'a str> {
        let named = &self.positionals[..count];
        self.words
            .iter()
            .enumerate()
            .filter(|(index, _)| !named.contains(index))
            .map(|(_, word)| word.as_str())
            .collect()
    }
}

/// All options of all commands: long names as they are, short ones with their dash. The table's tests make sure that
/// a name takes a value either everywhere or nowhere.
fn known_options() -> HashMap<String, &'static Opt> {
    let mut known = HashMap::new();
    for option in commands().flat_map(Command::own_options).chain(GLOBAL) {
        known.insert(option.long.to_owned(), option);
        known.extend(option.alias.map(|alias| (alias.to_owned(), option)));
        known.extend(option.short.map(|short| (format!("-{short}"), option)));
    }
    known
}

fn is_known(word: &str, known: &HashMap<String, &'static Opt>) -> bool {
    match word.strip_prefix("--") {
        Some(long) => known.contains_key(long.split('=').next().unwrap_or(long)),
        // A short one; long ones are known without their dashes.
        None => word.starts_with('-') && known.contains_key(word),
    }
}

fn missing_value(long: &str) -> Failure {
    Failure::usage(format_args!(
        "the required argument for option '--{long}' is missing"
    ))
}

/// Checked values by the long names of their options.
type Values = Vec<(&'static str, Value)>;

const POSITIONALS: &str = " positionals";

fn parse_options(command: &Command, words: &[&str]) -> Result<(Values, Vec<String>), Failure> {
    let parser = command.all_options().fold(
        clap::Command::new("rbd")
            .no_binary_name(true)
            .disable_help_flag(true)
            .disable_version_flag(true)
            .arg(Arg::new(POSITIONALS).action(ArgAction::Append).num_args(0..)),
        |parser, option| parser.arg(clap_arg(option)),
    );
    let matches = parser
        .try_get_matches_from(words)
        .map_err(|error| reword(&error, words))?;
    let positionals: Vec<String> = matches
        .get_many::<String>(POSITIONALS)
        .map(|values| values.cloned().collect())
        .unwrap_or_default();
    if command
        .max_positionals()
        .is_some_and(|max| positionals.len() > max)
    {
        return Err(Failure::usage("too many arguments"));
    }
    // Values are judged in the order in which they were written, as users read their own command line.
    let mut given: Vec<(usize, &'static Opt, &String)> = command
        .all_options()
        .filter_map(|option| matches.indices_of(option.long).map(|indices| (option, indices)))
        .flat_map(|(option, indices)| {
            let texts = matches.get_many::<String>(option.long).into_iter().flatten();
            indices.zip(texts).map(move |(index, text)| (index, option, text))
        })
        .collect();
    given.sort_by_key(|(index, ..)| *index);
    let mut values = Values::new();
    for (_, option, text) in given {
        let value = check(option.kind, text).ok_or_else(|| invalid_value(option, text))?;
        match values.iter_mut().find(|(long, _)| *long == option.long) {
            None => values.push((option.long, value)),
            Some(_) if option.repeatable => values.push((option.long, value)),
            Some((_, Value::Number(bits))) if option.kind == Kind::Features => {
                if let Value::Number(more) = value {
                    *bits |= more;
                }
            }
            Some(_) => {
                return Err(Failure::usage(format_args!(
                    "option '--{}' cannot be specified more than once",
                    option.long
                )));
            }
        }
    }
    let is_given = |option: &Opt| values.iter().any(|(long, _)| *long == option.long);
    for option in command.own_options() {
        if let Some(why) = option.refused.filter(|_| is_given(option)) {
            return Err(Failure::not_supported(
                &format!("option '--{}'", option.long),
                why,
            ));
        }
        if option.need == Need::ByParser && !is_given(option) {
            return Err(Failure::usage(format_args!(
                "the option '--{}' is required but missing",
                option.long
            )));
        }
    }
    Ok((values, positionals))
}

fn clap_arg(option: &'static Opt) -> Arg {
    let mut arg = Arg::new(option.long).long(option.long).action(ArgAction::Append);
    if let Some(short) = option.short {
        arg = arg.short(short);
    }
    if let Some(alias) = option.alias {
        arg = arg.alias(alias);
    }
    if option.takes_value() {
        arg.num_args(1).allow_hyphen_values(true)
    } else {
        // No values, but every occurrence is recorded, so that a repeated switch is noticed.
        arg.num_args(0).default_missing_value("")
    }
}

fn invalid_value(option: &Opt, text: &str) -> Failure {
    // Ceph names the value only where Boost itself converts it, which is for bare numbers.
    match option.kind {
        Kind::Number(_) | Kind::Fraction | Kind::Rate | Kind::NumberOrAuto(_) => {
            Failure::usage(format_args!(
                "the argument ('{text}') for option '--{}' is invalid",
                option.long
            ))
        }
        _ => Failure::usage(format_args!(
            "the argument for option '--{}' is invalid",
            option.long
        )),
    }
}

/// clap's error in `rbd`'s words.
fn reword(error: &clap::Error, words: &[&str]) -> Failure {
    let option = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.split([' ', '=']).next().unwrap_or(text),
        _ => "",
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            // A short option is shown as it was written, with the letters around it.
            let written = |word: &&&str| {
                !word.starts_with("--") && word.starts_with('-') && word.contains(&option[1..])
            };
            let short = !option.starts_with("--") && option.len() > 1;
            unrecognised(if short {
                words.iter().find(written).copied().unwrap_or(option)
            } else {
                option
            })
        }
        ErrorKind::InvalidValue => missing_value(option.trim_start_matches('-')),
        ErrorKind::TooManyValues => {
            Failure::usage(format_args!("option '{option}' does not take any arguments"))
        }
        kind => Failure::usage(format_args!("failed to parse command: {kind}")),
    }
}

fn globals(values: &[(&'static str, Value)], environment: &Environment) -> Globals {
    let text = |long: &str| match values.iter().find(|(known, _)| *known == long) {
        Some((_, Value::Text(text))) => Some(text.clone()),
        _ => None,
    };
    Globals {
        conf: text("conf"),
        cluster: text("cluster"),
        id: text("id"),
        name: text("name"),
        mon_host: text("mon_host"),
        keyfile: text("keyfile"),
        keyring: text("keyring"),
        connect_timeout_s: values.iter().find_map(|(known, value)| match value {
            Value::Number(seconds) if *known == "connect-timeout" => Some(*seconds),
            _ => None,
        }),
        store: text("store"),
        environment: environment.clone(),
    }
}

//! Completion scripts and the manual page, made from the command table, for packagers.
//!
//! `cargo run -p ferry-cli --example generate -- DIR` writes all of them. They know the names of commands and options, not
//! of images; nothing in them runs `rbd`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::VERSION;
use crate::grammar::options::{GLOBAL, Opt};
use crate::grammar::table::{Arity, Command, State, commands};

/// File names and contents: completions for bash, zsh and fish, and the manual page.
pub fn all() -> [(&'static str, String); 4] {
    [
        ("rbd.bash", bash()),
        ("_rbd", zsh()),
        ("rbd.fish", fish()),
        ("rbd.1", man()),
    ]
}

/// Every name of every command: the words, and the command.
fn names() -> impl Iterator<Item = (&'static [&'static str], &'static Command)> {
    commands().flat_map(|command| {
        std::iter::once(command.path)
            .chain(command.aliases.iter().copied())
            .map(move |path| (path, command))
    })
}

/// What may follow the words of a name that is not complete.
fn next_words() -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut next: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    for (path, _) in names() {
        for length in 0..path.len() {
            next.entry(path[..length].join(" "))
                .or_default()
                .insert(path[length]);
        }
    }
    next
}

fn shown(options: impl Iterator<Item = &'static Opt>) -> String {
    let mut words: Vec<String> = options
        .filter(|option| option.visible)
        .flat_map(|option| {
            let short = option.short.map(|short| format!("-{short}"));
            std::iter::once(format!("--{}", option.long)).chain(short)
        })
        .collect();
    words.sort();
    words.join(" ")
}

/// Lines `KEY VALUE` of both tables, quoted alike for bash and zsh: no name or option holds a quote.
fn tables(entry: impl Fn(&str, &str, &str) -> String) -> String {
    let mut text = String::new();
    for (name, words) in next_words() {
        let words: Vec<&str> = words.into_iter().collect();
        text.push_str(&entry("next", &name, &words.join(" ")));
    }
    let mut by_name: BTreeMap<String, String> = BTreeMap::new();
    for (path, command) in names() {
        by_name.insert(path.join(" "), shown(command.own_options()));
    }
    for (name, options) in by_name {
        text.push_str(&entry("options", &name, &options));
    }
    text
}

/// Completion for bash.
pub fn bash() -> String {
    let tables = tables(|table, name, words| format!("    {table}['{name} ']='{words}'\n"));
    format!(
        r#"# Completion of rbd for bash. Made from Ferry's command table.
_rbd() {{
    local -A next options
{tables}    local global='{globals}'
    local current=${{COMP_WORDS[COMP_CWORD]}} name='' word i rest=0
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        [[ $word == -* ]] && continue
        if [[ -n ${{next["$name$word "]}} || -n ${{options["$name$word "]+known}} ]]; then
            name="$name$word "
        else
            rest=1
        fi
    done
    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "${{options["${{name:- }}"]}} $global" -- "$current"))
    elif ((!rest)) && [[ -n ${{next["${{name:- }}"]}} ]]; then
        COMPREPLY=($(compgen -W "${{next["${{name:- }}"]}}" -- "$current"))
    else
        COMPREPLY=($(compgen -f -- "$current"))
    fi
}}
complete -o filenames -F _rbd rbd
"#,
        globals = shown(GLOBAL.iter()),
    )
}

/// Completion for zsh.
pub fn zsh() -> String {
    let tables = tables(|table, name, words| {
        format!("    {table}['{name} ']='{words}'\n")
            .replace("['", "[")
            .replace("']=", "]=")
    })
    .lines()
    .map(|line| {
        // Keys with blanks stand in a variable, which zsh takes as they are.
        let (key, value) = line.split_once("]=").unwrap_or((line, ""));
        let (table, key) = key.trim_start().split_once('[').unwrap_or(("", ""));
        format!("    key='{key}'; {table}[$key]={value}\n")
    })
    .collect::<String>();
    format!(
        r#"#compdef rbd
# Completion of rbd for zsh. Made from Ferry's command table.
_rbd() {{
    local -A next options
    local key
{tables}    local global='{globals}'
    local name='' word rest=0
    for word in ${{words[2,CURRENT-1]}}; do
        [[ $word == -* ]] && continue
        key="$name$word "
        if (( ${{+next[$key]}} || ${{+options[$key]}} )); then
            name=$key
        else
            rest=1
        fi
    done
    key=${{name:- }}
    if [[ ${{words[CURRENT]}} == -* ]]; then
        compadd -- ${{=options[$key]}} ${{=global}}
    elif (( !rest )) && [[ -n ${{next[$key]}} ]]; then
        compadd -- ${{=next[$key]}}
    else
        _files
    fi
}}
_rbd "$@"
"#,
        globals = shown(GLOBAL.iter()),
    )
}

/// Completion for fish.
pub fn fish() -> String {
    let mut text = String::from(
        r#"# Completion of rbd for fish. Made from Ferry's command table.
function __rbd_words
    set -l words (commandline -opc)
    set -e words[1]
    for word in $words
        string match -q -- '-*' $word; or echo $word
    end
end
function __rbd_at
    test (string join ' ' (__rbd_words)) = "$argv[1]"
end
function __rbd_in
    string match -q -- "$argv[1] *" (string join ' ' (__rbd_words))' '
end
"#,
    );
    let quote = |help: &str| help.replace('\\', "\\\\").replace('\'', "\\'");
    let summaries: BTreeMap<String, &str> = names()
        .map(|(path, command)| (path.join(" "), command.summary))
        .collect();
    for (name, words) in next_words() {
        for word in words {
            let full = if name.is_empty() {
                word.to_owned()
            } else {
                format!("{name} {word}")
            };
            let summary = summaries.get(&full).copied().unwrap_or("commands");
            let _ = writeln!(
                text,
                "complete -c rbd -f -n '__rbd_at \"{name}\"' -a {word} -d '{}'",
                quote(summary)
            );
        }
    }
    let mut option = |condition: &str, option: &Opt| {
        if !option.visible {
            return;
        }
        let short = option.short.map_or(String::new(), |short| format!(" -s {short}"));
        let value = if option.takes_value() { " -r" } else { "" };
        let _ = writeln!(
            text,
            "complete -c rbd{condition} -l {}{short}{value} -d '{}'",
            option.long,
            quote(option.help)
        );
    };
    for (path, command) in names() {
        let condition = format!(" -n '__rbd_in \"{}\"'", path.join(" "));
        command.own_options().for_each(|one| option(&condition, one));
    }
    GLOBAL.iter().for_each(|one| option("", one));
    text
}

/// The manual page, in roff.
pub fn man() -> String {
    let mut text = format!(
        ".TH RBD 1 \"\" \"Ferry {VERSION}\" \"User Commands\"\n\
         .SH NAME\nrbd \\- manage RBD images and move them while they are in use\n\
         .SH SYNOPSIS\n.B rbd\n.I command\n[\\fIargument\\fR ...] [\\fIoption\\fR ...]\n\
         .SH DESCRIPTION\n\
         RBD images live in pools: on a plain directory, with nothing to set up, or on a Ceph cluster beside Ceph's own clients.\n\
         .B rbd migration\nmoves them while clients read and write.\n\
         .SH OPTIONS\nThese may be given with every command.\n"
    );
    GLOBAL.iter().for_each(|option| man_option(&mut text, option));
    text.push_str(".SH COMMANDS\n");
    let mut sorted: Vec<&Command> = commands().collect();
    sorted.sort_by_key(|command| command.path);
    for command in sorted {
        let _ = writeln!(
            text,
            ".SS rbd {}{}",
            escape(&command.name()),
            positionals(command)
        );
        let _ = writeln!(text, "{}", escape(command.summary));
        for alias in command.aliases {
            let _ = writeln!(text, ".br\nAlso: rbd {}", escape(&alias.join(" ")));
        }
        match command.state {
            State::Unsupported(reason) => {
                let _ = writeln!(text, ".br\nNot supported: {}.", escape(reason));
            }
            State::Built(_) | State::Frame(_) => {}
        }
        for positional in command.positionals {
            let _ = writeln!(
                text,
                ".TP\n\\fI{}\\fR\n{}",
                escape(positional.name),
                escape(positional.help)
            );
        }
        command
            .own_options()
            .for_each(|option| man_option(&mut text, option));
        for note in command.notes {
            let _ = writeln!(text, ".PP\n{}", escape(note));
        }
    }
    text.push_str(
        ".SH EXIT STATUS\n0 on success; 1 for a command line that cannot be parsed; else the number of the error, \
         95 for what is not supported.\n\
         .SH ENVIRONMENT\n.TP\n.B FERRY_STORE\nDirectory of a local store, or the word ceph.\n",
    );
    text
}

fn positionals(command: &Command) -> String {
    let one = |positional: &crate::grammar::table::Positional| {
        let name = escape(positional.name);
        match positional.arity {
            Arity::One => format!(" \\fI{name}\\fR"),
            Arity::Optional => format!(" [\\fI{name}\\fR]"),
            Arity::Many => format!(" \\fI{name}\\fR ..."),
            Arity::AnyNumber => format!(" [\\fI{name}\\fR ...]"),
        }
    };
    command.positionals.iter().map(one).collect()
}

fn man_option(text: &mut String, option: &Opt) {
    if !option.visible {
        return;
    }
    let short = option
        .short
        .map_or(String::new(), |short| format!("\\fB\\-{short}\\fR, "));
    let value = if option.takes_value() {
        " \\fIVALUE\\fR"
    } else {
        ""
    };
    let _ = writeln!(
        text,
        ".TP\n{short}\\fB\\-\\-{}\\fR{value}\n{}",
        escape(option.long),
        escape(option.help)
    );
}

/// Text that roff takes as it is.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

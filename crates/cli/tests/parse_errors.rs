//! Command lines that are refused: texts and exit codes are those of `rbd` 16.2.15, or say what Ferry has not built.
//!
//! Ceph judges names in the command's body; `consume` does here what the bodies do with the frame.

mod support;

use std::ffi::OsString;

use ferry_cli::exit::Failure;
use ferry_cli::grammar::{CommandId, ImageOptions, Invocation, parse};
use ferry_cli::spec::{Check, ImageQuery, SnapRule};
use support::line::{environment, run, words};

fn consume(invocation: &Invocation) -> Result<(), Failure> {
    let args = &invocation.args;
    match invocation.command {
        CommandId::Create => {
            args.image(ImageQuery::source().check(Check::Full))?;
            ImageOptions::from_args(args)?;
            args.required_size_bytes()?;
        }
        CommandId::Resize => {
            args.image(ImageQuery::source())?;
            args.required_size_bytes()?;
        }
        CommandId::Info => {
            args.image_or_id(ImageQuery::source().snap(SnapRule::Optional))?;
            args.output_format()?;
        }
        CommandId::Export => {
            args.image(ImageQuery::source().snap(SnapRule::Optional))?;
            args.path()?;
        }
        CommandId::Import => {
            args.path()?;
            args.image_if_named(ImageQuery::dest().check(Check::Full))?;
        }
        CommandId::Rename => {
            let source = args.image(ImageQuery::source())?;
            args.image(ImageQuery::dest().check(Check::Full).inherit(&source))?;
        }
        CommandId::SnapCreate => drop(args.snap(ImageQuery::source().check(Check::SnapName))?),
        CommandId::SnapRemove
        | CommandId::SnapProtect
        | CommandId::SnapUnprotect
        | CommandId::SnapRollback => {
            drop(args.snap(ImageQuery::source())?);
        }
        CommandId::SnapLimitSet => {
            args.image(ImageQuery::source())?;
            args.required_limit()?;
        }
        CommandId::ImageMetaGet | CommandId::ImageMetaRemove => {
            args.image(ImageQuery::source())?;
            args.positional("metadata key")?;
        }
        CommandId::ImageMetaSet => {
            args.image(ImageQuery::source())?;
            args.positional("metadata key")?;
            args.positional("metadata value")?;
        }
        CommandId::MigrationPrepare => prepare(invocation)?,
        CommandId::NamespaceCreate => drop(args.namespace_spec()?),
        CommandId::PoolCreate => drop(args.required_pool_name()?),
        CommandId::TrashRemove | CommandId::TrashRestore => drop(args.trash_id()?),
        CommandId::List | CommandId::TrashList => {
            args.pool_spec()?;
            args.output_format()?;
        }
        _ => drop(args.image(ImageQuery::source())?),
    }
    args.finish()
}

fn prepare(invocation: &Invocation) -> Result<(), Failure> {
    let args = &invocation.args;
    let import = args.flag("import-only");
    args.at_most_one("source-spec", "source-spec-path")?;
    let described = args.text("source-spec").is_some() || args.text("source-spec-path").is_some();
    if described && !import {
        return Err(Failure::invalid(
            "--import-only must be used in combination with source-spec/source-spec-path",
        ));
    }
    if described {
        args.image(ImageQuery::dest().check(Check::Full).plain_wording())?;
    } else {
        let rule = if import {
            SnapRule::Required
        } else {
            SnapRule::Forbidden
        };
        args.image(ImageQuery::source().snap(rule))?;
        args.image_if_named(ImageQuery::dest().check(Check::Full))?;
    }
    ImageOptions::from_args(args).map(drop)
}

fn failure(line: &str) -> Failure {
    run(line)
        .and_then(|invocation| consume(&invocation))
        .expect_err(line)
}

#[test]
fn recorded_parse_errors_come_out_word_for_word() {
    for case in support::load("parse-errors.txt") {
        let failure = failure(&case.words[1..].join(" "));
        assert_eq!(
            format!("{}\n", failure.text()),
            case.output,
            "line {}: {}",
            case.line,
            case.command()
        );
        assert_eq!(
            i32::from(failure.code()),
            case.code,
            "line {}: {}",
            case.line,
            case.command()
        );
    }
}

#[test]
fn other_errors_have_cephs_texts_and_codes() {
    let table: &[(&str, u8, &str)] = &[
        // Not enough arguments.
        ("create", 22, "rbd: image name was not specified"),
        ("resize x", 22, "rbd: must specify --size <M/G/T>"),
        ("export x", 22, "rbd: path was not specified"),
        ("import", 22, "rbd: path was not specified"),
        ("mv x", 22, "rbd: destination image name was not specified"),
        ("snap ls", 22, "rbd: image name was not specified"),
        ("snap create", 22, "rbd: image name was not specified"),
        ("snap rm x", 22, "rbd: snapshot name was not specified"),
        ("snap limit set x", 22, "rbd: must specify --limit <num>"),
        ("image-meta get x", 22, "rbd: metadata key was not specified"),
        ("image-meta set x k", 22, "rbd: metadata value was not specified"),
        ("image-meta rm x", 22, "rbd: metadata key was not specified"),
        ("watch", 22, "rbd: image name was not specified"),
        ("lock list", 22, "rbd: image name was not specified"),
        ("bench --io-type write", 22, "rbd: image name was not specified"),
        ("trash rm", 22, "rbd: image id was not specified"),
        (
            "namespace create rbd",
            22,
            "rbd: namespace name was not specified",
        ),
        ("pool create", 22, "rbd: pool name was not specified"),
        (
            "bench x",
            1,
            "rbd: the option '--io-type' is required but missing",
        ),
        // Snapshots where there are none, and malformed names.
        (
            "rm x@s",
            22,
            "rbd: snapshot name specified for a command that doesn't use it",
        ),
        (
            "status x@s",
            22,
            "rbd: snapshot name specified for a command that doesn't use it",
        ),
        (
            "image-meta get x@s k",
            22,
            "rbd: snapshot name specified for a command that doesn't use it",
        ),
        ("create -s 1 a/b/c/d", 22, "rbd: invalid spec 'a/b/c/d'"),
        ("snap create x@a/b", 22, "rbd: invalid spec 'x@a/b'"),
        ("snap create x --snap a@b", 22, "rbd: invalid snap name 'a@b'"),
        ("create -s 1 x --pool a@b", 22, "rbd: invalid pool name 'a@b'"),
        ("info x --namespace a/b", 22, "rbd: invalid namespace name 'a/b'"),
        ("ls a/b/c", 22, "rbd: invalid spec 'a/b/c'"),
        // Options.
        ("ls -x", 1, "rbd: unrecognised option '-x'"),
        ("info -weird/x", 1, "rbd: unrecognised option '-weird/x'"),
        ("namespace create -l", 1, "rbd: unrecognised option '-l'"),
        ("ls --bogus=1", 1, "rbd: unrecognised option '--bogus'"),
        ("--bogus ls", 1, "rbd: unrecognised option '--bogus'"),
        ("--bogus", 1, "rbd: unrecognised option '--bogus'"),
        (
            "ls --pool",
            1,
            "rbd: the required argument for option '--pool' is missing",
        ),
        (
            "ls -p",
            1,
            "rbd: the required argument for option '--pool' is missing",
        ),
        (
            "ls --pool --long",
            1,
            "rbd: the required argument for option '--pool' is missing",
        ),
        (
            "ls --pool=",
            1,
            "rbd: the argument for option '--pool' should follow immediately after the equal sign",
        ),
        (
            "ls --long=yes",
            1,
            "rbd: option '--long' does not take any arguments",
        ),
        (
            "ls -p a -p b",
            1,
            "rbd: option '--pool' cannot be specified more than once",
        ),
        (
            "ls -l --long",
            1,
            "rbd: option '--long' cannot be specified more than once",
        ),
        (
            "snap limit set x --limit many",
            1,
            "rbd: the argument ('many') for option '--limit' is invalid",
        ),
        (
            "bench x --io-type rw --rw-mix-read 101",
            1,
            "rbd: the argument ('101') for option '--rw-mix-read' is invalid",
        ),
        (
            "create x -s 5m",
            1,
            "rbd: the argument for option '--size' is invalid",
        ),
        (
            "create x -s -5",
            1,
            "rbd: the argument for option '--size' is invalid",
        ),
        (
            "create x -s 1 --object-size 16E",
            1,
            "rbd: the argument for option '--object-size' is invalid",
        ),
        (
            "create x -s 1 --image-format 3",
            1,
            "rbd: the argument for option '--image-format' is invalid",
        ),
        (
            "export x y --export-format 3",
            1,
            "rbd: the argument for option '--export-format' is invalid",
        ),
        // The first mistake on the line is the one reported.
        (
            "create x --order 99 --size bad",
            1,
            "rbd: the argument for option '--order' is invalid",
        ),
        (
            "create x --size bad --order 99",
            1,
            "rbd: the argument for option '--size' is invalid",
        ),
        // Leftovers.
        ("watch a b", 1, "rbd: too many arguments"),
        ("snap rename a@b a@c d", 1, "rbd: too many arguments"),
        ("pool ls x", 1, "rbd: too many arguments"),
        ("version x", 1, "rbd: too many arguments"),
        ("info --image a b", 1, "rbd: too many arguments"),
        ("ls -p a b", 1, "rbd: too many arguments"),
        // Combinations.
        (
            "info x --pretty-format",
            22,
            "rbd: --pretty-format only works when --format is json or xml",
        ),
        (
            "info x --image-id 12",
            22,
            "rbd: trying to access image using both name and id. ",
        ),
        (
            "create x -s 1 --stripe-unit 4K",
            22,
            "rbd: must specify both (or neither) of stripe-unit and stripe-count",
        ),
        (
            "create x -s 1 --stripe-count 4",
            22,
            "rbd: must specify both (or neither) of stripe-unit and stripe-count",
        ),
        (
            "create x -s 1 --image-format 1 --data-pool p",
            22,
            "rbd: image format 1 is deprecated\nrbd: data pool not allowed with format 1; use --image-format 2",
        ),
    ];
    for (line, code, text) in table {
        let failure = failure(line);
        assert_eq!((failure.text(), failure.code()), (*text, *code), "rbd {line}");
    }
}

#[test]
fn options_and_commands_that_are_not_supported_say_why_with_95() {
    let table = [
        (
            "encryption format i luks1 p",
            "encryption format",
            "Ferry encrypts nothing",
        ),
        (
            "map x --exclusive",
            "option '--exclusive'",
            "a server of Ferry gives the exclusive lock up",
        ),
        (
            "create x -s 1 --journal-pool p",
            "option '--journal-pool'",
            "Ferry writes no journals",
        ),
        (
            "clone x@s y --mirror-image-mode journal",
            "option '--mirror-image-mode'",
            "Ferry does not mirror",
        ),
        (
            "snap create x@s --ignore-quiesce-error",
            "option '--ignore-quiesce-error'",
            "Ferry runs no quiesce hooks",
        ),
    ];
    for (line, what, why) in table {
        let failure = failure(line);
        let wanted = format!("rbd: {what} is not supported: {why}");
        assert!(failure.text().starts_with(&wanted), "{}", failure.text());
        assert_eq!(failure.code(), 95);
    }
}

#[test]
fn what_is_not_supported_says_why_with_95() {
    for (line, start) in [
        (
            "journal reset a",
            "rbd: journal reset is not supported: Ferry writes no journals",
        ),
        (
            "mirror pool peer bootstrap create rbd",
            "rbd: mirror pool peer bootstrap create is not supported: Ferry does not mirror",
        ),
        (
            "trash purge schedule ls",
            "rbd: trash purge schedule list is not supported: schedules are run by Ceph's manager",
        ),
    ] {
        let failure = failure(line);
        assert!(failure.text().starts_with(start), "{}", failure.text());
        assert_eq!(failure.code(), 95);
    }
}

#[test]
fn unknown_commands_are_named_and_followed_by_the_usage() {
    for (line, start) in [
        (
            "bogus",
            "error: unknown option 'bogus'\n\nusage: rbd <command> ...",
        ),
        (
            "bogus x -p y",
            "error: unknown option 'bogus x'\n\nusage: rbd <command> ...",
        ),
        ("snap", "error: unknown option 'snap'\n\nusage: rbd <command> ..."),
        (
            "help bogus",
            "error: unknown option 'bogus'\n\nusage: rbd <command> ...",
        ),
        (
            "help create x",
            "error: unknown option 'create x'\n\nusage: rbd <command> ...",
        ),
        (
            "snap --help",
            "error: unknown option 'snap'\n\nusage: rbd <command> ...",
        ),
    ] {
        let failure = parse(words(line), &environment()).expect_err(line);
        assert!(failure.text().starts_with(start), "{line}: {failure}");
        assert_eq!(failure.code(), 1, "{line}");
    }
}

#[test]
fn hostile_arguments_are_errors() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = OsString::from_vec(vec![b'x', 0xff]);
    assert_eq!(
        parse([OsString::from("info"), bytes], &environment())
            .unwrap_err()
            .code(),
        22
    );
    let endless = std::iter::once(OsString::from("serve")).chain(std::iter::repeat(OsString::from("x")));
    assert_eq!(
        parse(endless, &environment()).unwrap_err().text(),
        "rbd: too many arguments"
    );
    for line in [
        "- -- -", "-- --", "--= ls", "-", "--", "ls -é", "-é", "---x", "-p= ls",
    ] {
        // Any answer will do, as long as there is one.
        let _ = parse(words(line), &environment());
    }
}

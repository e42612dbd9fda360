//! Command lines that are accepted, and what they mean.

mod support;

use ferry_cli::grammar::{CommandId, Engine, FEATURES_SINGLE_CLIENT, ImageOptions};
use ferry_cli::output::OutputFormat;
use ferry_cli::spec::{Check, ImageQuery, ImageRef, SnapRule};
use support::line::{printed, run};

#[test]
fn options_may_stand_anywhere() {
    for line in [
        "snap ls p/x --format json -a",
        "--format json snap -a ls p/x",
        "snap --format=json ls -p p --image x --all",
        "-a snap list -pp --format json -- x",
        "--rbd-cache=false snap ls --rbd_concurrent_management_ops 4 p/x -a --format json",
        "snap ls --store /s p/x --format json -a",
        "--store=/s snap ls p/x --format json -a",
    ] {
        let invocation = run(line).unwrap();
        assert_eq!(invocation.command, CommandId::SnapList, "{line}");
        let image = invocation.args.image(ImageQuery::source()).unwrap();
        assert_eq!((image.pool.as_str(), image.image.as_str()), ("p", "x"), "{line}");
        assert_eq!(
            invocation.args.output_format().unwrap(),
            OutputFormat::Json { pretty: false }
        );
        assert!(invocation.args.flag("all"), "{line}");
        invocation.args.finish().unwrap();
    }
}

#[test]
fn values_that_look_like_options_are_values() {
    let invocation = run("export x --path -odd").unwrap();
    assert_eq!(invocation.args.text("path"), Some("-odd"));
    let invocation = run("export x -").unwrap();
    invocation.args.image(ImageQuery::source()).unwrap();
    assert_eq!(invocation.args.path().unwrap(), "-");
    let invocation = run("info -- -x").unwrap();
    assert_eq!(invocation.args.image(ImageQuery::source()).unwrap().image, "-x");
}

#[test]
fn values_that_are_names_of_options_are_values() {
    for line in ["--id pool ls", "ls --id=pool", "ls --id pool -K keyfile"] {
        assert_eq!(run(line).unwrap().globals.id.as_deref(), Some("pool"), "{line}");
    }
    let globals = run("-K keyfile ls").unwrap().globals;
    assert_eq!(globals.keyfile.as_deref(), Some("keyfile"));
}

#[test]
fn specs_and_options_are_merged_and_the_spec_wins() {
    let table = [
        ("info x", "rbd/x"),
        ("info p/x", "p/x"),
        ("info p/n/x@s", "p/n/x@s"),
        ("info -p p --namespace n x --snap s", "p/n/x@s"),
        ("info -p p x@a --snap b", "p/x@a"),
        ("info rbd/x --pool p2", "rbd/x"),
        ("info --image p/x@s", "p/x@s"),
        ("info --image x -p p --snap s", "p/x@s"),
        ("info x --rbd_default_pool=vms", "vms/x"),
        ("info a/b/c/d", "a/b/c/d"),
    ];
    for (line, wanted) in table {
        let invocation = run(line).unwrap();
        let image = invocation
            .args
            .image(ImageQuery::source().snap(SnapRule::Optional))
            .unwrap();
        assert_eq!(image.to_string(), wanted, "{line}");
    }
}

#[test]
fn destinations_use_their_own_options_and_may_inherit_the_pool() {
    let table = [
        ("mv p/n/a b", "p/n/b", "rbd/b"),
        ("mv a p/b", "p/b", "p/b"),
        ("mv p/a --dest b", "p/b", "rbd/b"),
        ("mv p/n/a --dest-pool q b", "q/b", "q/b"),
        ("mv p/n/a --dest-namespace m b", "p/m/b", "rbd/m/b"),
    ];
    for (line, inherited, alone) in table {
        let invocation = run(line).unwrap();
        let source = invocation.args.image(ImageQuery::source()).unwrap();
        let dest = invocation
            .args
            .image(ImageQuery::dest().inherit(&source))
            .unwrap();
        assert_eq!(dest.to_string(), inherited, "{line}");
        let invocation = run(line).unwrap();
        invocation.args.image(ImageQuery::source()).unwrap();
        assert_eq!(
            invocation.args.image(ImageQuery::dest()).unwrap().to_string(),
            alone,
            "{line}"
        );
    }
}

#[test]
fn a_migration_without_a_destination_is_in_place() {
    let invocation = run("migration prepare p/x --object-size 2M").unwrap();
    let source = invocation.args.image(ImageQuery::source()).unwrap();
    let dest = invocation
        .args
        .image_if_named(ImageQuery::dest().check(Check::Full).inherit(&source))
        .unwrap();
    assert_eq!((dest.place.to_string().as_str(), dest.image), ("p", None));
    assert_eq!(ImageOptions::from_args(&invocation.args).unwrap().order, Some(21));
}

#[test]
fn images_can_be_named_by_id() {
    let invocation = run("info -p p --image-id 10e86fcd637c").unwrap();
    match invocation.args.image_or_id(ImageQuery::source()).unwrap() {
        ImageRef::Id { place, id, snap } => {
            assert_eq!(
                (place.to_string().as_str(), id.as_str(), snap),
                ("p", "10e86fcd637c", None)
            );
        }
        ImageRef::Name(spec) => panic!("{spec}"),
    }
    for line in [
        "trash rm p/n/12ab",
        "trash rm --image-id p/n/12ab",
        "trash rm -p p --namespace n 12ab",
    ] {
        let (place, id) = run(line).unwrap().args.trash_id().unwrap();
        assert_eq!(
            (place.to_string().as_str(), id.as_str()),
            ("p/n", "12ab"),
            "{line}"
        );
    }
}

#[test]
fn layout_options_become_one_value() {
    let options = |line: &str| {
        let invocation = run(&format!("create x -s 1 {line}")).unwrap();
        ImageOptions::from_args(&invocation.args)
            .unwrap()
            .or_settings(&invocation.config_overrides)
    };
    assert_eq!(options("").features, None);
    assert_eq!(
        options("--image-feature layering,exclusive-lock --image-feature object-map").features,
        Some(13)
    );
    assert_eq!(
        options("--image-feature layering,object-map --image-shared").features,
        Some(1)
    );
    assert_eq!(options("--image-shared").features_clear, FEATURES_SINGLE_CLIENT);
    assert_eq!(
        options("--image-shared --rbd_default_features 61").features,
        Some(33)
    );
    assert_eq!(options("--object-size 3000").order, Some(12));
    assert_eq!(options("--rbd_default_order=20").order, Some(20));
    assert_eq!(options("--rbd_default_order=20 --object-size 4M").order, Some(22));
    assert_eq!(
        options("--order 20").warnings,
        ["rbd: --order is deprecated, use --object-size"]
    );
    let striped = options("--stripe-unit 64K --stripe-count 4");
    assert_eq!(
        (striped.stripe_unit_bytes, striped.stripe_count, striped.format),
        (Some(65536), Some(4), Some(2))
    );
    assert_eq!(options("--data-pool p2").data_pool.as_deref(), Some("p2"));
    assert_eq!(options("--new-format").format, Some(2));
    let old = options("--image-format 1");
    assert_eq!((old.format, old.warnings.len()), (Some(1), 1));
}

#[test]
fn sizes_and_words_are_typed() {
    let invocation =
        run("bench x --io-type rw --io-size 64K --io-total 2G --io-threads 4 --rw-mix-read 30").unwrap();
    let args = &invocation.args;
    assert_eq!(args.text("io-type"), Some("rw"));
    assert_eq!(args.size_bytes("io-size"), Some(65536));
    assert_eq!(args.size_bytes("io-total"), Some(2 << 30));
    assert_eq!(
        (args.number("io-threads"), args.number("rw-mix-read")),
        (Some(4), Some(30))
    );
    assert_eq!(
        run("resize x --size 10")
            .unwrap()
            .args
            .required_size_bytes()
            .unwrap(),
        10 << 20
    );
    assert_eq!(
        run("trash purge --threshold 0.25")
            .unwrap()
            .args
            .fraction("threshold"),
        Some(0.25)
    );
}

#[test]
fn serving_takes_any_number_of_images() {
    let invocation = run("serve --socket /run/s -p p a q/n/b@s").unwrap();
    let images: Vec<String> = invocation
        .args
        .remaining_images()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(images, ["p/a", "q/n/b@s"]);
    let invocation = run("serve --socket a --listen 127.0.0.1:10809 --socket b").unwrap();
    let sockets: Vec<&str> = invocation.args.texts("socket").collect();
    assert_eq!(sockets, ["a", "b"], "these may be given several times");
}

#[test]
fn the_store_is_chosen_before_or_behind_the_verb() {
    assert_eq!(
        run("pool ls --store /s").unwrap().globals.engine().unwrap(),
        Engine::Local("/s".into())
    );
    assert_eq!(
        run("--id nobody pool ls").unwrap().globals.engine().unwrap(),
        Engine::Ceph
    );
    let failure = run("pool ls -c x --store /s")
        .unwrap()
        .globals
        .engine()
        .unwrap_err();
    assert_eq!(failure.code(), 22);
    assert_eq!(
        run("pool ls --mon-host a").unwrap().globals.mon_host.as_deref(),
        Some("a")
    );
}

#[test]
fn help_is_found_from_every_side() {
    assert!(printed("").starts_with("usage: rbd <command> ..."));
    assert_eq!(printed(""), printed("help"));
    assert_eq!(printed(""), printed("--help"));
    assert_eq!(printed(""), printed("-h"));
    let create = printed("help create");
    assert!(
        create.contains("-s [ --size ] arg") && create.contains("[--object-size <object-size>]"),
        "{create}"
    );
    assert!(!create.contains("--order"), "deprecated options are not shown");
    assert_eq!(create, printed("create --help"));
    assert_eq!(create, printed("create x --size 1 -h"));
    assert_eq!(printed("help du"), printed("help disk-usage"));
    assert!(printed("help mirror image enable").contains("Not supported: Ferry does not mirror"));
    assert_eq!(printed("version"), printed("--version"));
}

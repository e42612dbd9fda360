//! That the comparison notices: an `rbd` that is wrong on purpose, in each of the ways that are compared.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use ferry_e2e::Ferry;
use ferry_e2e::ferry::binary;

use super::compare::{Outcome, Sides};
use super::improvements::{Known, Rule};
use super::steps::Step;
use super::world::{Kind, Request, World};

/// What it does wrong, once the file `defect` says so.
const WRONG: &str = r#"
case "$(cat defect 2>/dev/null) $*" in
print*" info "*) "$real" "$@" | sed 's/"objects":/"objekts":/' ;;
code*" resize "*) "$real" "$@"; exit 3 ;;
bytes*" snap rollback "*) exit 0 ;;
shape*" snap create "*) exit 0 ;;
*) exec "$real" "$@" ;;
esac
"#;

/// Which is no verdict on the comparison.
struct CephDied;

/// Both sides, of which Ferry's is a script.
struct Wrong {
    sides: Sides,
    defect: PathBuf,
    known: Known,
}

impl Wrong {
    fn new(ferry: Ferry) -> Self {
        let script = ferry.path("wrong");
        let text = format!("#!/bin/sh\nreal='{}'{WRONG}", binary().display());
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            defect: ferry.path("defect"),
            sides: Sides::new(ferry.with_binary(script)),
            known: Known::default(),
        }
    }

    fn step(&mut self, step: &Step) -> Result<Vec<String>, CephDied> {
        let (shape, _) = self.sides.shape();
        match self.sides.step(step, &self.known, &World::new(&shape)) {
            Outcome::Done(_, differences) => Ok(differences),
            Outcome::CephDied => Err(CephDied),
        }
    }

    fn command(&mut self, line: &str) -> Result<Vec<String>, CephDied> {
        self.step(&Step::Command(line.to_owned()))
    }

    fn write(&mut self, byte: u8) -> Result<Vec<String>, CephDied> {
        let request = Request {
            kind: Kind::Write,
            offset: 4096,
            length: 20_000,
            byte,
        };
        self.step(&Step::Write("/canary".to_owned(), vec![request]))
    }

    fn info(&mut self) -> Vec<String> {
        self.sides.print("info /canary --format json", Rule::Same)
    }

    fn does_wrong(&self, defect: &str) {
        std::fs::write(&self.defect, defect).unwrap();
    }
}

#[test]
fn a_command_that_is_wrong_in_what_it_prints_answers_or_does_is_noticed() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    if let Err(CephDied) = each_is_noticed(Wrong::new(ferry)) {
        println!("LEFT OUT: Ceph's rbd died");
    }
}

fn each_is_noticed(mut wrong: Wrong) -> Result<(), CephDied> {
    let none: Vec<String> = vec![];
    assert_eq!(wrong.command("create --size 256K /canary")?, none);
    assert_eq!(wrong.write(1)?, none);
    // More than once, as Ceph's own may abort at its end.
    assert!((0..3).any(|_| wrong.info() == none));
    assert_eq!(wrong.sides.contents(), none);
    assert_eq!(wrong.sides.shape().1, none);

    wrong.does_wrong("print");
    assert_ne!(wrong.info(), none);
    wrong.does_wrong("code");
    let mut noticed = false;
    for kib in 300..304 {
        noticed |= wrong.command(&format!("resize --no-progress --size {kib}K /canary"))? != none;
    }
    assert!(noticed);
    wrong.does_wrong("nothing");
    assert_eq!(wrong.command("snap create --no-progress /canary@s")?, none);
    assert_eq!(wrong.write(2)?, none);
    assert_eq!(wrong.sides.contents(), none);
    wrong.does_wrong("bytes");
    wrong.command("snap rollback --no-progress /canary@s")?;
    assert_ne!(wrong.sides.contents(), none);
    assert_eq!(wrong.sides.shape().1, none);
    wrong.does_wrong("shape");
    wrong.command("snap create --no-progress /canary@lost")?;
    assert_ne!(wrong.sides.shape().1, none);
    Ok(())
}

//! Every deliberate difference from what was recorded of rbd 16.2.15 in sessions.

/// A case where Ferry does not do what rbd 16.2.15 does.
pub struct Difference {
    pub file: &'static str,
    pub command: &'static str,
    pub output: &'static str,
    pub code: i32,
    pub reason: &'static str,
}

/// Ferry's rollback writes every object that it puts back; in Ceph one that is as it was stays as it was.
const ROLLBACK_WRITES: &str = "du counts the objects that a rollback has put back";

/// The local engine knows what an object shares with its older versions by blocks of 4 KiB.
const BLOCKS: &str = "differences within an object are told in whole blocks on the local engine";
/// What is wrong with a file, and at which byte, stands in a note.
const NOTES: &str = "Ceph says in a line of its own which field is wrong, Ferry in a note";
/// A file is read as a whole before anything else is looked at.
const WHOLE: &str = "a file that is no whole diff is refused before its snapshots are looked at";

/// An exit code alone tells nobody what went wrong.
const SILENT: &str = "Ceph fails without a word";

pub const DIFFERENCES: &[Difference] = &[
    Difference {
        file: "session-files.txt",
        command: "rbd diff i --from-snap a",
        output: "Offset  Length  Type\n0       600     data\n69632   378     data\n196608  3408    data\n",
        code: 0,
        reason: BLOCKS,
    },
    Difference {
        file: "session-files.txt",
        command: "rbd diff k@b --from-snap a",
        output: "Offset  Length  Type\n0       600     data\n69632   378     data\n196608  3408    data\n",
        code: 0,
        reason: BLOCKS,
    },
    Difference {
        file: "session-files.txt",
        command: "rbd import-diff /img/trunc0 i --no-progress",
        output: "rbd: import-diff failed: (74) Bad message\n",
        code: 74,
        reason: NOTES,
    },
    Difference {
        file: "session-files.txt",
        command: "rbd import-diff /img/trunc1 i --no-progress",
        output: "rbd: import-diff failed: (74) Bad message\n",
        code: 74,
        reason: WHOLE,
    },
    Difference {
        file: "session-files.txt",
        command: "rbd import-diff /img/trunc3 i --no-progress",
        output: "rbd: import-diff failed: (74) Bad message\n",
        code: 74,
        reason: WHOLE,
    },
    Difference {
        file: "session-files.txt",
        command: "rbd import-diff /img/banner i --no-progress",
        output: "rbd: import-diff failed: (22) Invalid argument\n",
        code: 22,
        reason: NOTES,
    },
    Difference {
        file: "session-files.txt",
        command: "rbd import --export-format 2 /img/d0 l --no-progress",
        output: "rbd: import failed: (22) Invalid argument\n",
        code: 22,
        reason: NOTES,
    },
    Difference {
        file: "session-groups.txt",
        command: "rbd group snap create --group g --snap s1",
        output: "rbd: failed to create group snapshot: (17) File exists\n",
        code: 17,
        reason: SILENT,
    },
    Difference {
        file: "session-groups.txt",
        command: "rbd group snap create nog@s1",
        output: "rbd: failed to create group snapshot: (2) No such file or directory\n",
        code: 2,
        reason: SILENT,
    },
    Difference {
        file: "session-groups.txt",
        command: "rbd group rename g other/g",
        output: "rbd: group rename across pools not supported\nsource pool: rbd, dest pool: other\n",
        code: 22,
        reason: "Ceph leaves the source pool's name out when it is the default one",
    },
    Difference {
        file: "session-1.txt",
        command: "rbd du img1",
        output: "NAME     PROVISIONED  USED  \n\
                 img1@s1       16 MiB  16 MiB\n\
                 img1          16 MiB  16 MiB\n\
                 <TOTAL>       16 MiB  32 MiB\n",
        code: 0,
        reason: ROLLBACK_WRITES,
    },
    Difference {
        file: "session-1.txt",
        command: "rbd du img1 --format json --pretty-format",
        output: r#"{
    "images": [
        {
            "name": "img1",
            "id": "1022332bcfd2",
            "snapshot": "s1",
            "snapshot_id": 4,
            "provisioned_size": 16777216,
            "used_size": 16777216
        },
        {
            "name": "img1",
            "id": "1022332bcfd2",
            "provisioned_size": 16777216,
            "used_size": 16777216
        }
    ]
}
"#,
        code: 0,
        reason: ROLLBACK_WRITES,
    },
    Difference {
        file: "session-1.txt",
        command: "rbd du img1 --format xml --pretty-format",
        output: r"<stats>
 <images>
  <image>
   <name>img1</name>
   <id>1022332bcfd2</id>
   <snapshot>s1</snapshot>
   <snapshot_id>4</snapshot_id>
   <provisioned_size>16777216</provisioned_size>
   <used_size>16777216</used_size>
  </image>
  <image>
   <name>img1</name>
   <id>1022332bcfd2</id>
   <provisioned_size>16777216</provisioned_size>
   <used_size>16777216</used_size>
  </image>
 </images>
</stats>
",
        code: 0,
        reason: ROLLBACK_WRITES,
    },
    Difference {
        file: "session-1.txt",
        command: "rbd mv img2x p2/img2x",
        output: "rbd: mv/rename across pools not supported\nsource pool: rbd dest pool: p2\n",
        code: 22,
        reason: "Ceph leaves the source pool's name out when it is the default one",
    },
    Difference {
        file: "session-1.txt",
        command: "rbd create --size 4M --stripe-unit 4096 img9",
        output: "rbd: must specify both (or neither) of stripe-unit and stripe-count\n",
        code: 22,
        reason: "Ceph looks for the name before it looks at the layout",
    },
];

/// The difference of a command of a session, if there is one.
pub fn difference(file: &str, command: &str) -> Option<&'static Difference> {
    let found = DIFFERENCES
        .iter()
        .find(|difference| difference.file == file && difference.command == command)?;
    assert!(!found.reason.is_empty());
    Some(found)
}

//! Writes the seeds of every target's corpus: `seeds DIRECTORY` makes `DIRECTORY/TARGET/seed-NUMBER`.

use std::path::PathBuf;
use std::{env, fs, io};

use ferry_hostile::{TARGETS, seeds};

fn main() -> io::Result<()> {
    let directory = env::args_os()
        .nth(1)
        .map_or_else(|| PathBuf::from("fuzz/corpus"), PathBuf::from);
    for target in TARGETS {
        let place = directory.join(target.name);
        fs::create_dir_all(&place)?;
        for (number, bytes) in seeds::of(target.name).into_iter().enumerate() {
            fs::write(place.join(format!("seed-{number:03}")), bytes)?;
        }
    }
    Ok(())
}

//! Writes completion scripts and the manual page into a directory: `cargo run -p ferry-cli --example generate -- DIR`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: generate DIR");
        return ExitCode::FAILURE;
    };
    let written = std::fs::create_dir_all(&directory).and_then(|()| {
        ferry_cli::generate::all()
            .iter()
            .try_for_each(|(name, text)| std::fs::write(directory.join(name), text))
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generate: writing to '{}': {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

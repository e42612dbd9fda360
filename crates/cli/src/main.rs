//! The `rbd` binary: parses the command line, prints, maps every outcome to an exit code. Nothing else lives here.

use std::io::Write;
use std::process::ExitCode;

use ferry_cli::grammar::{Environment, Parsed, parse};

fn main() -> ExitCode {
    let outcome = match parse(std::env::args_os().skip(1), &Environment::from_process()) {
        Ok(Parsed::Print(text)) => {
            // A reader that left (`rbd help | head -1`) is no failure of ours.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(())
        }
        Ok(Parsed::Run(invocation)) => ferry_cli::commands::run(invocation),
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

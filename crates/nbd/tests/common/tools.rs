//! Running other people's tools.

use std::path::Path;
use std::process::{Command, Output};

/// Whether all of these can be run.
pub fn installed(tools: &[&str]) -> bool {
    let missing: Vec<_> = tools
        .iter()
        .filter(|tool| Command::new(tool).arg("--version").output().is_err())
        .collect();
    if missing.is_empty() {
        return true;
    }
    let required = ["CI", "FERRY_REQUIRE_TOOLS"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    assert!(!required, "not installed: {missing:?}");
    eprintln!("SKIPPED: not installed: {missing:?}");
    false
}

/// Runs a command with a limit on its time, and returns what it did.
pub async fn run(directory: &Path, command: &[&str]) -> Output {
    let mut limited = Command::new("timeout");
    limited.arg("300").args(command).current_dir(directory);
    tokio::task::spawn_blocking(move || limited.output().unwrap())
        .await
        .unwrap()
}

/// Runs a command that must succeed, and returns what it printed, errors after the rest.
pub async fn succeed(directory: &Path, command: &[&str]) -> String {
    let output = run(directory, command).await;
    let printed = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "{command:?}: {}\n{printed}",
        output.status
    );
    printed
}

/// A foreign server, ended when dropped.
pub struct ForeignServer(std::process::Child);

impl ForeignServer {
    /// Starts it and waits until it has made its socket.
    pub async fn start(directory: &Path, command: &[&str], socket: &Path) -> Self {
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .current_dir(directory)
            .spawn()
            .unwrap();
        while !socket.exists() {
            assert!(child.try_wait().unwrap().is_none(), "{command:?} ended at once");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Self(child)
    }
}

impl Drop for ForeignServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! The `nft` program, run inside a namespace. What it says on its error stream ends up in the error.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::netns::Namespace;
use crate::{Error, Result};

/// Applies a script as one transaction: all of it or nothing.
pub(crate) async fn apply(namespace: &Namespace, script: String) -> Result<()> {
    namespace.run(move || run(&["-f", "-"], &script).map(drop)).await
}

/// One of our tables in words, without the elements of its sets.
pub(crate) async fn outline(namespace: &Namespace, family: &str) -> Result<String> {
    let family = family.to_owned();
    namespace.run(move || run(&["-t", "list", "table", &family, "shoal"], "")).await
}

fn run(arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("run nft"))?;
    let mut stdin = child.stdin.take();
    // nft reads all of its input before it prints anything, so writing first cannot lock up.
    let written = stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(input.as_bytes()));
    drop(stdin);
    let output = child.wait_with_output().map_err(Error::io("wait for nft"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Nft(text.trim().to_owned()));
    }
    written.map_err(Error::io("write to nft"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The thing named in the script does not exist: the tables were flushed or were never there.
pub(crate) fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Nft(text) if text.contains("No such file or directory"))
}

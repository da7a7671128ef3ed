//! Builds the first process of containers that want one. It has to run inside any image, so it is linked
//! statically, which Cargo cannot do for one program of a workspace alone.

use std::path::PathBuf;
use std::process::{Command, exit};

const SOURCE: &str = "src/bin/docker-init.rs";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    let variable = |name: &str| std::env::var_os(name).unwrap_or_default();
    let output = PathBuf::from(variable("OUT_DIR")).join("docker-init");
    let status = Command::new(variable("RUSTC"))
        .args(["--edition", "2024", "--crate-type", "bin", "--target"])
        .arg(variable("TARGET"))
        .args([
            "-C",
            "target-feature=+crt-static",
            "-C",
            "panic=abort",
            "-C",
            "opt-level=s",
            "-C",
            "strip=symbols",
        ])
        .arg("-o")
        .arg(&output)
        .arg(SOURCE)
        .status();
    if !status.is_ok_and(|status| status.success()) {
        eprintln!("docker-init is linked statically: that needs the C library's archive (Debian: libc6-dev)");
        exit(1);
    }
}

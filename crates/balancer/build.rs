//! Compiles the eBPF programs. Needs clang (14 or later) and the kernel's user-space headers.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const PROGRAMS: [&str; 2] = ["connect", "answer"];

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    for program in PROGRAMS {
        if let Err(error) = compile(program, &out.join(format!("{program}.o"))) {
            println!("cargo:warning=bpf/{program}.bpf.c: {error}");
            eprintln!("{error}\nThe eBPF programs need clang and linux-libc-dev (Debian's package names).");
            exit(1);
        }
    }
}

fn compile(program: &str, object: &Path) -> Result<(), String> {
    let clang = std::env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    let mut command = Command::new(&clang);
    command.args(["-O2", "-g", "-target", "bpf", "-Wall", "-Werror"]);
    // `asm/types.h` lies in the host's multiarch directory, which clang does not look into for BPF.
    if let Some(include) = multiarch_include() {
        command.arg("-I").arg(include);
    }
    command.arg("-c").arg(format!("bpf/{program}.bpf.c")).arg("-o").arg(object);
    let output = command.output().map_err(|error| format!("cannot run {}: {error}", clang.display()))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn multiarch_include() -> Option<PathBuf> {
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").ok()?;
    let path = PathBuf::from(format!("/usr/include/{arch}-linux-gnu"));
    path.is_dir().then_some(path)
}

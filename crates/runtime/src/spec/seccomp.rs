//! Docker's default system call filter, in the form that runc takes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Value, json};

/// Which calls the filter lets pass: always, on some architectures, or with a capability.
#[derive(Deserialize)]
struct Profile {
    always: BTreeSet<String>,
    architectures: BTreeMap<String, BTreeSet<String>>,
    capabilities: BTreeMap<String, BTreeSet<String>>,
}

const PROFILE: &str = include_str!("seccomp.json");

/// <linux/personality.h>: the execution domains a program may choose.
/// Linux, `UNAME26`, `ADDR_NO_RANDOMIZE`-free 32 bit (`PER_LINUX32`), both, and "only ask".
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];
/// <linux/sched.h>: every `CLONE_NEW*` flag of clone(2); one of them set makes a namespace.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// <linux/socket.h>: reaches the hypervisor past every network namespace.
const AF_VSOCK: u64 = 40;
const EPERM: u32 = 1;
/// Tells libc that the call does not exist, so that it falls back to clone(2), whose flags a filter
/// can see; clone3's lie in memory.
const ENOSYS: u32 = 38;

/// The filter for a process with `capabilities` on `architecture` (Rust's name for it).
pub(super) fn filter(
    architecture: &str,
    capabilities: &BTreeSet<String>,
) -> Result<Value, serde_json::Error> {
    let mut profile: Profile = serde_json::from_str(PROFILE)?;
    let mut names = std::mem::take(&mut profile.always);
    names.extend(profile.architectures.remove(architecture).unwrap_or_default());
    for (capability, calls) in profile.capabilities {
        if capabilities.contains(&capability) {
            names.extend(calls);
        }
    }
    let mut rules = vec![json!({ "names": names, "action": "SCMP_ACT_ALLOW" })];
    rules.extend(PERSONALITIES.map(|value| allow_if("personality", value, "SCMP_CMP_EQ", None)));
    rules.push(allow_if("socket", AF_VSOCK, "SCMP_CMP_NE", None));
    if !capabilities.contains("CAP_SYS_ADMIN") {
        rules.push(allow_if("clone", NAMESPACE_FLAGS, "SCMP_CMP_MASKED_EQ", Some(0)));
        rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    Ok(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures(architecture),
        "syscalls": rules,
    }))
}

fn allow_if(name: &str, value: u64, op: &str, value_two: Option<u64>) -> Value {
    let mut argument = json!({ "index": 0, "value": value, "op": op });
    if let Some(second) = value_two {
        argument["valueTwo"] = json!(second);
    }
    json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument] })
}

/// The native ABI first, then those a process of this machine can switch to.
fn architectures(architecture: &str) -> &'static [&'static str] {
    match architecture {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "riscv64" => &["SCMP_ARCH_RISCV64"],
        "powerpc64" => &["SCMP_ARCH_PPC64LE"],
        "s390x" => &["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
        // Without a list runc filters the native ABI only.
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(filter: &Value) -> BTreeSet<&str> {
        let rules = filter["syscalls"].as_array().unwrap();
        rules[0]["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
    }

    #[test]
    fn capabilities_open_their_calls() {
        let plain = filter("x86_64", &BTreeSet::new()).unwrap();
        let admin = filter("x86_64", &BTreeSet::from(["CAP_SYS_ADMIN".to_owned()])).unwrap();
        assert!(names(&plain).is_superset(&BTreeSet::from(["read", "arch_prctl", "execve"])));
        for call in ["mount", "unshare", "setns", "bpf", "clone3"] {
            assert!(!names(&plain).contains(call) && names(&admin).contains(call), "{call}");
        }
        for call in ["io_uring_setup", "kexec_load", "add_key", "userfaultfd", "init_module"] {
            assert!(!names(&admin).contains(call), "{call}");
        }
    }

    #[test]
    fn without_admin_no_namespace_can_be_cloned() {
        let plain = filter("x86_64", &BTreeSet::new()).unwrap();
        let rule = |name: &str| {
            plain["syscalls"].as_array().unwrap().iter().find(|rule| rule["names"] == json!([name])).cloned()
        };
        assert_eq!(rule("clone").unwrap()["args"][0]["value"], json!(NAMESPACE_FLAGS));
        assert_eq!(rule("clone3").unwrap()["errnoRet"], json!(ENOSYS));
    }
}

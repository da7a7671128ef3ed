//! Shims that serve nobody: what containerd, or a call to it, left when it ended in the middle.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shoal_model::ContainerId;

use super::Containers;
use super::create::blocking;
use crate::Result;

/// A running shim and the container it was started for.
#[derive(Debug, PartialEq, Eq)]
struct Shim {
    pid: i32,
    container: String,
}

impl Containers {
    /// Ends the shims of this namespace, and what runs under them, whose tasks containerd does not
    /// know.
    pub(super) async fn end_stray_shims(&self) -> Result<()> {
        let (namespace, socket) = (self.config.namespace.clone(), self.config.socket.clone());
        let shims = blocking(move || Ok(running(&namespace, &socket))).await?;
        for shim in shims {
            let id = ContainerId::new(shim.container.as_str());
            // In turn: a shim is started before its task is known.
            let end = async move |this: Self, id: ContainerId| match this.task(&id).await? {
                Some(_) => Ok(()),
                None => {
                    blocking(move || {
                        shim.end();
                        Ok(())
                    })
                    .await
                }
            };
            self.in_turn(&id, end).await?;
        }
        Ok(())
    }
}

impl Shim {
    /// The container's process first: without its shim nobody would find it.
    fn end(&self) {
        tracing::info!(container = %self.container, pid = self.pid, "ending a shim without a task");
        let children = format!("/proc/{pid}/task/{pid}/children", pid = self.pid);
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        for pid in children.chain([self.pid]) {
            // It may have ended by itself.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// All shims of a namespace of the containerd that listens on `socket`.
fn running(namespace: &str, socket: &Path) -> Vec<Shim> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let command = std::fs::read(process.path().join("cmdline")).ok()?;
            let container = container_of(&command, namespace, socket)?;
            Some(Shim { pid, container })
        })
        .collect()
}

/// The container in a shim's command line (`containerd-shim-runc-v2 -namespace N -id I -address A`),
/// if the shim is one of ours.
fn container_of(command: &[u8], namespace: &str, socket: &Path) -> Option<String> {
    let words: Vec<&str> =
        command.split(|&byte| byte == 0).map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let value = |flag| words.iter().skip_while(|&&word| word != flag).nth(1).copied();
    let is_shim = words.first()?.rsplit('/').next()?.starts_with("containerd-shim");
    let ours = value("-namespace")? == namespace && is_same(Path::new(value("-address")?), socket);
    (is_shim && ours).then(|| value("-id").map(str::to_owned)).flatten()
}

/// Two names of one socket: `/var/run` is often a link to `/run`.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    one == other || real(one) == real(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_shims_are_ours() {
        let of = |command: &str| {
            container_of(command.replace(' ', "\0").as_bytes(), "shoal", Path::new("/run/c.sock"))
        };
        let shim = "/usr/bin/containerd-shim-runc-v2 -namespace shoal -id ab -address /run/c.sock";
        assert_eq!(of(shim).as_deref(), Some("ab"));
        assert_eq!(of(&shim.replace("shoal", "moby")), None);
        assert_eq!(of(&shim.replace("c.sock", "d.sock")), None);
        assert_eq!(of(&shim.replace("containerd-shim-runc-v2", "sh")), None);
        assert_eq!(of("containerd-shim-runc-v2 -namespace"), None);
        assert_eq!(of(""), None);
    }
}

//! Bringing the programs into the kernel and keeping them there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuHashMap};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramFd, SchedClassifier};
use aya::{Ebpf, EbpfLoader, Pod};

use crate::layout::{BindingKey, CountKey, LocalKey, RawPort, RawSandbox, RawService, Set};
use crate::pins::Pins;
use crate::sets::Sets;
use crate::{Error, Result, pins, sys};

static CONNECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/connect.o"));
static ANSWER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/answer.o"));

/// The programs of `bpf/connect.bpf.c`, in the order in which they are attached: the ways back first,
/// so that no reply is seen untranslated.
const HOOKS: [&str; 8] = [
    "shoal_peername4",
    "shoal_peername6",
    "shoal_recvmsg4",
    "shoal_recvmsg6",
    "shoal_sendmsg4",
    "shoal_sendmsg6",
    "shoal_connect4",
    "shoal_connect6",
];

/// The maps that user space reads or writes; `bpf/*.h` says what each is for.
pub(crate) struct Maps {
    pub(crate) sandboxes: HashMap<MapData, u64, RawSandbox>,
    pub(crate) services: HashMap<MapData, RawService, Set>,
    pub(crate) ports: HashMap<MapData, RawPort, Set>,
    pub(crate) sets: Sets,
    pub(crate) locals: HashMap<MapData, LocalKey, u8>,
    pub(crate) bindings: HashMap<MapData, BindingKey, u8>,
    pub(crate) node: Array<MapData, u64>,
    pub(crate) counts: PerCpuHashMap<MapData, CountKey, u64>,
}

/// Loads this build's programs over the pinned maps, or new ones, and puts them at the root of cgroup2.
///
/// Where an earlier build's link is pinned, its program is exchanged in place: there is no moment without
/// one, and none with two.
pub(crate) fn connect_programs(pins: &Pins) -> Result<Maps> {
    let mut ebpf = load(CONNECT, pins)?;
    let root = cgroup2_root()?;
    let cgroup =
        File::open(&root).map_err(|source| Error::File { action: "open", path: root.clone(), source })?;
    for name in HOOKS {
        let program = program::<CgroupSockAddr>(&mut ebpf, name)?;
        program.load().map_err(|source| Error::Program { name, source })?;
        let link = pins.links.join(name);
        if link.exists() {
            exchange(&link, name, program)?;
        } else {
            attach(&link, &root, &cgroup, name, program)?;
        }
    }
    Ok(Maps {
        sandboxes: hash(&mut ebpf, "sandboxes")?,
        services: hash(&mut ebpf, "services")?,
        ports: hash(&mut ebpf, "ports")?,
        sets: Sets {
            slots: hash(&mut ebpf, "slots")?,
            live: hash(&mut ebpf, "live")?,
            numbers: array(&mut ebpf, "numbers")?,
        },
        locals: hash(&mut ebpf, "locals")?,
        bindings: hash(&mut ebpf, "bindings")?,
        node: array(&mut ebpf, "node")?,
        counts: {
            let map = map(&mut ebpf, "counts", size_of::<CountKey>(), size_of::<u64>())?;
            map.try_into().map_err(|source| Error::Map { name: "counts", source })?
        },
    })
}

/// The connect-time programs that are not in force, in words.
pub(crate) fn missing_links(pins: &Pins) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for name in HOOKS {
        let pin = pins.links.join(name);
        if !pin.exists() {
            missing.push(format!("{name} is not pinned"));
        } else if !is_attached(&pin)? {
            missing.push(format!("{name} is detached"));
        }
    }
    Ok(missing)
}

/// Unpins links that somebody has detached: their programs can be attached anew only.
pub(crate) fn discard_detached(pins: &Pins) -> Result<()> {
    for pin in HOOKS.map(|name| pins.links.join(name)).iter().filter(|pin| pin.exists()) {
        if !is_attached(pin)? {
            pins::remove(pin)?;
        }
    }
    Ok(())
}

fn is_attached(pin: &Path) -> Result<bool> {
    let failed = |source| Error::File { action: "look at the link", path: pin.into(), source };
    let link = sys::object_get(pin).map_err(failed)?;
    Ok(sys::cgroup_of(link).map_err(failed)?.is_some())
}

/// The programs and maps of `bpf/answer.bpf.c`. Filters hold the programs that they run, so no program is
/// pinned here; the maps are.
pub(crate) struct Answering {
    /// Ingress of the host side of a veth: what the sandbox sends.
    pub(crate) answer: ProgramFd,
    /// Egress: what the sandbox receives.
    pub(crate) back: ProgramFd,
    /// VNI to the bridge's interface index.
    pub(crate) bridges: HashMap<MapData, u32, u32>,
    /// Flows that bypassed `connect`.
    pub(crate) bypass_count: Array<MapData, u64>,
}

pub(crate) fn answering(pins: &Pins) -> Result<Answering> {
    let mut ebpf = load(ANSWER, pins)?;
    Ok(Answering {
        answer: classifier(&mut ebpf, "shoal_answer")?,
        back: classifier(&mut ebpf, "shoal_back")?,
        bridges: hash(&mut ebpf, "bridges")?,
        bypass_count: array(&mut ebpf, "bypass_count")?,
    })
}

fn classifier(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd> {
    let failed = |source| Error::Program { name, source };
    let program = program::<SchedClassifier>(ebpf, name)?;
    program.load().map_err(failed)?;
    let fd = program.fd().map_err(failed)?;
    fd.try_clone().map_err(|error| failed(error.into()))
}

fn load(object: &[u8], pins: &Pins) -> Result<Ebpf> {
    // Nothing here is relocated against the running kernel's types.
    Ok(EbpfLoader::new().btf(None).default_map_pin_directory(&pins.maps).load(object)?)
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(Error::Missing(name))?;
    program.try_into().map_err(|source| Error::Program { name, source })
}

fn exchange(link: &Path, name: &'static str, program: &CgroupSockAddr) -> Result<()> {
    let failed = |source| Error::File { action: "exchange the program of", path: link.into(), source };
    let fd = program.fd().map_err(|source| Error::Program { name, source })?;
    sys::link_update(sys::object_get(link).map_err(failed)?, fd).map_err(failed)
}

fn attach(
    pin: &Path,
    root: &Path,
    cgroup: &File,
    name: &'static str,
    program: &mut CgroupSockAddr,
) -> Result<()> {
    let failed = |source: aya::programs::ProgramError| match denied(&source) {
        true => Error::CgroupHeld(root.into()),
        false => Error::Program { name, source },
    };
    // A link always shares its place with others; `Single` stands for "no flags", all a link may have.
    let id = program.attach(cgroup, CgroupAttachMode::Single).map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    let link = FdLink::try_from(link).map_err(|source| Error::Link { name, source })?;
    link.pin(pin).map_err(|source| Error::Pin { path: pin.into(), source })?;
    Ok(())
}

/// The kernel says EPERM when somebody attached to this cgroup without allowing others beside him.
fn denied(error: &aya::programs::ProgramError) -> bool {
    use aya::programs::ProgramError::SyscallError;
    matches!(error, SyscallError(call) if call.io_error.raw_os_error() == Some(libc::EPERM))
}

fn hash<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<HashMap<MapData, K, V>> {
    let map = map(ebpf, name, size_of::<K>(), size_of::<V>())?;
    map.try_into().map_err(|source| Error::Map { name, source })
}

fn array<V: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<Array<MapData, V>> {
    let map = map(ebpf, name, size_of::<u32>(), size_of::<V>())?;
    map.try_into().map_err(|source| Error::Map { name, source })
}

/// A map, once the kernel has said that its keys and values are of these sizes: what is pinned under our
/// names was made by whoever could write there, and the kernel copies by its own sizes.
fn map(ebpf: &mut Ebpf, name: &'static str, key: usize, value: usize) -> Result<Map> {
    let map = ebpf.take_map(name).ok_or(Error::Missing(name))?;
    if let Map::HashMap(data) | Map::Array(data) | Map::PerCpuHashMap(data) = &map {
        let info = data.info().map_err(|source| Error::Map { name, source })?;
        if info.key_size() as usize == key && info.value_size() as usize == value {
            return Ok(map);
        }
    }
    Err(Error::Shape(name))
}

/// The root of the unified hierarchy. On a hybrid machine it is not at `/sys/fs/cgroup` itself.
fn cgroup2_root() -> Result<PathBuf> {
    const MOUNTS: &str = "/proc/mounts";
    let mounts = fs::read_to_string(MOUNTS).map_err(|source| Error::File {
        action: "read",
        path: MOUNTS.into(),
        source,
    })?;
    find_cgroup2(&mounts).ok_or(Error::NoCgroup2)
}

/// The first cgroup2 mount of a mount table (proc(5)).
fn find_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_by_its_type() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(find_cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_cgroup2("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"), Some("/sys/fs/cgroup".into()));
        assert_eq!(find_cgroup2("proc /proc proc rw 0 0\n"), None);
    }
}

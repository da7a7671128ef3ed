use std::collections::BTreeMap;

use shoal_model::{ContainerId, ContainerSpec, Labels, Mount, MountKind};

use super::*;

fn config(spec: ContainerSpec, resources: Resources) -> ContainerConfig {
    ContainerConfig {
        id: ContainerId::new("ab".repeat(32)),
        name: "web.1.x".to_owned(),
        image: "busybox".to_owned(),
        spec,
        resources,
        labels: Labels::new(),
        netns: Some("/run/shoal/netns/x".into()),
        resolv_conf: String::new(),
        hosts: String::new(),
        log_options: Labels::new(),
        provided: Vec::new(),
        note: String::new(),
    }
}

fn built(config: &ContainerConfig, uid: u32) -> Result<Value> {
    built_with(config, uid, None)
}

fn built_with(config: &ContainerConfig, uid: u32, init: Option<&Path>) -> Result<Value> {
    build(&Input {
        config,
        argv: &["sh".to_owned()],
        init,
        env: &[],
        directory: "/",
        hostname: "h",
        identity: &Identity { uid, gid: uid, groups: vec![uid] },
        cgroup: "/shoal/n/x",
        dir: Path::new("/var/lib/shoal/containers/x"),
        data_dir: Path::new("/var/lib/shoal"),
        netns: "/run/shoal/netns/x".into(),
        kernel: Kernel { unified: false, swap_limit: true },
        architecture: "x86_64",
    })
}

#[test]
fn limits_become_cgroup_values() {
    let resources = Resources {
        limit_nano_cpus: 500_000_000,
        limit_memory: 64 << 20,
        limit_pids: 9,
        ..Resources::default()
    };
    let spec = built(&config(ContainerSpec::default(), resources), 0).unwrap();
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["memory"], json!({ "limit": 67_108_864, "swap": 134_217_728 }));
    assert_eq!(resources["cpu"], json!({ "period": 100_000, "quota": 50_000 }));
    assert_eq!(resources["pids"], json!({ "limit": 9 }));
}

#[test]
fn an_init_is_mounted_and_starts_the_program() {
    let plain = config(ContainerSpec::default(), Resources::default());
    let place = |spec: &Value| {
        let mounts = spec["mounts"].as_array().unwrap().clone();
        mounts.into_iter().find(|mount| mount["destination"] == "/sbin/docker-init")
    };
    let without = built(&plain, 0).unwrap();
    assert_eq!((without["process"]["args"].clone(), place(&without)), (json!(["sh"]), None));
    let with = built_with(&plain, 0, Some(Path::new("/run/shoal/docker-init"))).unwrap();
    assert_eq!(with["process"]["args"], json!(["/sbin/docker-init", "--", "sh"]));
    assert_eq!(place(&with).unwrap()["source"], "/run/shoal/docker-init");
}

#[test]
fn only_root_starts_with_capabilities() {
    let root = built(&config(ContainerSpec::default(), Resources::default()), 0).unwrap();
    assert_eq!(root["process"]["capabilities"]["effective"].as_array().unwrap().len(), 14);
    let user = built(&config(ContainerSpec::default(), Resources::default()), 1000).unwrap();
    assert_eq!(user["process"]["capabilities"]["effective"], Value::Null);
    assert_eq!(user["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
}

#[test]
fn the_users_mounts_replace_the_defaults() {
    let mounts = vec![
        Mount {
            kind: MountKind::Tmpfs { size: Some(4096), mode: Some(0o700) },
            target: "/dev/shm/".to_owned(),
            read_only: false,
        },
        Mount { kind: MountKind::bind("/b"), target: "/a/b".to_owned(), read_only: true },
        Mount { kind: MountKind::bind("/a"), target: "/a".to_owned(), read_only: false },
    ];
    let spec = ContainerSpec { mounts, ..ContainerSpec::default() };
    let spec = built(&config(spec, Resources::default()), 0).unwrap();
    let mounts = spec["mounts"].as_array().unwrap();
    let at = |path: &str| mounts.iter().filter(|mount| mount["destination"] == path).collect::<Vec<_>>();
    assert_eq!(at("/dev/shm").len(), 1);
    let options = at("/dev/shm")[0]["options"].as_array().unwrap();
    assert!(options.contains(&json!("size=4096")) && options.contains(&json!("mode=700")));
    assert_eq!(at("/a/b")[0]["options"], json!(["rbind", "rprivate", "ro"]));
    let place = |path: &str| mounts.iter().position(|mount| mount["destination"] == path).unwrap();
    assert!(place("/a") < place("/a/b"), "parents come first");
    assert_eq!(at("/etc/hosts")[0]["source"], "/var/lib/shoal/containers/x/hosts");
}

#[test]
fn what_cannot_be_done_is_refused() {
    let refused =
        |spec: ContainerSpec| built(&config(spec, Resources::default()), 0).unwrap_err().to_string();
    let mut on_host = config(
        ContainerSpec {
            sysctls: BTreeMap::from([("net.ipv4.ip_default_ttl".to_owned(), "9".to_owned())]),
            ..ContainerSpec::default()
        },
        Resources::default(),
    );
    on_host.netns = None;
    assert!(built(&on_host, 0).unwrap_err().to_string().contains("host network"));
    let limit = Ulimit { name: "nofile".to_owned(), soft: 10, hard: 5 };
    assert!(
        refused(ContainerSpec { ulimits: vec![limit], ..ContainerSpec::default() }).contains("soft limit")
    );
    let root =
        Mount { kind: MountKind::Tmpfs { size: None, mode: None }, target: "/".to_owned(), read_only: false };
    assert!(
        refused(ContainerSpec { mounts: vec![root], ..ContainerSpec::default() })
            .contains("invalid mount path")
    );
}

#[test]
fn the_users_sysctls_win() {
    let sysctls = BTreeMap::from([("net.ipv4.ip_unprivileged_port_start".to_owned(), "1024".to_owned())]);
    let spec = ContainerSpec { sysctls, ..ContainerSpec::default() };
    let spec = built(&config(spec, Resources::default()), 0).unwrap();
    let sysctls = &spec["linux"]["sysctl"];
    assert_eq!(sysctls["net.ipv4.ip_unprivileged_port_start"], "1024");
    assert_eq!(sysctls["net.ipv4.ping_group_range"], "0 2147483647");
}

//! Everything that can be said of a service's container, and what the container then sees.

use std::os::unix::fs::PermissionsExt;

use shoal_e2e::{Node, PATIENCE, wait_until};

/// Says what it sees where only it can, and how it is told to stop.
const SCRIPT: &str = "echo $0 $1 > /host/args; test -t 1 && echo yes > /host/tty; \
                      trap 'echo USR1 > /host/signal; exit 0' USR1; while :; do sleep 1 & wait $!; done";

#[test]
fn a_container_is_as_its_service_declares_it() {
    let node = Node::cluster();
    let (writable, fixed) = (node.path("writable"), node.path("fixed"));
    for dir in [&writable, &fixed] {
        std::fs::create_dir(dir).unwrap();
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o777)).unwrap();
    }
    std::fs::write(fixed.join("file"), "fixed\n").unwrap();
    std::fs::create_dir(node.path("host-1")).unwrap();
    let bind = format!("type=bind,source={},target=/host", writable.display());
    let read = format!("type=bind,source={},target=/fixed,readonly,bind-propagation=rslave", fixed.display());
    let by_slot =
        format!("type=bind,source={}/host-{{{{.Task.Slot}}}},target=/slot", node.path("").display());
    let flags = [
        ["--env", "PLAIN=a b"],
        ["--env", "PLACE={{.Service.Name}}/{{.Task.Slot}}/{{.Node.Hostname}}"],
        ["--label", "com.example.tier=front"],
        ["--env", "TIER={{index .Service.Labels \"com.example.tier\"}}"],
        ["--hostname", "h{{.Task.Slot}}"],
        ["--user", "nobody"],
        ["--group", "4242"],
        ["--workdir", "/var"],
        ["--entrypoint", "/bin/sh"],
        ["--stop-signal", "SIGUSR1"],
        ["--stop-grace-period", "20s"],
        ["--tty", "--init"],
        ["--read-only", "--no-healthcheck"],
        ["--ulimit", "core=512:1024"],
        ["--sysctl", "net.core.somaxconn=99"],
        ["--cap-add", "NET_ADMIN"],
        ["--cap-drop", "CHOWN"],
        ["--host", "extra:192.0.2.77"],
        ["--dns", "192.0.2.53"],
        ["--dns-search", "example.test"],
        ["--dns-option", "ndots:3"],
        ["--mount", &bind],
        ["--mount", &read],
        ["--mount", &by_slot],
        ["--mount", "type=volume,source=kept-{{.Task.Slot}},target=/kept"],
        ["--mount", "type=tmpfs,target=/fast,tmpfs-size=1m,tmpfs-mode=1770"],
        ["--limit-memory", "64M"],
        ["--limit-cpu", "0.5"],
        ["--limit-pids", "40"],
        ["--container-label", "kind=full"],
        ["--log-opt", "max-size=1m"],
    ];
    let task = node.service("full", 1, flags.as_flattened(), &["-c", SCRIPT, "first", "second"]).remove(0);
    let sees = |command: &str| node.exec(&task, &["sh", "-c", command]).ok().trim().to_owned();
    let host = |file: &str| {
        wait_until(PATIENCE, &format!("the container wrote {file}"), || {
            std::fs::read_to_string(writable.join(file))
                .map_err(|error| format!("{error}\n{}", node.log_tail()))
        })
    };
    assert_eq!(host("args"), "first second\n");
    assert_eq!(host("tty"), "yes\n");
    assert_eq!(sees("echo $PLAIN; echo $PLACE; echo $TIER"), "a b\nfull/1/node1\nfront");
    assert_eq!(sees("hostname; pwd; id -u; id -G"), "h1\n/var\n65534\n65534 4242");
    assert!(sees("cat /proc/1/cmdline | tr '\\0' ' '").starts_with("/sbin/docker-init -- /bin/sh -c"));
    assert_eq!(sees("touch /www/x 2>&1 | grep -c Read-only; cat /fixed/file"), "1\nfixed");
    let limits = sees("cat /proc/self/limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["512", "1024"], "{limits}");
    assert_eq!(sees("cat /proc/sys/net/core/somaxconn"), "99");
    let bounding = u64::from_str_radix(&sees("sed -n 's/^CapBnd:\\t//p' /proc/self/status"), 16).unwrap();
    let has = |number: u32| bounding & (1 << number) != 0;
    assert!(has(12) && !has(0) && has(6), "NET_ADMIN, no CHOWN, SETGID as ever: {bounding:x}");
    assert_eq!(sees("grep extra /etc/hosts"), "192.0.2.77\textra");
    let resolv = sees("cat /etc/resolv.conf");
    assert!(resolv.contains("search example.test") && resolv.contains("ndots:3"), "{resolv}");
    let mounts = sees("cat /proc/mounts");
    let options = |path: &str| {
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(path));
        line.unwrap_or_else(|| panic!("{path} is not in\n{mounts}")).split(' ').nth(3).unwrap().to_owned()
    };
    assert!(options("/host").starts_with("rw") && options("/fixed").starts_with("ro"), "{mounts}");
    assert!(options("/kept").starts_with("rw") && options("/slot").starts_with("rw"), "{mounts}");
    assert!(options("/fast").contains("size=1024k"), "{mounts}");
    assert_eq!(sees("stat -c %a /fast"), "1770");
    let detail = &task.detail;
    assert_eq!(detail["HostConfig"]["Memory"], 64 << 20);
    assert_eq!(detail["HostConfig"]["NanoCpus"], 500_000_000);
    assert_eq!(detail["HostConfig"]["PidsLimit"], 40);
    assert_eq!(detail["Config"]["Labels"]["kind"], "full");
    assert_eq!(node.docker(&["volume", "ls", "-q"]).ok(), "kept-1\n");
    node.docker(&["service", "rm", "full"]).ok();
    assert_eq!(host("signal"), "USR1\n");
    node.finish();
}

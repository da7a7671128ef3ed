//! The resolver as a process of its own, on the real kernel: sandboxes and upstream servers are
//! network namespaces, questions are put by `dig` and by bare sockets. Needs root, `ip` and `dig`.
// Helpers of tests panic as tests do.
#![allow(clippy::unwrap_used)]

mod forwarding;
mod lifecycle;
mod serving;
mod stub;
mod world;

/// Not a test: what the tests start as the resolver process, this very binary.
#[test]
fn resolver_child() {
    let Ok(directory) = std::env::var(world::CHILD_DIRECTORY) else { return };
    let directory = std::path::Path::new(&directory);
    let config = shoal_resolver::ResolverConfig {
        run_dir: directory.join("run"),
        state_dir: directory.join("state"),
        resolv_conf: directory.join("resolv.conf"),
        version: "test".to_owned(),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Err(error) = runtime.block_on(shoal_resolver::serve(config)) {
        eprintln!("{error}");
        std::process::exit(7);
    }
    std::process::exit(0);
}

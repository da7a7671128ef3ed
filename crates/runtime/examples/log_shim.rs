//! The logger alone, as a program: what a daemon's binary offers as its `log-shim DIR` verb.

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(verb), Some(dir)) if verb == "log-shim" => shoal_runtime::log_shim::run(dir.as_ref()),
        _ => eprintln!("usage: log_shim log-shim DIR"),
    }
}

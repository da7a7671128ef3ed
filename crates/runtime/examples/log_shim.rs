//! The logger alone, as a program: what a daemon's binary offers as its `log-shim DIR [FIFOS]` verb.

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(verb), Some(dir), fifos) if verb == "log-shim" => {
            shoal_runtime::log_shim::run(dir.as_ref(), fifos.as_ref().map(AsRef::as_ref))
        }
        _ => eprintln!("usage: log_shim log-shim DIR [FIFOS]"),
    }
}

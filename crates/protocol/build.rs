fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure()
        // Tables and deltas are encoded once and shared by all sessions: cheap clones.
        .bytes(".")
        // What it holds is not for logs: see `lib.rs`.
        .skip_debug([".shoal.session.v1.Value"])
        .compile_protos(&["proto/session.proto", "proto/cluster.proto"], &["proto"])?;
    Ok(())
}

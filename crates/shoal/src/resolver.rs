//! `shoal resolver`: the process that answers names, started by the daemon and outliving it.

use std::path::PathBuf;

use shoal_resolver::ResolverConfig;

#[derive(Debug, clap::Args)]
pub(crate) struct ResolverArgs {
    #[arg(long)]
    run_dir: PathBuf,
    #[arg(long)]
    state_dir: PathBuf,
    #[arg(long)]
    resolv_conf: PathBuf,
}

pub(crate) fn run(arguments: ResolverArgs) -> anyhow::Result<()> {
    crate::daemon::log_to_stderr(crate::options::LogFormat::Text);
    let config = ResolverConfig {
        run_dir: arguments.run_dir,
        state_dir: arguments.state_dir,
        resolv_conf: arguments.resolv_conf,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    crate::runtime()?.block_on(shoal_resolver::serve(config))?;
    Ok(())
}

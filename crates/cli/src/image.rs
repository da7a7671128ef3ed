//! `image import` and `image ls`.

use std::process::ExitCode;

use bollard::query_parameters::{CreateImageOptions, ListImagesOptions};
use clap::{Args, Subcommand};
use futures::StreamExt;
use jiff::Timestamp;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use crate::client::{Client, Error, Result};
use crate::output::{human_duration, human_size, short_id, table};

#[derive(Debug, Clone, Subcommand)]
pub enum ImageCommand {
    /// Import the contents from a tarball to create a filesystem image
    Import(ImportArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ListArgs),
}

#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// A tar archive, or - for standard input
    file: String,
    /// REPOSITORY[:TAG]
    reference: Option<String>,
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long)]
    change: Vec<String>,
    /// Set commit message for imported image
    #[arg(short, long)]
    message: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) async fn run(client: &Client, command: ImageCommand) -> Result<ExitCode> {
    match command {
        ImageCommand::Import(args) => import(client, args).await,
        ImageCommand::Ls(args) => list(client, args).await,
    }
}

async fn import(client: &Client, args: ImportArgs) -> Result<ExitCode> {
    let tar: Box<dyn AsyncRead + Send + Unpin> = if args.file == "-" {
        Box::new(tokio::io::stdin())
    } else {
        let opened = tokio::fs::File::open(&args.file).await;
        Box::new(opened.map_err(|source| Error::Io { what: args.file.clone(), source })?)
    };
    let (repo, tag) = args.reference.as_deref().map(split_reference).unwrap_or_default();
    let options = CreateImageOptions {
        from_src: Some("-".to_owned()),
        repo: Some(repo.to_owned()),
        tag: Some(tag.to_owned()),
        message: args.message,
        changes: args.change,
        ..CreateImageOptions::default()
    };
    let body = bollard::body_try_stream(ReaderStream::new(tar));
    let mut progress = client.docker().create_image(Some(options), Some(body), None);
    while let Some(step) = progress.next().await {
        if let Some(status) = step?.status {
            println!("{status}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `repo:tag`, where a colon before a slash belongs to the registry's port.
fn split_reference(reference: &str) -> (&str, &str) {
    match reference.rsplit_once(':') {
        Some((repo, tag)) if !tag.contains('/') => (repo, tag),
        _ => (reference, ""),
    }
}

async fn list(client: &Client, args: ListArgs) -> Result<ExitCode> {
    let mut images = client.docker().list_images(None::<ListImagesOptions>).await?;
    images.sort_by_key(|image| std::cmp::Reverse(image.created));
    if args.quiet {
        images.iter().for_each(|image| println!("{}", short_id(&image.id)));
        return Ok(ExitCode::SUCCESS);
    }
    let now = Timestamp::now().as_second();
    let mut rows = Vec::new();
    for image in &images {
        let untagged = ["<none>:<none>".to_owned()];
        let tags = if image.repo_tags.is_empty() { &untagged[..] } else { &image.repo_tags };
        for reference in tags {
            let (repo, tag) = split_reference(reference);
            let age = format!("{} ago", human_duration(now - image.created));
            rows.push(vec![
                repo.to_owned(),
                tag.to_owned(),
                short_id(&image.id),
                age,
                human_size(image.size),
            ]);
        }
    }
    print!("{}", table(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], &rows));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::split_reference;

    #[test]
    fn a_registry_port_is_not_a_tag() {
        assert_eq!(split_reference("busybox"), ("busybox", ""));
        assert_eq!(split_reference("busybox:1.36"), ("busybox", "1.36"));
        assert_eq!(split_reference("host:5000/busybox"), ("host:5000/busybox", ""));
        assert_eq!(split_reference("host:5000/busybox:1"), ("host:5000/busybox", "1"));
    }
}

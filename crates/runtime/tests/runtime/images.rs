//! Images against the real containerd.

use crate::support::{World, busybox_layer, docker_archive, gzip, oci_layout, shell, words};
use shoal_runtime::{Error, ImageDeletion, ImportOptions};

fn untagged(name: &str) -> ImageDeletion {
    ImageDeletion::Untagged(name.to_owned())
}

#[tokio::test]
async fn an_archive_is_loaded_named_and_removed_without_a_trace() {
    let world = World::new().await;
    let layer = busybox_layer();
    let config = r#""Cmd":["sh"],"Env":["A=1"],"ExposedPorts":{"80/tcp":{}},"Labels":null,"Entrypoint":null"#;
    let archive = gzip(&docker_archive(&["busybox:1.36", "foo/bar:1"], &layer, config));
    let runtime = &world.runtime;
    assert_eq!(runtime.load(&archive[..]).await.unwrap(), ["busybox:1.36", "foo/bar:1"]);
    let image = runtime.image("busybox:1.36").await.unwrap();
    assert_eq!(image.references, ["busybox:1.36", "foo/bar:1"]);
    assert_eq!(image.config.cmd, ["sh"]);
    assert_eq!(image.config.exposed_ports, ["80/tcp"]);
    assert_eq!(image.history[0].comment, "made");
    assert!(image.size > 1_000_000, "{}", image.size);

    let missing = runtime.image("busybox").await.unwrap_err().to_string();
    assert_eq!(missing, "No such image: busybox:latest");
    runtime.tag("foo/bar:1", "busybox").await.unwrap();
    for name in
        ["busybox", "docker.io/library/busybox:latest", &image.id, &image.id[7..19], &image.digests[0]]
    {
        assert_eq!(runtime.image(name).await.unwrap().id, image.id, "{name}");
    }
    assert_eq!(runtime.images().await.unwrap().len(), 1);

    assert_eq!(runtime.remove_image("busybox", false).await.unwrap(), [untagged("busybox:latest")]);
    let several = runtime.remove_image(&image.id, false).await.unwrap_err();
    assert!(several.to_string().ends_with("(must be forced) - image is referenced in multiple repositories"));
    runtime.remove_image("foo/bar:1", false).await.unwrap();
    let last = runtime.remove_image("busybox:1.36", false).await.unwrap();
    let deleted = |id: &str| ImageDeletion::Deleted(id.to_owned());
    assert_eq!(last, [untagged("busybox:1.36"), deleted(&image.id), deleted(&image.layers[0])]);
    assert_eq!(world.left_overs(), [""; 0]);
    assert!(matches!(runtime.image("busybox:1.36").await, Err(Error::NoSuchImage(_))));
}

#[tokio::test]
async fn an_oci_layout_keeps_its_digest() {
    let world = World::new().await;
    let (archive, digest) = oci_layout("docker.io/library/oci:1", &busybox_layer(), r#""Cmd":["true"]"#);
    assert_eq!(world.runtime.load(&archive[..]).await.unwrap(), ["oci:1"]);
    let pinned = format!("oci:1@{digest}");
    assert_eq!(world.runtime.image(&pinned).await.unwrap().digests, [format!("oci@{digest}")]);
    let other = format!("oci:1@sha256:{}", "0".repeat(64));
    assert!(matches!(world.runtime.image(&other).await, Err(Error::NoSuchImage(_))));
    // Loaded again it is the same image.
    world.runtime.load(&archive[..]).await.unwrap();
    assert_eq!(world.runtime.images().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_collected_has_no_name_and_no_user() {
    let world = World::with_image().await;
    let runtime = &world.runtime;
    // A second load under the same name takes it from the first image, which stays nameless.
    let first = runtime.image("busybox").await.unwrap().id;
    let archive = docker_archive(&["busybox:latest"], &busybox_layer(), r#""Cmd":["true"]"#);
    runtime.load(&archive[..]).await.unwrap();
    let second = runtime.image("busybox").await.unwrap().id;
    assert_ne!(first, second);
    assert!(runtime.image(&first).await.unwrap().references.is_empty());
    assert_eq!(runtime.images().await.unwrap().len(), 2);
    // The layer belongs to both and outlives the one.
    assert_eq!(runtime.remove_image(&first, false).await.unwrap(), [ImageDeletion::Deleted(first)]);

    let id = world.start(shell("sleep 100")).await;
    let refused = runtime.remove_image("busybox", false).await.unwrap_err();
    let short = &second["sha256:".len()..][..12];
    let expected = format!(
        "conflict: unable to remove repository reference \"busybox:latest\" (must force) - container {} is using its referenced image {short}",
        id.short()
    );
    assert_eq!(refused.to_string(), expected);
    assert!(matches!(refused, Error::ImageInUse(_)));
    let by_id = runtime.remove_image(&second, true).await.unwrap_err().to_string();
    assert!(by_id.contains("(cannot be forced) - image is being used by running container"), "{by_id}");
    // Forced, the name goes and the image stays as long as the container.
    assert_eq!(runtime.remove_image("busybox", true).await.unwrap(), [untagged("busybox:latest")]);
    assert_eq!(runtime.container(&id).await.unwrap().image_id, second);
    runtime.remove(&id).await.unwrap();
    runtime.remove_image(&second, false).await.unwrap();
    assert_eq!(world.left_overs(), [""; 0]);
}

#[tokio::test]
async fn a_file_system_becomes_an_image() {
    let world = World::new().await;
    let options = ImportOptions {
        reference: Some("imp:1".to_owned()),
        message: String::new(),
        changes: words(&["CMD [\"echo\", \"imported\"]", "ENV A=1"]),
    };
    let id = world.runtime.import(&gzip(&busybox_layer())[..], options).await.unwrap();
    let image = world.runtime.image("imp:1").await.unwrap();
    assert_eq!((image.id, image.comment.as_str()), (id, "Imported from -"));
    let container = world.create_with(Default::default(), |config| config.image = "imp:1".to_owned()).await;
    world.runtime.start(&container).await.unwrap();
    assert_eq!(world.runtime.wait(&container).await.unwrap().code, 0);
    assert_eq!(crate::support::text(&world.log(&container).await), "imported\n");
    let broken = world.runtime.import(&b"this is no tar at all"[..], ImportOptions::default()).await;
    assert!(broken.is_err());
}

#[tokio::test]
async fn a_broken_archive_leaves_nothing() {
    let world = World::new().await;
    let layer = busybox_layer();
    let archive = docker_archive(&["bad:1"], &layer, "");
    // Another layer than the configuration names.
    let mut wrong = layer.clone();
    wrong.truncate(layer.len() - 1024);
    wrong.extend_from_slice(&[0; 4096]);
    let digest = crate::support::sha(&layer);
    let place = archive.windows(64).position(|bytes| bytes == digest.as_bytes()).unwrap();
    let mut archive = archive;
    archive[place..place + 64].copy_from_slice(crate::support::sha(&wrong).as_bytes());
    let error = world.runtime.load(&archive[..]).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArchive(_)), "{error}");
    crate::support::eventually("collection", async || world.left_overs().is_empty()).await;
    assert_eq!(std::fs::read_dir(world.config.data_dir.join("tmp")).unwrap().count(), 0);
    let truncated = &docker_archive(&["bad:1"], &layer, "")[..100_000];
    assert!(matches!(world.runtime.load(truncated).await, Err(Error::InvalidArchive(_))));
}

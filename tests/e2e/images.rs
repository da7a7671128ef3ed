//! Images from registries: what is pulled is what was asked for, whoever may have it.

use std::sync::Arc;

use shoal_e2e::image::{RegistryImage, digest};
use shoal_e2e::process::Output;
use shoal_e2e::registry::{Access, PASSWORD, Registry, USER};
use shoal_e2e::{Cluster, Node, NodeOptions, PATIENCE, World, wait_until};

fn fails(output: Output) -> String {
    assert_ne!(output.code, 0, "{output}");
    output.stderr
}

fn image(version: &str) -> RegistryImage {
    RegistryImage::new("amd64", version)
}

/// What an image says of itself.
fn version(node: &Node, name: &str) -> String {
    node.docker(&["run", "--rm", "--network", "none", name, "cat", "/version"]).ok()
}

#[test]
fn names_tags_digests_and_platforms_are_pulled() {
    let world = Arc::new(World::new());
    let registry = Registry::start(&world, Access::Open);
    let node = Node::start_in(world, 1, NodeOptions::default());
    let name = format!("{}/team/app", registry.name());
    let tagged = format!("{name}:1");
    let foreign = RegistryImage::new("arm64", "foreign");
    let first = registry.push("team/app", "1", &[foreign, image("one")]);
    let said = node.docker(&["pull", &tagged]).ok();
    for line in ["1: Pulling from team/app", &format!("Digest: {first}"), "Downloaded newer image", &tagged] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(version(&node, &tagged), "one");
    assert!(node.docker(&["pull", &tagged]).ok().contains("Image is up to date for"));
    let detail = node.inspect("image", &tagged);
    assert_eq!(detail["RepoDigests"], serde_json::json!([format!("{name}@{first}")]));
    assert_eq!(detail["RepoTags"], serde_json::json!([tagged]));

    // The tag moves on; the digest means what it meant.
    let second = registry.push("team/app", "1", &[image("two")]);
    assert!(node.docker(&["pull", &tagged]).ok().contains(&format!("Digest: {second}")));
    assert_eq!(version(&node, &tagged), "two");
    assert_eq!(version(&node, &format!("{name}@{first}")), "one");
    let said = node.docker(&["rmi", &tagged]).ok();
    for line in [format!("Untagged: {tagged}"), format!("Untagged: {name}@{second}"), "Deleted: ".to_owned()]
    {
        assert!(said.contains(&line), "{line}: {said}");
    }
    node.docker(&["pull", "-q", &format!("{name}@{second}")]).ok();
    assert_eq!(version(&node, &format!("{name}@{second}")), "two");

    let pull = |arguments: &[&str]| node.docker(&[&["pull"], arguments].concat());
    pull(&["--platform", "linux/arm64", &format!("{name}@{first}")]).ok();
    let said = fails(pull(&["--platform", "linux/s390x", &format!("{name}@{first}")]));
    assert!(said.contains("no matching manifest for linux/s390x"), "{said}");
    let said = fails(pull(&[&format!("{name}:nosuch")]));
    assert!(said.contains(&format!("manifest for {name}:nosuch not found: manifest unknown")), "{said}");
    fails(pull(&[&format!("{}/nosuch", registry.name())]));
    what_is_damaged_is_not_taken(&node, &registry);
    what_is_saved_can_be_loaded(&node, &registry);
    node.finish();
}

fn what_is_damaged_is_not_taken(node: &Node, registry: &Registry) {
    for part in ["layer", "configuration", "manifest"] {
        let (bad, name) = (image(part), format!("{}/bad-{part}", registry.name()));
        let whole = registry.push(&format!("bad-{part}"), "latest", std::slice::from_ref(&bad));
        let damaged = match part {
            "layer" => digest(&bad.layer),
            "configuration" => digest(&bad.config),
            _ => whole.clone(),
        };
        registry.damage(&damaged);
        for name in [name.clone(), format!("{name}@{whole}")] {
            let said = fails(node.docker(&["pull", &name]));
            assert!(said.contains(&damaged) || said.contains("igest"), "{part}: {said}");
            let left = fails(node.docker(&["image", "inspect", &name]));
            assert!(left.contains("No such image"), "nothing is left: {left}");
        }
    }
}

fn what_is_saved_can_be_loaded(node: &Node, registry: &Registry) {
    let name = format!("{}/saved:1", registry.name());
    registry.push("saved", "1", &[image("saved")]);
    node.docker(&["pull", "-q", &name]).ok();
    let id = node.inspect("image", &name)["Id"].clone();
    let path = node.path("saved.tar");
    let file = path.to_str().unwrap();
    node.docker(&["save", "-o", file, &name]).ok();
    node.docker(&["rmi", &name]).ok();
    let said = node.docker(&["load", "-i", file]).ok();
    assert!(said.contains(&format!("Loaded image: {name}")), "{said}");
    assert_eq!(node.inspect("image", &name)["Id"], id);
    assert_eq!(version(node, &name), "saved");
    assert!(fails(node.docker(&["save", "-o", file, "nosuch"])).contains("No such image: nosuch"));
}

#[test]
fn registries_learn_who_asks() {
    for access in [Access::Password, Access::Token] {
        let world = Arc::new(World::new());
        let registry = Registry::start(&world, access);
        let node = Node::start_in(world, 1, NodeOptions::default());
        let name = format!("{}/private:1", registry.name());
        registry.push("private", "1", &[image("one")]);
        let said = fails(node.docker(&["pull", &name]));
        assert!(said.contains("certificate"), "{access:?}: {said}");
        registry.is_trusted_by(&node);
        let said = fails(node.docker(&["pull", &name]));
        assert!(said.contains("pull access denied for"), "{access:?}: {said}");
        let login = |password: &str| {
            let arguments = ["login", "-u", USER, "--password-stdin", &registry.name()];
            node.docker_with_input(&arguments, password.as_bytes())
        };
        let said = fails(login("wrong"));
        assert!(said.contains("incorrect username or password"), "{access:?}: {said}");
        assert!(login(PASSWORD).ok().contains("Login Succeeded"));
        node.docker(&["pull", &name]).ok();
        assert_eq!(version(&node, &name), "one");
        node.finish();
    }
}

#[test]
fn services_keep_the_image_they_were_declared_with() {
    let cluster = Cluster::start(3);
    let registry = Registry::start(&cluster.world, Access::Token);
    cluster.each(|node| registry.is_trusted_by(node));
    let name = format!("{}/app:1", registry.name());
    let first = registry.push("app", "1", &[image("one")]);
    let arguments = ["login", "-u", USER, "--password-stdin", &registry.name()];
    cluster.manager().docker_with_input(&arguments, PASSWORD.as_bytes()).ok();
    let create = ["service", "create", "-d", "--name", "app", "--replicas", "3", "--with-registry-auth"];
    cluster.docker(&[&create[..], &[&name, "idle"]].concat()).ok();
    let versions = |count: usize| -> Vec<String> {
        let of = |task: &shoal_e2e::Container| cluster.node(task.node).exec(task, &["cat", "/version"]).ok();
        cluster.running("app", count).iter().map(of).collect()
    };
    assert_eq!(versions(3), ["one"; 3]);
    let pinned = |digest: &str| {
        let spec = cluster.manager().inspect("service", "app");
        assert_eq!(spec["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"], format!("{name}@{digest}"));
        assert!(!spec.to_string().contains(PASSWORD), "{spec}");
    };
    pinned(&first);

    // The tag moves on, and the image goes from a node: what is started now is still what was declared.
    let second = registry.push("app", "1", &[image("two")]);
    cluster.docker(&["service", "scale", "-d", "app=0"]).ok();
    cluster.running("app", 0);
    for node in cluster.nodes() {
        wait_until(PATIENCE, "the image is not needed any more", || {
            let removed = node.docker(&["rmi", "-f", &format!("{}/app@{first}", registry.name())]);
            if removed.code == 0 { Ok(()) } else { Err(removed.to_string()) }
        });
    }
    cluster.docker(&["service", "scale", "-d", "app=3"]).ok();
    assert_eq!(versions(3), ["one"; 3]);
    let update = ["service", "update", "-d", "--with-registry-auth", "--update-parallelism", "0", "--image"];
    cluster.docker(&[&update[..], &[&name, "app"]].concat()).ok();
    wait_until(PATIENCE, "the new image runs everywhere", || match versions(3) {
        all if all == ["two"; 3] => Ok(()),
        other => Err(format!("{other:?}")),
    });
    pinned(&second);
    whoever_may_not_have_it_is_told(&cluster, &registry);
    cluster.finish();
}

/// The node knows why, and says so beside Docker's words.
fn whoever_may_not_have_it_is_told(cluster: &Cluster, registry: &Registry) {
    let name = format!("{}/other:1", registry.name());
    registry.push("other", "1", &[image("other")]);
    cluster.docker(&["service", "create", "-d", "--name", "other", &name]).ok();
    wait_until(PATIENCE, "a task is rejected with the reason", || {
        let tasks = cluster.docker(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "other"]).ok();
        let told = tasks.contains("No such image: ") && tasks.contains("pull access denied for");
        if told { Ok(()) } else { Err(tasks) }
    });
    cluster.docker(&["service", "rm", "other"]).ok();
}

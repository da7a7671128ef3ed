use bytes::Bytes;
use shoal_model::{DepositFile, DepositId, NodeId};

use super::*;
use crate::testing;

fn reference(name: &str, file: &str) -> DepositReference {
    let file = DepositFile { name: file.to_owned(), uid: 7, gid: 8, mode: 0o440 };
    DepositReference { deposit: DepositId::new(name), name: name.to_owned(), file }
}

fn container(secrets: &[(&str, &str)], configs: &[(&str, &str)]) -> ContainerSpec {
    let references = |list: &[(&str, &str)]| list.iter().map(|(name, file)| reference(name, file)).collect();
    ContainerSpec { secrets: references(secrets), configs: references(configs), ..ContainerSpec::default() }
}

#[test]
fn secrets_are_below_their_directory_and_configs_where_they_are_wanted() {
    let container = container(
        &[("a", "a"), ("b", "deep/b"), ("c", "/etc/key"), ("d", "../../etc/d")],
        &[("e", "/etc/x.conf"), ("f", "f"), ("g", "/run/secrets/g")],
    );
    let layout = layout(&container);
    let places: Vec<_> = layout.files.iter().map(|file| file.place.to_str().unwrap()).collect();
    assert_eq!(
        places,
        ["secrets/a", "secrets/deep/b", "files/2", "files/3", "files/4", "files/5", "secrets/g"]
    );
    let shown: Vec<_> =
        layout.shown.iter().map(|(place, target)| (place.to_str().unwrap(), target.as_str())).collect();
    assert_eq!(
        shown,
        [
            ("secrets", "/run/secrets"),
            ("files/2", "/etc/key"),
            ("files/3", "/etc/d"),
            ("files/4", "/etc/x.conf"),
            ("files/5", "/f")
        ]
    );
}

#[test]
fn a_value_is_told_as_it_is_or_filled_in_or_missed() {
    let container = container(&[("a", "a")], &[("e", "/e"), ("gone", "/gone")]);
    let known = |text: &str, templated| Value::Known { bytes: Bytes::from(text.to_owned()), templated };
    let values = Values::from([
        ("a".into(), known("{{.Task.Slot}}", false)),
        ("e".into(), known("{{.Task.Slot}} {{secret \"a\"}}", true)),
        ("gone".into(), Value::Gone),
    ]);
    let (task, node) = (testing::task("t1"), NodeId::new("n"));
    let context = Context { task: &task, node: &node, node_name: "host1" };
    let layout = layout(&container);
    let of = |number: usize| content(&context, &container, &values, &layout.files[number]);
    assert_eq!(of(0).unwrap(), b"{{.Task.Slot}}");
    assert_eq!(of(1).unwrap(), b"1 {{.Task.Slot}}");
    assert_eq!(of(2).unwrap_err().to_string(), "config not found: gone");
    let bad = Values::from([("e".into(), known("{{range .}}", true))]);
    let error = content(&context, &container, &bad, &layout.files[1]).unwrap_err();
    assert_eq!(error.to_string(), "cannot fill in config e: {{range .}} stands for nothing");
}

#[test]
fn the_files_are_in_a_tmpfs_and_go_with_it() {
    let run = tempfile::tempdir().unwrap();
    let dir = run.path().join("c1");
    let container = container(&[("a", "deep/a")], &[]);
    let file = layout(&container).files.remove(0);
    write(&dir, &[(file.clone(), b"one".to_vec())]).unwrap();
    write(&dir, &[(file, b"two".to_vec())]).unwrap();
    let path = dir.join("secrets/deep/a");
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    let data = std::fs::metadata(&path).unwrap();
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (7, 8, 0o440));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own: Vec<_> = mounts.lines().filter(|line| line.contains(dir.to_str().unwrap())).collect();
    assert!(own.len() == 1 && own[0].contains(" - tmpfs "), "{own:?}");
    assert!(is_mounted(&dir));
    remove(&dir).unwrap();
    assert!(!dir.exists());
    remove(&dir).unwrap();
}

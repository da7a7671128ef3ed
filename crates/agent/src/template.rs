//! Docker's placeholders (`swarmkit/template/context.go`): what a service's declaration, and the values of its
//! secrets and configs, leave to be filled in for each task.

use shoal_model::{ContainerSpec, MountKind, NodeId, Task};

/// What placeholders stand for.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub task: &'a Task,
    pub node: &'a NodeId,
    pub node_name: &'a str,
}

impl Context<'_> {
    fn value(&self, key: &str) -> Option<String> {
        let Self { task, node, node_name } = self;
        Some(match key {
            ".Service.ID" => task.service.to_string(),
            ".Service.Name" => task.service_name.clone(),
            ".Node.ID" => node.to_string(),
            ".Node.Hostname" => (*node_name).to_owned(),
            ".Node.Platform.OS" => std::env::consts::OS.to_owned(),
            ".Node.Platform.Architecture" => std::env::consts::ARCH.to_owned(),
            ".Task.ID" => task.id.to_string(),
            ".Task.Name" => task.name(),
            ".Task.Slot" => task.slot.to_string(),
            // One that the service does not have is empty.
            _ => task.service_labels.get(label(key)?).cloned().unwrap_or_default(),
        })
    }

    /// Fills in a text. Unknown placeholders stay as they are.
    pub(crate) fn expand(&self, text: &str) -> String {
        let kept =
            |key: &str| Ok::<_, Unknown>(self.value(key.trim()).unwrap_or_else(|| format!("{{{{{key}}}}}")));
        // Nothing fails here.
        fill(text, kept).unwrap_or_else(|_| text.to_owned())
    }

    /// The task with every placeholder of its declaration filled in.
    pub(crate) fn expanded(&self) -> Task {
        let mut expanded = self.task.clone();
        let fill = |text: &mut String| *text = self.expand(text);
        let container = &mut expanded.spec.container;
        fill(&mut container.hostname);
        container.env.iter_mut().for_each(fill);
        for mount in &mut container.mounts {
            fill(&mut mount.target);
            match &mut mount.kind {
                MountKind::Bind { source, .. } => fill(source),
                MountKind::Volume { name, .. } => fill(name),
                MountKind::Tmpfs { .. } => {}
            }
        }
        expanded
    }

    /// Fills in the value of a secret or config, which may name other ones by the names of their files, and
    /// variables of the environment. An unknown placeholder is an error there: what would be left of it is no
    /// value that anybody meant.
    pub(crate) fn fill_value(&self, text: &str, others: &impl Others) -> Result<String, Unknown> {
        fill(text, |key| {
            let key = key.trim();
            let found = match argument(key) {
                Some(("secret", name)) => others.secret(name),
                Some(("config", name)) => others.config(name),
                Some(("env", name)) => Some(variable(others.container(), name)),
                _ => self.value(key),
            };
            found.ok_or_else(|| Unknown(key.to_owned()))
        })
    }
}

/// What the value of a secret or config may draw on beside the task itself.
pub(crate) trait Others {
    /// Values by the names of their files.
    fn secret(&self, file: &str) -> Option<String>;
    fn config(&self, file: &str) -> Option<String>;
    /// With its placeholders filled in.
    fn container(&self) -> &ContainerSpec;
}

/// A placeholder that stands for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{{{{{0}}}}} stands for nothing")]
pub(crate) struct Unknown(String);

fn fill<E>(text: &str, value: impl Fn(&str) -> Result<String, E>) -> Result<String, E> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        filled += before;
        let Some((key, tail)) = after.split_once("}}") else {
            filled += "{{";
            rest = after;
            continue;
        };
        filled += &value(key)?;
        rest = tail;
    }
    Ok(filled + rest)
}

/// `secret "name"` as its two parts.
fn argument(key: &str) -> Option<(&str, &str)> {
    let (function, rest) = key.split_once(char::is_whitespace)?;
    Some((function, quoted(rest)?))
}

fn quoted(text: &str) -> Option<&str> {
    let text = text.trim();
    let within = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    within('"').or_else(|| within('`'))
}

/// The label that `.Service.Labels.name` or `index .Service.Labels "any.name"` asks for.
fn label(key: &str) -> Option<&str> {
    let indexed = || key.strip_prefix("index")?.trim_start().strip_prefix(".Service.Labels").and_then(quoted);
    key.strip_prefix(".Service.Labels.").or_else(indexed)
}

/// One that is not set is empty, as in SwarmKit.
fn variable(container: &ContainerSpec, name: &str) -> String {
    let set = container.env.iter().filter_map(|line| line.split_once('='));
    set.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next_back().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn placeholders_are_filled_in_and_strangers_left_alone() {
        let task = testing::task("t1");
        let node = NodeId::new("n");
        let context = Context { task: &task, node: &node, node_name: "host1" };
        let filled = |text| context.expand(text);
        assert_eq!(filled("{{.Service.Name}}-{{ .Task.Slot }}@{{.Node.Hostname}}"), "web-1@host1");
        assert_eq!(filled("{{.Nobody}} {{ {{.Task.ID}}"), "{{.Nobody}} {{ {{.Task.ID}}");
        assert_eq!(filled("plain"), "plain");
    }

    #[test]
    fn a_label_of_the_service_may_be_asked_for_by_its_name() {
        let mut task = testing::task("t1");
        let labels = [("tier", "front"), ("com.example.tier", "back")];
        task.service_labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let node = NodeId::new("n");
        let context = Context { task: &task, node: &node, node_name: "host1" };
        let filled = |text| context.expand(text);
        assert_eq!(
            filled("{{.Service.Labels.tier}} {{ index .Service.Labels \"com.example.tier\" }}"),
            "front back"
        );
        assert_eq!(filled("<{{.Service.Labels.other}}>"), "<>");
        assert_eq!(
            filled("{{.Service.Labels}} {{index .Task.Labels `tier`}}"),
            "{{.Service.Labels}} {{index .Task.Labels `tier`}}"
        );
    }

    struct Known(ContainerSpec);

    impl Others for Known {
        fn secret(&self, file: &str) -> Option<String> {
            (file == "password").then(|| "hush".to_owned())
        }

        fn config(&self, file: &str) -> Option<String> {
            (file == "/etc/x.conf").then(|| "x".to_owned())
        }

        fn container(&self) -> &ContainerSpec {
            &self.0
        }
    }

    #[test]
    fn a_value_may_draw_on_others_and_on_nothing_that_is_not_there() {
        let task = testing::task("t1");
        let node = NodeId::new("n");
        let context = Context { task: &task, node: &node, node_name: "host1" };
        let others = Known(ContainerSpec { env: vec!["A=b=c".to_owned()], ..ContainerSpec::default() });
        let filled = |text| context.fill_value(text, &others);
        let text =
            "{{secret \"password\"}} {{ config `/etc/x.conf` }} {{env \"A\"}}{{env \"B\"}} {{.Task.Slot}}";
        assert_eq!(filled(text).unwrap(), "hush x b=c 1");
        for unknown in ["secret \"other\"", "secret password", "range .x", ".Nobody", ""] {
            let text = format!("{{{{{unknown}}}}}");
            assert_eq!(context.fill_value(&text, &others), Err(Unknown(unknown.to_owned())));
        }
        assert_eq!(Unknown(".X".to_owned()).to_string(), "{{.X}} stands for nothing");
    }
}

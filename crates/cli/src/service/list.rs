//! `service ls` and `service ps`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::client::{Client, Result, escape};
use crate::output::{ago, short_id, table};

#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Only display IDs
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Args)]
pub struct PsArgs {
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only display task IDs
    #[arg(short, long)]
    quiet: bool,
    /// Services, by name or id
    #[arg(required = true)]
    services: Vec<String>,
}

pub(super) async fn services(client: &Client, args: ListArgs) -> Result<ExitCode> {
    let answer = client.get_json("/services?status=true").await?;
    let mut services: Vec<&Value> = answer.as_array().into_iter().flatten().collect();
    services.sort_by_key(|service| text(service, "/Spec/Name"));
    let rows: Vec<Vec<String>> = services.iter().map(|service| service_row(service)).collect();
    if args.quiet {
        rows.iter().for_each(|row| println!("{}", row[0]));
    } else {
        print!("{}", table(&["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"], &rows));
    }
    Ok(ExitCode::SUCCESS)
}

fn service_row(service: &Value) -> Vec<String> {
    let count = |key: &str| service["ServiceStatus"][key].as_u64().unwrap_or(0);
    let mut replicas = format!("{}/{}", count("RunningTasks"), count("DesiredTasks"));
    let completed = count("CompletedTasks");
    let (mode, total) = match service.pointer("/Spec/Mode").and_then(Value::as_object) {
        Some(mode) if mode.contains_key("Global") => ("global", None),
        Some(mode) if mode.contains_key("GlobalJob") => {
            ("global job", Some(completed + count("DesiredTasks")))
        }
        Some(mode) => match mode.get("ReplicatedJob") {
            Some(job) => ("replicated job", job["TotalCompletions"].as_u64()),
            None => ("replicated", None),
        },
        None => ("replicated", None),
    };
    if let Some(total) = total {
        replicas.push_str(&format!(" ({completed}/{total} completed)"));
    }
    vec![
        short_id(&text(service, "/ID")),
        text(service, "/Spec/Name"),
        mode.to_owned(),
        replicas,
        without_digest(&text(service, "/Spec/TaskTemplate/ContainerSpec/Image")),
        ports(service.pointer("/Endpoint/Ports"), "ingress"),
    ]
}

fn ports(list: Option<&Value>, mode: &str) -> String {
    let ports = list.and_then(Value::as_array).into_iter().flatten();
    let shown = ports.filter(|port| port["PublishMode"] == mode).map(|port| {
        let protocol = port["Protocol"].as_str().unwrap_or("tcp");
        format!("*:{}->{}/{protocol}", port["PublishedPort"], port["TargetPort"])
    });
    shown.collect::<Vec<_>>().join(", ")
}

pub(super) async fn tasks(client: &Client, args: PsArgs) -> Result<ExitCode> {
    let (mut found, mut names, mut missing) = (Vec::new(), BTreeMap::new(), Vec::new());
    for name in &args.services {
        let service = match client.get_json(&format!("/services/{}", escape(name))).await {
            Err(error) if error.is_not_found() => {
                missing.push(name);
                continue;
            }
            answer => answer?,
        };
        let id = text(&service, "/ID");
        let filters = json!({ "service": { id.as_str(): true } });
        let tasks = client.get_json(&format!("/tasks?filters={}", escape(&filters.to_string()))).await?;
        found.extend(tasks.as_array().into_iter().flatten().cloned());
        names.insert(id, text(&service, "/Spec/Name"));
    }
    let nodes = node_names(client, &found).await?;
    let rows = rows(found, &names, &nodes, args.no_trunc, Timestamp::now());
    if args.quiet {
        rows.iter().for_each(|row| println!("{}", row[0]));
    } else if !rows.is_empty() || missing.is_empty() {
        const HEADER: [&str; 8] =
            ["ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "PORTS"];
        print!("{}", table(&HEADER, &rows));
    }
    missing.iter().for_each(|name| eprintln!("no such service: {name}"));
    Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn node_names(client: &Client, tasks: &[Value]) -> Result<BTreeMap<String, String>> {
    if tasks.is_empty() {
        return Ok(BTreeMap::new());
    }
    let nodes = client.get_json("/nodes").await?;
    let name = |node: &Value| (text(node, "/ID"), text(node, "/Description/Hostname"));
    Ok(nodes.as_array().into_iter().flatten().map(name).collect())
}

/// Newest first within a slot; what a slot held before is indented under it.
fn rows(
    mut tasks: Vec<Value>,
    services: &BTreeMap<String, String>,
    nodes: &BTreeMap<String, String>,
    no_trunc: bool,
    now: Timestamp,
) -> Vec<Vec<String>> {
    let slot = |task: &Value| (text(task, "/ServiceID"), task["Slot"].as_u64().unwrap_or(0));
    tasks.sort_by(|a, b| {
        slot(a).cmp(&slot(b)).then_with(|| text(b, "/CreatedAt").cmp(&text(a, "/CreatedAt")))
    });
    let mut previous = None;
    let mut rows = Vec::new();
    for task in &tasks {
        let (service, number) = slot(task);
        let name = services.get(&service).map_or(service.as_str(), String::as_str);
        let name = format!("{name}.{number}");
        let indented = previous.replace((service, number)) == Some(slot(task));
        let id = text(task, "/ID");
        let node = text(task, "/NodeID");
        let image = text(task, "/Spec/ContainerSpec/Image");
        let state = capitalized(&text(task, "/Status/State"));
        rows.push(vec![
            if no_trunc { id } else { short_id(&id) },
            if indented { format!(" \\_ {name}") } else { name },
            if no_trunc { image } else { without_digest(&image) },
            nodes.get(&node).cloned().unwrap_or(node),
            capitalized(&text(task, "/DesiredState")),
            format!("{state} {}", ago(&text(task, "/Status/Timestamp"), now)),
            error_text(&text(task, "/Status/Err"), no_trunc),
            ports(task.pointer("/Status/PortStatus/Ports"), "host"),
        ]);
    }
    rows
}

fn error_text(error: &str, no_trunc: bool) -> String {
    const SHOWN: usize = 30;
    match error {
        "" => String::new(),
        _ if no_trunc || error.chars().count() <= SHOWN => format!("\"{error}\""),
        _ => format!("\"{}…\"", error.chars().take(SHOWN - 1).collect::<String>()),
    }
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn without_digest(image: &str) -> String {
    image.split('@').next().unwrap_or(image).to_owned()
}

fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_shows_what_is_done() {
        let row = |mode: Value| {
            let status = json!({ "RunningTasks": 0, "DesiredTasks": 2, "CompletedTasks": 3 });
            service_row(&json!({ "Spec": { "Mode": mode }, "ServiceStatus": status }))[2..4].join(" ")
        };
        assert_eq!(
            row(json!({ "ReplicatedJob": { "TotalCompletions": 4 } })),
            "replicated job 0/2 (3/4 completed)"
        );
        assert_eq!(row(json!({ "GlobalJob": {} })), "global job 0/2 (3/5 completed)");
        assert_eq!(row(json!({ "Global": {} })), "global 0/2");
        assert_eq!(row(json!({ "Replicated": { "Replicas": 2 } })), "replicated 0/2");
    }

    #[test]
    fn a_slots_past_is_indented_under_it() {
        let task = |id: &str, slot: u64, created: &str, state: &str| {
            json!({ "ID": id, "ServiceID": "s", "Slot": slot, "CreatedAt": created, "DesiredState": "running",
                    "NodeID": "n", "Spec": { "ContainerSpec": { "Image": "busybox:latest@sha256:12" } },
                    "Status": { "State": state, "Timestamp": "2026-11-23T08:29:52Z", "Err": "", "PortStatus": { "Ports": [
                        { "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host" }] } } })
        };
        let tasks = vec![
            task("old", 1, "2026-11-23T08:00:00Z", "failed"),
            task("two", 2, "2026-11-23T08:00:00Z", "running"),
            task("new", 1, "2026-11-23T08:10:00Z", "running"),
        ];
        let names = BTreeMap::from([("s".to_owned(), "web".to_owned())]);
        let nodes = BTreeMap::from([("n".to_owned(), "vm".to_owned())]);
        let now = "2026-11-23T08:30:00Z".parse().unwrap();
        let rows = rows(tasks, &names, &nodes, false, now);
        let shown: Vec<(&str, &str)> = rows.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect();
        assert_eq!(shown, [("new", "web.1"), ("old", " \\_ web.1"), ("two", "web.2")]);
        assert_eq!(rows[0][7], "*:8080->80/tcp");
        assert_eq!(rows[0][2..6], ["busybox:latest", "vm", "Running", "Running 8 seconds ago"]);
    }
}

//! `node ls` and `node update`; `node tables`: what this node holds of each network, beside what kernel
//! and resolver really hold.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::client::{Client, Error, Result, escape};
use crate::output::{Format, indent, table};

#[derive(Debug, Clone, Subcommand)]
pub enum NodeCommand {
    /// List nodes in the swarm
    Ls(ListArgs),
    /// Update a node
    Update(UpdateArgs),
    /// Show the network tables in force on this node
    Tables(TablesArgs),
}

#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Only display IDs
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Args)]
pub struct UpdateArgs {
    /// Availability of the node ("active", "pause", "drain")
    #[arg(long)]
    availability: String,
    /// Name or id of the node
    node: String,
}

#[derive(Debug, Clone, Args)]
pub struct TablesArgs {
    /// Format of the output
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

pub(crate) async fn run(client: &Client, command: NodeCommand) -> Result<ExitCode> {
    match command {
        NodeCommand::Ls(args) => list(client, args).await,
        NodeCommand::Update(args) => update(client, args).await,
        NodeCommand::Tables(args) => tables(client, args).await,
    }
}

async fn list(client: &Client, args: ListArgs) -> Result<ExitCode> {
    let answer = client.get_json("/nodes").await?;
    let info = client.get_json("/info").await?;
    let own = info.pointer("/Swarm/NodeID").and_then(Value::as_str).unwrap_or_default();
    let mut nodes: Vec<&Value> = answer.as_array().into_iter().flatten().collect();
    nodes.sort_by_key(|node| text(node, "/Description/Hostname"));
    if args.quiet {
        nodes.iter().for_each(|node| println!("{}", text(node, "/ID")));
    } else {
        let rows: Vec<Vec<String>> = nodes.iter().map(|node| row(node, own)).collect();
        let header = ["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS", "ENGINE VERSION"];
        print!("{}", table(&header, &rows));
    }
    Ok(ExitCode::SUCCESS)
}

fn row(node: &Value, own: &str) -> Vec<String> {
    let id = text(node, "/ID");
    // Docker leaves the column of the mark free on every row.
    let mark = if id == own { '*' } else { ' ' };
    let leads = node.pointer("/ManagerStatus/Leader").and_then(Value::as_bool).unwrap_or(false);
    let manages =
        if leads { "Leader".to_owned() } else { capital(&text(node, "/ManagerStatus/Reachability")) };
    vec![
        format!("{id} {mark}"),
        text(node, "/Description/Hostname"),
        capital(&text(node, "/Status/State")),
        capital(&text(node, "/Spec/Availability")),
        manages,
        text(node, "/Description/Engine/EngineVersion"),
    ]
}

/// The text at a JSON pointer; empty when there is none.
fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

async fn update(client: &Client, args: UpdateArgs) -> Result<ExitCode> {
    let path = format!("/nodes/{}", escape(&args.node));
    let mut node = client.get_json(&path).await?;
    node["Spec"]["Availability"] = args.availability.into();
    let version = node["Version"]["Index"].as_u64().unwrap_or_default();
    client.post_json(&format!("{path}/update?version={version}"), &node["Spec"]).await?;
    println!("{}", args.node);
    Ok(ExitCode::SUCCESS)
}

async fn tables(client: &Client, args: TablesArgs) -> Result<ExitCode> {
    let body = client.get("/shoal/node/tables").await?;
    match args.format {
        Format::Json => println!("{}", indent(&String::from_utf8_lossy(&body), 0)),
        Format::Table => {
            let tables: Value =
                serde_json::from_slice(&body).map_err(|error| Error::UnexpectedAnswer(error.to_string()))?;
            print!("{}", render(&tables));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One row per network; every scalar of a report becomes a column, nested counts `outer.inner`.
fn render(tables: &Value) -> String {
    let reports: Vec<Vec<(String, String)>> =
        tables.as_array().into_iter().flatten().map(|report| flatten("", report)).collect();
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in reports.iter().flatten() {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let cell = |report: &Vec<(String, String)>, column: &str| {
        report.iter().find(|(name, _)| name == column).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let rows: Vec<Vec<String>> =
        reports.iter().map(|report| columns.iter().map(|column| cell(report, column)).collect()).collect();
    let header: Vec<String> = columns.iter().map(|column| column.to_uppercase().replace('_', " ")).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    if header.is_empty() { "no network tables on this node\n".to_owned() } else { table(&header, &rows) }
}

fn flatten(prefix: &str, value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&name, value)
            })
            .collect(),
        Value::Array(items) => vec![(prefix.to_owned(), items.len().to_string())],
        Value::String(text) => vec![(prefix.to_owned(), text.clone())],
        Value::Null => vec![(prefix.to_owned(), "-".to_owned())],
        scalar => vec![(prefix.to_owned(), scalar.to_string())],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reports_become_rows() {
        let text = render(&json!([
            { "name": "mynet", "held": { "services": 2 }, "kernel": { "services": 2 } },
            { "name": "other", "held": { "services": 1 }, "drift": true },
        ]));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        for column in ["NAME", "HELD.SERVICES", "KERNEL.SERVICES", "DRIFT"] {
            assert!(lines[0].contains(column), "{text}");
        }
        assert!(lines.iter().any(|line| line.contains("other") && line.contains("true")), "{text}");
    }

    #[test]
    fn a_node_is_a_row_as_dockers_client_prints_it() {
        let node = json!({
            "ID": "x1", "Spec": { "Availability": "drain" }, "Status": { "State": "ready" },
            "Description": { "Hostname": "node1", "Engine": { "EngineVersion": "1.0" } },
            "ManagerStatus": { "Leader": true, "Reachability": "reachable" },
        });
        assert_eq!(row(&node, "x1"), ["x1 *", "node1", "Ready", "Drain", "Leader", "1.0"]);
        let worker = json!({ "ID": "x2", "Status": { "State": "down" } });
        assert_eq!(row(&worker, "x1")[..5], ["x2  ", "", "Down", "", ""]);
    }

    #[test]
    fn an_idle_node_says_so() {
        assert_eq!(render(&json!([])), "no network tables on this node\n");
    }
}

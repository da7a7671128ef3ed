//! `verify`: whether every node really holds what its network tables say.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::client::{Client, Error, Result};
use crate::output::{Format, indent, table};

#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Format of the output
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

const HEADER: [&str; 9] =
    ["NODE", "NETWORK", "IN FORCE", "CURRENT", "SERVICES", "ENDPOINTS", "FOUND", "REPAIRED", "STATE"];

pub(crate) async fn run(client: &Client, args: VerifyArgs) -> Result<ExitCode> {
    let body = client.get("/shoal/verify").await?;
    let report: Value =
        serde_json::from_slice(&body).map_err(|error| Error::UnexpectedAnswer(error.to_string()))?;
    match args.format {
        Format::Json => println!("{}", indent(&String::from_utf8_lossy(&body), 0)),
        Format::Table => print!("{}", render(&report)),
    }
    let is_well = elements(&report["nodes"]).all(|node| complaints(node).is_empty());
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a node's own daemon finds, whoever manages its cluster.
pub async fn node_report(host: &str) -> Result<Value> {
    Client::connect(host)?.get_json("/shoal/node/verify").await
}

fn elements(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Everything wrong with one node, one line each.
fn complaints(node: &Value) -> Vec<String> {
    if let Some(error) = node["error"].as_str() {
        return vec![error.to_owned()];
    }
    let report = &node["report"];
    let of_tables = elements(&report["tables"]).flat_map(|table| {
        elements(&table["differences"]).map(|found| format!("{}: {}", text(&table["name"]), text(found)))
    });
    let of_node = elements(&report["differences"]).map(text);
    of_tables.chain(of_node).chain(elements(&node["behind"]).map(text)).collect()
}

/// A row per node and network, then every difference, then the sum.
fn render(report: &Value) -> String {
    let mut rows = Vec::new();
    let mut details = Vec::new();
    let (mut nodes, mut well) = (0, 0);
    for node in elements(&report["nodes"]) {
        let name = text(&node["name"]);
        let complaints = complaints(node);
        nodes += 1;
        well += usize::from(complaints.is_empty());
        rows.extend(node_rows(&name, node));
        details.extend(complaints.into_iter().map(|complaint| format!("{name}: {complaint}\n")));
    }
    let sum = match nodes {
        1 if well == 1 => "The node holds what its tables say.\n".to_owned(),
        _ if well == nodes => format!("All {nodes} nodes hold what their tables say.\n"),
        _ => format!("{} of {nodes} nodes differ or did not answer.\n", nodes - well),
    };
    format!("{}\n{}{sum}", table(&HEADER, &rows), details.concat())
}

fn node_rows(name: &str, node: &Value) -> Vec<Vec<String>> {
    let row = |cells: [String; 8]| [vec![name.to_owned()], cells.to_vec()].concat();
    let dash = || "-".to_owned();
    if node["error"].is_string() {
        let no_answer = "no answer".to_owned();
        return vec![row([dash(), dash(), dash(), dash(), dash(), dash(), dash(), no_answer])];
    }
    let (report, current) = (&node["report"], &node["current"]);
    let mut rows: Vec<Vec<String>> = elements(&report["tables"])
        .map(|table| {
            let wanted = table["network"].as_str().map_or(&Value::Null, |id| &current[id]["revision"]);
            let found = elements(&table["differences"]).count();
            let columns = ["services", "endpoints", "found", "repaired"].map(|key| text(&table[key]));
            let [services, endpoints, counted, repaired] = columns;
            let (in_force, wanted) = (text(&table["version"]["revision"]), text(wanted));
            row([
                text(&table["name"]),
                in_force,
                wanted,
                services,
                endpoints,
                counted,
                repaired,
                state(found),
            ])
        })
        .collect();
    // The node as a whole; its counts are those of all networks together and of what is beside them.
    let drift = &report["drift"];
    let (found, repaired) = (text(&drift["found"]), text(&drift["repaired"]));
    let beside = elements(&report["differences"]).count() + elements(&node["behind"]).count();
    rows.push(row(["(node)".to_owned(), dash(), dash(), dash(), dash(), found, repaired, state(beside)]));
    rows
}

fn state(differences: usize) -> String {
    match differences {
        0 => "ok".to_owned(),
        1 => "1 difference".to_owned(),
        several => format!("{several} differences"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, differences: &[&str], behind: &[&str]) -> Value {
        let table = json!({
            "network": "id1", "name": "mynet", "version": { "epoch": 1, "revision": 12 },
            "services": 2, "endpoints": 5, "found": 3, "repaired": 3, "differences": differences,
        });
        json!({
            "name": name, "error": null, "behind": behind,
            "current": { "id1": { "epoch": 1, "revision": 13 } },
            "report": { "tables": [table], "differences": [], "drift": { "found": 4, "repaired": 4 } },
        })
    }

    #[test]
    fn a_row_tells_what_is_in_force_and_what_should_be() {
        let text = render(&json!({ "nodes": [node("node1", &[], &[])] }));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["node1", "mynet", "12", "13", "2", "5", "3", "3", "ok"]);
        assert_eq!(lines[2], ["node1", "(node)", "-", "-", "-", "-", "4", "4", "ok"]);
        assert!(text.ends_with("\nThe node holds what its tables say.\n"), "{text}");
    }

    #[test]
    fn every_difference_and_every_silent_node_is_told() {
        let silent = json!({ "name": "node3", "error": "no answer within 20 seconds", "report": null });
        let one = node("node1", &["balancer: 10.0.1.2 is missing"], &[]);
        let two = node("node2", &[], &["network mynet: revision 12 is in force, 13 is current"]);
        let text = render(&json!({ "nodes": [one, two, silent] }));
        for told in [
            "node1: mynet: balancer: 10.0.1.2 is missing",
            "node2: network mynet: revision 12 is in force, 13 is current",
            "node3: no answer within 20 seconds",
            "3 of 3 nodes differ or did not answer.",
        ] {
            assert!(text.lines().any(|line| line == told), "{told}\n{text}");
        }
        let row = text.lines().find(|line| line.starts_with("node3")).unwrap();
        assert!(row.ends_with("no answer"), "{text}");
        let all = render(&json!({ "nodes": [node("a", &[], &[]), node("b", &[], &[])] }));
        assert!(all.ends_with("All 2 nodes hold what their tables say.\n"), "{all}");
    }
}

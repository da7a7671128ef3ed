//! `node tables`: what this node holds of each network, beside what kernel and resolver really hold.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::client::{Client, Error, Result};
use crate::output::{Format, indent, table};

#[derive(Debug, Clone, Subcommand)]
pub enum NodeCommand {
    /// Show the network tables in force on this node
    Tables(TablesArgs),
}

#[derive(Debug, Clone, Args)]
pub struct TablesArgs {
    /// Format of the output
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

pub(crate) async fn run(client: &Client, command: NodeCommand) -> Result<ExitCode> {
    let NodeCommand::Tables(args) = command;
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
    fn an_idle_node_says_so() {
        assert_eq!(render(&json!([])), "no network tables on this node\n");
    }
}

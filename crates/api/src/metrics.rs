//! The node's numbers in Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};
use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use shoal_agent::{Agent, Counted, Measures, ServiceCount};
use tokio::net::TcpListener;

use crate::{body, port};

const PATH: &str = "/metrics";
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Kernel and resolver are asked; Prometheus itself waits ten seconds.
const CONNECTION_MAX: Duration = Duration::from_secs(10);

/// Answers with the node's numbers until `shutdown` completes.
pub async fn serve_metrics(listener: TcpListener, agent: Agent, shutdown: impl Future<Output = ()>) {
    let answer = move |method: Method, path: String| answer(agent.clone(), method, path);
    port::serve(listener, CONNECTION_MAX, answer, shutdown).await;
}

async fn answer(agent: Agent, method: Method, path: String) -> Response<Body> {
    if path != PATH {
        return body::empty(StatusCode::NOT_FOUND);
    }
    if !matches!(method, Method::GET | Method::HEAD) {
        return body::empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    match agent.measures().await {
        Ok(measures) => {
            let mut response = Response::new(Body::from(render(&measures)));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(FORMAT));
            response
        }
        Err(error) => {
            tracing::warn!(%error, "cannot tell the node's numbers");
            body::empty(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

fn render(measures: &Measures) -> String {
    let mut page = Page::default();
    page.family("shoal_build_info", "gauge", "The version of the daemon.");
    page.sample("shoal_build_info", &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    services(&mut page, &measures.services);
    if let Some(names) = measures.names {
        let help = "Questions for names, by what became of them; failed ones are among the forwarded, too.";
        page.family("shoal_dns_questions_total", "counter", help);
        for (result, count) in [
            ("local", names.local),
            ("cached", names.cached),
            ("forwarded", names.forwarded),
            ("failed", names.failed),
            ("refused", names.refused),
            ("ignored", names.ignored),
        ] {
            page.sample("shoal_dns_questions_total", &[("result", &result)], count);
        }
    }
    tables(&mut page, measures);
    drift(&mut page, measures);
    page.family("shoal_tasks", "gauge", "Tasks of this node, by observed state.");
    for (state, count) in &measures.tasks {
        page.sample("shoal_tasks", &[("state", state)], *count);
    }
    page.0
}

/// The families of what is counted of virtual addresses.
fn services(page: &mut Page, services: &[ServiceCount]) {
    type Belongs = fn(&Counted) -> bool;
    let families: [(&str, &str, Belongs); 4] = [
        (
            "shoal_vip_connections_total",
            "New connections of this node's containers to a virtual address, by the backend they were led to.",
            |what| matches!(what, Counted::Connected(_)),
        ),
        (
            "shoal_vip_bypassing_total",
            "Flows to a virtual address that came past connect and were led to a backend.",
            |what| matches!(what, Counted::Bypassing(_)),
        ),
        (
            "shoal_vip_refused_total",
            "Connections and datagrams to a virtual address refused because no task took any.",
            |what| matches!(what, Counted::Rejected),
        ),
        ("shoal_vip_pings_total", "Echoes answered for a virtual address.", |what| {
            matches!(what, Counted::Pinged)
        }),
    ];
    for (name, help, belongs) in families {
        page.family(name, "counter", help);
        for one in services.iter().filter(|one| belongs(&one.what)) {
            let mut labels: Vec<(&str, &dyn Display)> =
                vec![("network", &one.network), ("service", &one.service), ("address", &one.address)];
            if let Counted::Connected(backend) | Counted::Bypassing(backend) = &one.what {
                labels.push(("backend", backend));
            }
            if let Some(endpoint) = &one.endpoint {
                labels.push(("task", endpoint));
            }
            page.sample(name, &labels, one.count);
        }
    }
}

fn tables(page: &mut Page, measures: &Measures) {
    type Part = fn(&shoal_agent::TableMeasure) -> u64;
    let families: [(&str, &str, Part); 3] = [
        ("shoal_table_revision", "The version of a network's table that is in force.", |table| {
            table.revision
        }),
        ("shoal_table_services", "Services in a network's table.", |table| table.services as u64),
        ("shoal_table_endpoints", "Tasks and containers in a network's table.", |table| {
            table.endpoints as u64
        }),
    ];
    for (name, help, part) in families {
        page.family(name, "gauge", help);
        for table in &measures.tables {
            page.sample(name, &[("network", &table.network)], part(table));
        }
    }
}

fn drift(page: &mut Page, measures: &Measures) {
    let drift = &measures.drift;
    page.family("shoal_drift_looks_total", "counter", "Looks at what kernel and resolver really hold.");
    page.sample("shoal_drift_looks_total", &[], drift.looks);
    page.family("shoal_drift_found_total", "counter", "Differences found between them and the tables.");
    for (kind, counts) in &drift.kinds {
        page.sample("shoal_drift_found_total", &[("kind", kind)], counts.found);
    }
    page.family("shoal_drift_repaired_total", "counter", "Differences put right.");
    for (kind, counts) in &drift.kinds {
        page.sample("shoal_drift_repaired_total", &[("kind", kind)], counts.repaired);
    }
    page.family("shoal_drift_open", "gauge", "Differences found and not put right yet.");
    page.sample("shoal_drift_open", &[], drift.open);
}

/// The text, family by family.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

/// Backslashes, quotes and line ends are all that a label's value must not have as they are.
fn escape(value: &dyn Display) -> String {
    value.to_string().replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use shoal_model::{NameCounts, TaskState};

    use super::*;

    #[test]
    fn every_number_is_a_line_under_its_family() {
        let backend = "10.0.1.5".parse().unwrap();
        let count = |what, endpoint: Option<&str>, count| ServiceCount {
            network: "mynet".to_owned(),
            service: "web".to_owned(),
            address: "10.0.1.2".parse().unwrap(),
            what,
            endpoint: endpoint.map(str::to_owned),
            count,
        };
        let measures = Measures {
            services: vec![
                count(Counted::Connected(backend), Some("t1"), 3),
                count(Counted::Rejected, None, 2),
            ],
            names: Some(NameCounts { local: 7, ..NameCounts::default() }),
            tasks: [(TaskState::Running, 4)].into(),
            ..Measures::default()
        };
        let text = render(&measures);
        for line in [
            "# TYPE shoal_vip_connections_total counter",
            "shoal_vip_connections_total{network=\"mynet\",service=\"web\",address=\"10.0.1.2\",\
             backend=\"10.0.1.5\",task=\"t1\"} 3",
            "shoal_vip_refused_total{network=\"mynet\",service=\"web\",address=\"10.0.1.2\"} 2",
            "shoal_dns_questions_total{result=\"local\"} 7",
            "shoal_tasks{state=\"running\"} 4",
            "shoal_drift_looks_total 0",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is not in\n{text}");
        }
        assert_eq!(escape(&"a\"b\\c\nd"), r#"a\"b\\c\nd"#);
    }
}

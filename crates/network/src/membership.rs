//! Who may send into which overlay: VXLAN frames are taken from the nodes of the network only.

use std::net::IpAddr;

use shoal_model::{NetworkTable, NodeId};

use crate::Result;
use crate::link::Tunnel;
use crate::tables::{Edit, Elements, Held, Set, Tables, difference};

const SETS: [Set; 3] = [Set::DataPorts, Set::Members, Set::Tunnels];

/// Lets the other nodes of the table in; with `prune` nobody else.
pub(crate) async fn apply(
    tables: &mut Tables,
    table: &NetworkTable,
    own: &NodeId,
    prune: bool,
) -> Result<()> {
    let wanted = elements(table, own);
    tables.edit(&SETS, |held| edits(held, &wanted, &tunnel_key(table), prune)).await.map(drop)
}

/// Who is let in is really somebody else, in words.
pub(crate) async fn differences(tables: &Tables, table: &NetworkTable, own: &NodeId) -> Result<Vec<String>> {
    let wanted = elements(table, own);
    tables.element_differences(&SETS, |held| edits(held, &wanted, &tunnel_key(table), true)).await
}

fn tunnel_key(table: &NetworkTable) -> String {
    key(table.config.data_path_port, table.config.vni)
}

/// The elements that let the other nodes of the table in.
fn elements(table: &NetworkTable, own: &NodeId) -> Held {
    let tunnel = tunnel_key(table);
    let members = table.nodes.iter().filter(|(id, _)| *id != own);
    let members = members.filter_map(|(_, node)| match node.data_path_address {
        IpAddr::V4(address) => Some((format!("{address} . {tunnel}"), String::new())),
        IpAddr::V6(_) => None,
    });
    Held::from([
        (Set::DataPorts, one(table.config.data_path_port.to_string())),
        (Set::Members, members.collect()),
        (Set::Tunnels, one(tunnel.clone())),
    ])
}

/// What must be edited for one tunnel. Those of other networks are left alone.
fn edits(held: &Held, wanted: &Held, tunnel: &str, prune: bool) -> Vec<Edit> {
    let of_tunnel = |key: &str| key.split_once(" . ").is_some_and(|(_, rest)| rest == tunnel);
    let edits = SETS.into_iter().flat_map(|set| {
        let stray = |key: &str, _: &str| prune && set == Set::Members && of_tunnel(key);
        difference(set, held, &wanted[&set], stray)
    });
    edits.collect()
}

/// Forgets every tunnel that is not one of these.
pub(crate) async fn retain(tables: &mut Tables, tunnels: &[Tunnel]) -> Result<()> {
    let kept: Vec<String> = tunnels.iter().map(|tunnel| key(tunnel.port, tunnel.vni)).collect();
    let ports: Vec<String> = tunnels.iter().map(|tunnel| tunnel.port.to_string()).collect();
    let nothing = Elements::new();
    tables
        .edit(&SETS, |held| {
            let mut edits: Vec<Edit> = Vec::new();
            // In this order a tunnel never has fewer members than it should.
            edits.extend(difference(Set::Tunnels, held, &nothing, |key, _| {
                !kept.iter().any(|kept| kept == key)
            }));
            edits.extend(difference(Set::Members, held, &nothing, |key, _| {
                key.split_once(" . ").is_none_or(|(_, tunnel)| !kept.iter().any(|kept| kept == tunnel))
            }));
            edits.extend(difference(Set::DataPorts, held, &nothing, |key, _| {
                !ports.iter().any(|port| port == key)
            }));
            edits
        })
        .await
        .map(drop)
}

fn key(port: u16, vni: u32) -> String {
    format!("{port} . {vni}")
}

fn one(key: String) -> Elements {
    Elements::from([(key, String::new())])
}

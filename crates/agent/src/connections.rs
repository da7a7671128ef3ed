//! The connections a container's servers still have open, from `/proc/<pid>/net/tcp` and `tcp6`.

use std::collections::BTreeSet;
use std::time::Duration;

/// How often open connections are counted while a task waits to be stopped.
const POLL: Duration = Duration::from_millis(25);

// Connection states of the kernel (include/net/tcp_states.h).
const ESTABLISHED: u8 = 1;
const SYN_RECV: u8 = 3;
const FIN_WAIT1: u8 = 4;
/// As UDP uses it.
const UNCONNECTED: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const NEW_SYN_RECV: u8 = 12;

/// Waits until no connection to a listening port of this process's network namespace is open, or the
/// bound has passed.
pub(crate) async fn drained(pid: u32, bound: Duration) {
    let empty = async {
        while read(pid).await.is_some_and(|tables| open(&tables) > 0) {
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(bound, empty).await.is_err() {
        tracing::debug!(pid, "connections are still open, stopping all the same");
    }
}

/// Whether a program in this process's network namespace takes connections or datagrams at a port; `None`
/// when the process is gone.
pub(crate) async fn listens(pid: u32, port: u16) -> Option<bool> {
    let tcp = read(pid).await?;
    let mut udp = tokio::fs::read_to_string(format!("/proc/{pid}/net/udp")).await.ok()?;
    udp += &tokio::fs::read_to_string(format!("/proc/{pid}/net/udp6")).await.unwrap_or_default();
    Some(is_open(&tcp, port, LISTEN) || is_open(&udp, port, UNCONNECTED))
}

fn is_open(tables: &str, port: u16, state: u8) -> bool {
    let mut sockets = tables.lines().filter_map(parse);
    sockets.any(|socket| socket.local_port == port && socket.state == state)
}

/// `None` when the process is gone.
async fn read(pid: u32) -> Option<String> {
    let mut both = tokio::fs::read_to_string(format!("/proc/{pid}/net/tcp")).await.ok()?;
    both += &tokio::fs::read_to_string(format!("/proc/{pid}/net/tcp6")).await.unwrap_or_default();
    Some(both)
}

/// Counts clients' connections to listening ports that can still carry data. Loopback ones are the
/// container's own business.
fn open(tables: &str) -> usize {
    let sockets: Vec<Socket> = tables.lines().filter_map(parse).collect();
    let listening: BTreeSet<u16> =
        sockets.iter().filter(|socket| socket.state == LISTEN).map(|socket| socket.local_port).collect();
    let carries =
        |state| matches!(state, ESTABLISHED | SYN_RECV | FIN_WAIT1 | CLOSE_WAIT | LAST_ACK | NEW_SYN_RECV);
    sockets
        .iter()
        .filter(|socket| carries(socket.state) && listening.contains(&socket.local_port))
        .filter(|socket| !socket.from_loopback)
        .count()
}

struct Socket {
    local_port: u16,
    from_loopback: bool,
    state: u8,
}

/// `  0: 0500000A:0050 0600000A:9C40 01 …`: slot, local and remote address, state. Addresses are
/// 32-bit words in the machine's byte order.
fn parse(line: &str) -> Option<Socket> {
    let mut words = line.split_whitespace().skip(1);
    let (_, local_port) = words.next()?.split_once(':')?;
    let (remote, _) = words.next()?.split_once(':')?;
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    let local_port = u16::from_str_radix(local_port, 16).ok()?;
    Some(Socket { local_port, from_loopback: is_loopback(remote), state })
}

fn is_loopback(address: &str) -> bool {
    let last_word = address.get(address.len().saturating_sub(8)..).unwrap_or_default();
    let Ok(word) = u32::from_str_radix(last_word, 16) else { return false };
    let octets = word.to_ne_bytes();
    match address.len() {
        8 => octets[0] == 127,
        32 => {
            let mapped = address.starts_with("0000000000000000") && address.get(16..24) != Some("00000000");
            let v6_loopback = address.starts_with("000000000000000000000000") && octets == [0, 0, 0, 1];
            (mapped && octets[0] == 127) || v6_loopback
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_open_connections_to_listening_ports_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
            0: 00000000:0050 00000000:0000 0A 00000000:00000000\n\
            1: 0500000A:0050 0600000A:9C40 01 00000000:00000000\n\
            2: 0500000A:0050 0600000A:9C41 06 00000000:00000000\n\
            3: 0500000A:9999 0700000A:0050 01 00000000:00000000\n\
            4: 0500000A:0050 0100007F:9C42 01 00000000:00000000\n\
            5: 0000000000000000FFFF00000500000A:0050 0000000000000000FFFF00000600000A:9C43 08 0\n\
            6: 00000000000000000000000001000000:0050 00000000000000000000000001000000:9C44 01 0\n";
        assert_eq!(open(table), 2, "the established one and the half-closed mapped one");
        assert_eq!(open(""), 0);
        assert_eq!(open("rubbish"), 0);
    }

    #[tokio::test]
    async fn the_bound_ends_the_wait_and_loopback_does_not_begin_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"x").unwrap();
        let begun = std::time::Instant::now();
        drained(std::process::id(), Duration::from_secs(20)).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "its own loopback connections do not count");
        drained(u32::MAX, Duration::from_secs(20)).await;
    }
}

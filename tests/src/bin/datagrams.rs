//! Answers each datagram with itself and the name of the host: `datagrams PORT`. Tests run it in containers, so
//! that it ends with its task.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, UdpSocket};
use std::process::ExitCode;

fn main() -> ExitCode {
    let port = std::env::args().nth(1).and_then(|word| word.parse::<u16>().ok());
    let Some(port) = port else {
        eprintln!("usage: datagrams PORT");
        return ExitCode::from(2);
    };
    // Not bound to an address: the kernel chooses the one that answers come from.
    let socket = match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("datagrams: port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let host = std::fs::read("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let answer = [&buffer[..length], host.trim_ascii()].concat();
        // Whoever asked may be gone.
        let _ = socket.send_to(&answer, from);
    }
    ExitCode::FAILURE
}

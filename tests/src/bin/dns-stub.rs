//! A name server that knows the names on its command line: `dns-stub ADDRESS:PORT NAME=ADDRESS…`.
//! The quickstart uses it as the world outside its node.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::process::ExitCode;

use shoal_e2e::dns::{Stub, bind, parse_entry};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let listen = words.first().and_then(|word| word.parse::<SocketAddr>().ok());
    let names: Option<Vec<_>> = words.iter().skip(1).map(|word| parse_entry(word)).collect();
    let (Some(listen), Some(names)) = (listen, names) else {
        eprintln!("usage: dns-stub ADDRESS:PORT NAME=ADDRESS...");
        return ExitCode::from(2);
    };
    let (udp, tcp) = match bind(listen) {
        Ok(sockets) => sockets,
        Err(error) => {
            eprintln!("dns-stub: {listen}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let stub = Stub { names };
    let over_tcp = stub.clone();
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let stub = over_tcp.clone();
            // A client that goes away in the middle ends its own thread only.
            std::thread::spawn(move || stub.serve_tcp(stream, |_| ()));
        }
    });
    stub.serve_udp(&udp, |_| ());
    ExitCode::FAILURE
}

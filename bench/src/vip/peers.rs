//! Both ends of the connections: programs of their own, the same for every way.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Where the server listens.
pub(crate) const PORT: u16 = 80;
/// As many connections at a time as the server has threads.
const SERVING: usize = 16;

/// What a client does over and over until its time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Work {
    /// Several connections at a time, as many as can be: a byte there, a byte back, the server closes.
    Connections,
    /// The same with one connection at a time: how long it takes where nothing has to wait for a processor.
    Latency,
    /// Streams to the client.
    Bytes,
}

impl Work {
    pub(crate) const ALL: [Self; 3] = [Self::Bytes, Self::Connections, Self::Latency];

    /// As the command line has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Latency => "latency",
            Self::Bytes => "bytes",
        }
    }

    fn at_a_time(self) -> usize {
        match self {
            Self::Connections => 8,
            Self::Latency => 1,
            Self::Bytes => 4,
        }
    }

    /// The first byte of a connection.
    fn wish(self) -> u8 {
        if self == Self::Bytes { STREAM } else { BYTE }
    }
}

const BYTE: u8 = b'1';
const STREAM: u8 = b'*';
const PIECE: usize = 256 << 10;

/// Serves until the process ends.
pub(crate) fn serve() {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..SERVING {
            scope.spawn(|| listener.incoming().flatten().for_each(|stream| drop(serve_one(stream))));
        }
    });
}

fn serve_one(mut stream: TcpStream) -> std::io::Result<()> {
    let mut wish = [0];
    stream.read_exact(&mut wish)?;
    if wish != [STREAM] {
        return stream.write_all(&[BYTE]);
    }
    let piece = vec![0; PIECE];
    loop {
        stream.write_all(&piece)?;
    }
}

/// One thread's part of what a client has done.
#[derive(Debug, Default)]
struct Done {
    /// Connections, or bytes.
    count: u64,
    errors: u64,
    /// Until there was a connection, and until the first byte came on it.
    connected: Vec<Duration>,
    answered: Vec<Duration>,
}

/// Asks the servers whose addresses are in a file, each as often as the others; prints what it has done.
pub(crate) fn ask(work: Work, targets: &Path, length: Duration) {
    let text = std::fs::read_to_string(targets).unwrap();
    let targets: Vec<SocketAddr> = text.lines().map(|line| line.parse().unwrap()).collect();
    let started = Instant::now();
    let parts: Vec<Done> = std::thread::scope(|scope| {
        let ask = |number| {
            let targets = &targets;
            scope.spawn(move || ask_in_turn(work, targets, number, started + length))
        };
        let threads: Vec<_> = (0..work.at_a_time()).map(ask).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    println!("{}", told(parts, started.elapsed()));
}

fn ask_in_turn(work: Work, targets: &[SocketAddr], number: usize, end: Instant) -> Done {
    let (mut done, mut buffer) = (Done::default(), vec![0; PIECE]);
    // Far from each other, so that one tells nothing of the next.
    let mut order =
        (0..).map(|turn: usize| (turn * STRIDE + number * targets.len() / SERVING) % targets.len());
    while Instant::now() < end {
        let target = targets[order.next().unwrap_or_default()];
        if let Err(error) = ask_one(work, target, end, &mut buffer, &mut done) {
            if done.errors == 0 {
                eprintln!("{target}: {error}");
            }
            done.errors += 1;
        }
    }
    done
}

/// A prime number: it comes by every target of however many.
const STRIDE: usize = 7919;

fn ask_one(
    work: Work,
    target: SocketAddr,
    end: Instant,
    buffer: &mut [u8],
    done: &mut Done,
) -> std::io::Result<()> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(target)?;
    let connected = began.elapsed();
    stream.write_all(&[work.wish()])?;
    let first = stream.read(buffer)?;
    if first == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    if work == Work::Bytes {
        done.count += first as u64;
        while Instant::now() < end {
            done.count += stream.read(buffer)? as u64;
        }
        return Ok(());
    }
    done.answered.push(began.elapsed());
    done.connected.push(connected);
    done.count += 1;
    while stream.read(buffer)? > 0 {}
    Ok(())
}

fn told(parts: Vec<Done>, lasted: Duration) -> Value {
    let mut all = Done::default();
    for part in parts {
        all.count += part.count;
        all.errors += part.errors;
        all.connected.extend(part.connected);
        all.answered.extend(part.answered);
    }
    let (connected, answered) = (percentiles(all.connected), percentiles(all.answered));
    json!({
        "per_second": all.count as f64 / lasted.as_secs_f64(),
        "count": all.count,
        "errors": all.errors,
        "connect_us": connected,
        "answer_us": answered,
    })
}

/// The 50th and the 99th, in microseconds: figures that were measured.
fn percentiles(mut times: Vec<Duration>) -> Option<[f64; 2]> {
    times.sort_unstable();
    let last = times.len().checked_sub(1)?;
    Some([0.5, 0.99].map(|share| times[(share * last as f64).round() as usize].as_secs_f64() * 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_threads_did_is_told_together() {
        let part = |count| Done {
            count,
            errors: 1,
            connected: (1..=count).map(Duration::from_micros).collect(),
            answered: Vec::new(),
        };
        let told = told(vec![part(100), part(1)], Duration::from_secs(2));
        assert_eq!((&told["per_second"], &told["errors"]), (&json!(50.5), &json!(2)));
        assert_eq!((&told["connect_us"], &told["answer_us"]), (&json!([50.0, 99.0]), &Value::Null));
    }
}

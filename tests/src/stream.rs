//! A stream of datagrams from one socket, each of which wants an answer.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Netns;

/// Between two datagrams.
pub const INTERVAL: Duration = Duration::from_millis(10);
/// An answer that is not there by then is lost.
const ANSWERED: Duration = Duration::from_millis(300);

/// By a datagram's number: who answered it.
type Answers = Arc<Mutex<Vec<Option<String>>>>;

/// Sends numbered datagrams at a fixed rate, until stopped. The server answers each with itself and its name, as
/// the program `datagrams` does.
pub struct Stream {
    pub to: SocketAddr,
    pub connected: bool,
    answers: Answers,
    stop: Arc<AtomicBool>,
    worker: JoinHandle<()>,
}

impl Stream {
    pub fn start(netns: &Netns, to: SocketAddr, connected: bool) -> Self {
        let (answers, stop) = (Answers::default(), Arc::<AtomicBool>::default());
        let worker = netns.spawn({
            let (answers, stop) = (answers.clone(), stop.clone());
            move || run(to, connected, &answers, &stop)
        });
        Self { to, connected, answers, stop, worker }
    }

    /// How many datagrams have had their time to be answered.
    pub fn settled(&self) -> usize {
        let sent = self.answers.lock().unwrap().len();
        sent.saturating_sub((ANSWERED.as_millis() / INTERVAL.as_millis()) as usize)
    }

    /// Who answered the last `count` datagrams: `Err` with the share of it, where one was not.
    pub fn last(&self, count: usize) -> Result<Vec<String>, String> {
        let end = self.settled();
        let answers = self.answers.lock().unwrap();
        let last: Vec<String> = answers[end.saturating_sub(count)..end].iter().flatten().cloned().collect();
        if last.len() == count {
            Ok(last)
        } else {
            Err(format!("{self}: {} of {count} answered", last.len()))
        }
    }

    /// How long nobody answered, in all, since that datagram.
    pub fn lost_since(&self, number: usize) -> Duration {
        let end = self.settled();
        let answers = self.answers.lock().unwrap();
        let unanswered = answers[number.min(end)..end].iter().filter(|answer| answer.is_none()).count();
        INTERVAL * unanswered as u32
    }

    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.join().unwrap();
    }
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} socket to {}", if self.connected { "connected" } else { "unconnected" }, self.to)
    }
}

fn run(to: SocketAddr, connected: bool, answers: &Answers, stop: &AtomicBool) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    if connected {
        socket.connect(to).unwrap();
    }
    let start = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let number = {
            let mut answers = answers.lock().unwrap();
            answers.push(None);
            answers.len() - 1
        };
        let datagram = (number as u32).to_be_bytes();
        // A connected socket is told here that nobody listened to the datagram before.
        let _ = if connected { socket.send(&datagram) } else { socket.send_to(&datagram, to) };
        let next = start + INTERVAL * (number as u32 + 1);
        receive_until(next, &socket, to, answers);
    }
}

fn receive_until(end: Instant, socket: &UdpSocket, to: SocketAddr, answers: &Answers) {
    let mut buffer = [0; 256];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        socket.set_read_timeout(Some(left)).unwrap();
        match socket.recv_from(&mut buffer) {
            // An answer that was under way when the node forgot its flow may come from another port of it. From
            // elsewhere nothing may come.
            Ok((_, from)) if from != to => {
                assert_eq!(from.ip(), to.ip(), "the answer comes from whom was asked")
            }
            Ok((length, _)) => {
                let (number, name) = buffer[..length].split_first_chunk().unwrap();
                let name = String::from_utf8_lossy(name).into_owned();
                answers.lock().unwrap()[u32::from_be_bytes(*number) as usize] = Some(name);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => {}
        }
    }
}

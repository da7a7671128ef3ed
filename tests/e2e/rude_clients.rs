//! Clients of the API that send too much, too slowly or nonsense: each gets its answer, and nobody else waits.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use shoal_e2e::{Node, PATIENCE, process, wait_until};

const CREATE: &str = "POST /v1.41/services/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
/// What a daemon may hold on to for clients that do as they like.
const MEMORY_MAX: usize = 64 << 20;
/// What a polite client may wait meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(2);

fn connect(node: &Node) -> UnixStream {
    let stream = UnixStream::connect(node.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// The status and the message of the next answer.
fn answer(mut stream: UnixStream) -> (u16, String) {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    // To the end of a short answer, whether the connection is closed or not.
    let body = loop {
        match stream.read(&mut piece) {
            Ok(0) => break String::from_utf8_lossy(&bytes).into_owned(),
            Ok(length) => bytes.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset && !bytes.is_empty() => {}
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)),
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if text.contains("\r\n\r\n") && text.ends_with('\n') && !text.ends_with("\r\n\r\n") {
            break text;
        }
    };
    let status = body.split(' ').nth(1).and_then(|status| status.parse().ok());
    let json: Value =
        serde_json::from_str(body.split("\r\n\r\n").nth(1).unwrap_or_default()).unwrap_or_default();
    (status.unwrap_or_else(|| panic!("{body:?}")), json["message"].as_str().unwrap_or_default().to_owned())
}

fn ask(node: &Node, request: &[u8]) -> (u16, String) {
    let mut stream = connect(node);
    stream.write_all(request).unwrap();
    answer(stream)
}

/// Sends pieces until the other side has had enough, or so many bytes are gone.
fn pour(stream: &mut UnixStream, piece: &[u8], most: usize) -> usize {
    let mut sent = 0;
    while sent < most {
        match stream.write(piece) {
            Ok(0) | Err(_) => break,
            Ok(length) => sent += length,
        }
    }
    sent
}

#[track_caller]
fn answers_soon(node: &Node) {
    let began = Instant::now();
    let (status, _) = ask(node, b"GET /v1.41/nosuch HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(status, 404);
    node.docker(&["node", "ls"]).ok();
    assert!(began.elapsed() < WAIT_MAX, "{:?}", began.elapsed());
}

#[test]
fn a_body_without_end_is_refused_at_once_and_costs_no_memory() {
    let node = Node::cluster();
    let before = process::memory(node.daemon_pid());
    let large = 100 << 20;
    for head in [format!("Content-Length: {large}\r\n\r\n"), "Transfer-Encoding: chunked\r\n\r\n".to_owned()]
    {
        let began = Instant::now();
        let mut stream = connect(&node);
        stream.write_all(format!("{CREATE}{head}").as_bytes()).unwrap();
        // As chunks: one of 64 KiB each time.
        let filling = vec![b' '; 1 << 16];
        let chunk = [b"10000\r\n", &filling[..], b"\r\n"].concat();
        let piece = if head.contains("chunked") { &chunk } else { &filling };
        let sent = pour(&mut stream, piece, large);
        assert!(sent < large / 2, "{sent} bytes were taken");
        let (status, message) = answer(stream);
        assert_eq!(status, 413, "{message}");
        assert!(message.contains("larger than"), "{message}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        answers_soon(&node);
    }
    let grown = process::memory(node.daemon_pid()).saturating_sub(before);
    assert!(grown < MEMORY_MAX, "{} MiB more", grown >> 20);
    node.finish();
}

#[test]
fn nonsense_gets_a_clear_answer() {
    let node = Node::cluster();
    let with = |body: &str| format!("{CREATE}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
    let nested = |open: &str, count: usize| format!("{{\"Labels\":{}", open.repeat(count));
    let spec = |name: &str| {
        format!("{{\"Name\":{name},\"TaskTemplate\":{{\"ContainerSpec\":{{\"Image\":\"busybox\"}}}}}}")
    };
    let bodies = [
        "{".to_owned(),
        "{\"Name\":".to_owned(),
        "\u{0}".to_owned(),
        "{\"Name\":\"a\"}{\"Name\":\"b\"}".to_owned(),
        "{\"Name\":[1,2]}".to_owned(),
        "{\"Labels\":{\"a\":7}}".to_owned(),
        "{\"TaskTemplate\":\"none\"}".to_owned(),
        "{\"Mode\":{\"Replicated\":{\"Replicas\":1e99}}}".to_owned(),
        nested("[", 100_000),
        nested("{\"a\":", 100_000),
        spec("\"-\""),
        spec("\"a b\""),
        spec("\"../../etc/passwd\""),
        spec("\"\\ud800\""),
        spec(&format!("\"{}\"", "x".repeat(1000))),
    ];
    for body in bodies {
        let (status, message) = ask(&node, &with(&body));
        let shown = &body[..body.len().min(80)];
        assert_eq!(status, 400, "{shown}: {message}");
        assert!(!message.is_empty() && message.len() < 1000, "{shown}: {message}");
    }
    let mut broken = with("{\"Name\":\"xx\"}");
    let place = broken.len() - 4;
    broken[place..place + 2].copy_from_slice(&[0xff, 0xfe]);
    assert_eq!(ask(&node, &broken).0, 400);

    let get = |path: &[u8]| [b"GET ", path, b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"].concat();
    let long = [b"/v1.41/services/", &b"x".repeat(20_000)[..]].concat();
    // Paths that are no UTF-8, once they are decoded or at once, and others that nothing is at.
    let paths: [(&[u8], &[u16]); 8] = [
        (b"/v1.41/services/%ff%fe", &[400, 404]),
        (b"/v1.41/containers/%80/json", &[400, 404]),
        (b"/v1.41/services/\xff\xfe", &[400, 404]),
        (b"/v1.41/services?filters=%ff", &[400]),
        (b"/v1.41/services?filters={", &[400]),
        (b"/v1.41/containers/..%2f..%2fetc/json", &[400, 404]),
        (b"/v99.99/services", &[400]),
        (&long, &[404, 414]),
    ];
    for (path, statuses) in paths {
        let (status, message) = ask(&node, &get(path));
        let shown = String::from_utf8_lossy(&path[..path.len().min(80)]);
        assert!(statuses.contains(&status), "{shown}: {status} {message}");
    }
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"\r\n\r\n\r\nX Y Z\r\n\r\n",
    ] {
        let (status, _) = ask(&node, garbage);
        assert_eq!(status, 400, "{garbage:?}");
    }
    let many: String = (0..5000).map(|number| format!("X-{number}: {}\r\n", "y".repeat(100))).collect();
    let mut stream = connect(&node);
    let _ = stream.write_all(format!("GET /_ping HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes());
    assert_eq!(answer(stream).0, 431);
    answers_soon(&node);
    assert_eq!(node.docker(&["service", "ls", "-q"]).ok(), "");
    node.finish();
}

#[test]
fn slow_clients_hold_nobody_up() {
    let node = Node::cluster();
    let before = process::memory(node.daemon_pid());
    let dripping: Vec<UnixStream> = (0..200).map(|_| connect(&node)).collect();
    let events: Vec<UnixStream> = (0..50)
        .map(|_| {
            let mut stream = connect(&node);
            stream.write_all(b"GET /v1.41/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            stream
        })
        .collect();
    // Half a body, and then nothing.
    let halves: Vec<UnixStream> = (0..50)
        .map(|_| {
            let mut stream = connect(&node);
            stream.write_all(format!("{CREATE}Content-Length: 100\r\n\r\n{{").as_bytes()).unwrap();
            stream
        })
        .collect();
    let head = b"GET /v1.41/services HTTP/1.1\r\nHost: x\r\n";
    for (number, byte) in head.iter().enumerate() {
        for mut stream in &dripping {
            stream.write_all(&[*byte]).unwrap();
        }
        // Something to tell to those who follow events and do not read.
        let name = format!("volume-{number}");
        for _ in 0..25 {
            node.http("POST", "/v1.41/volumes/create", &format!("{{\"Name\":\"{name}\"}}")).unwrap();
            node.http("DELETE", &format!("/v1.41/volumes/{name}"), "").unwrap();
        }
        answers_soon(&node);
    }
    let grown = process::memory(node.daemon_pid()).saturating_sub(before);
    assert!(grown < MEMORY_MAX, "{} MiB more", grown >> 20);
    // The slow ones are served, too, once they are done.
    for mut stream in dripping {
        stream.write_all(b"Connection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }
    drop((events, halves));
    let open = || std::fs::read_dir(format!("/proc/{}/fd", node.daemon_pid())).unwrap().count();
    wait_until(PATIENCE, "their connections are gone", || {
        let open = open();
        if open < 200 { Ok(()) } else { Err(open.to_string()) }
    });
    node.finish();
}

//! What no name server can be quicker than: one that looks at nothing, and sends every question back as its answer.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

/// Serves until the process ends.
pub(crate) fn serve(port: u16) {
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            std::thread::spawn(move || drop(serve_stream(stream)));
        }
    });
    let mut packet = [0; 4096];
    loop {
        if let Ok((length, from)) = udp.recv_from(&mut packet) {
            answer(&mut packet[..length]);
            // One that is lost is asked again.
            let _ = udp.send_to(&packet[..length], from);
        }
    }
}

/// All that has come is sent back at once.
fn serve_stream(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut buffer, mut filled) = (vec![0; 64 << 10], 0);
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let whole = answer_frames(&mut buffer[..filled]);
        stream.write_all(&buffer[..whole])?;
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

/// Answers every whole frame (RFC 1035 §4.2.2); where the last one ends.
fn answer_frames(buffer: &mut [u8]) -> usize {
    let mut at = 0;
    while let Some(&[high, low]) = buffer.get(at..at + 2) {
        let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
        let Some(frame) = buffer.get_mut(at + 2..end) else { break };
        answer(frame);
        at = end;
    }
    at
}

/// Sets the bit that makes a question an answer (QR, RFC 1035 §4.1.1).
fn answer(packet: &mut [u8]) {
    if let Some(flags) = packet.get_mut(2) {
        *flags |= 0x80;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_frames_are_answered_and_the_rest_waits() {
        let mut buffer = [0, 3, 7, 7, 1, 0, 3, 8, 8, 1, 0, 3, 9];
        assert_eq!(answer_frames(&mut buffer), 10);
        assert_eq!(buffer, [0, 3, 7, 7, 0x81, 0, 3, 8, 8, 0x81, 0, 3, 9]);
    }
}

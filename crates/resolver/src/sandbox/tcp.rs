//! Queries over TCP (RFC 7766): many on one connection, answered as they are ready.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use super::{Handled, Serving};
use crate::answer::Transport;

/// Connections of one sandbox at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// A connection on which nothing happens for this long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// Answers wait for each other up to this many bytes.
const TOGETHER_BYTES: usize = 16 << 10;
/// After a failure to accept (no descriptors left), before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Writer = Arc<Mutex<OwnedWriteHalf>>;

pub(super) async fn serve(listener: TcpListener, serving: Arc<Serving>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped with this loop, so that connections end with their sandbox.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok(place) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let serving = serving.clone();
                connections.spawn(async move {
                    let _place = place;
                    if let Err(error) = serve_connection(stream, serving).await {
                        tracing::trace!(%error, "a connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve_connection(stream: TcpStream, serving: Arc<Serving>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let (mut reader, writer) = (BufReader::new(reader), Writer::new(Mutex::new(writer)));
    let mut asked = tokio::task::JoinSet::new();
    let mut random = SmallRng::from_os_rng();
    let (mut packet, mut reply, mut frames) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        // Questions that have come together are answered together.
        if !has_frame(reader.buffer()) || frames.len() > TOGETHER_BYTES {
            write(&writer, &frames).await?;
            frames.clear();
        }
        let received = timeout(IDLE, read_frame(&mut reader, &mut packet)).await;
        while asked.try_join_next().is_some() {}
        match received {
            Ok(Ok(())) => match serving.handle(&packet, Transport::Tcp, &mut random, &mut reply) {
                Handled::Reply => push_frame(&mut frames, &reply)?,
                Handled::Ask(question) => {
                    let writer = writer.clone();
                    asked.spawn(async move {
                        let mut frame = Vec::new();
                        push_frame(&mut frame, &question.ask().await)?;
                        write(&writer, &frame).await
                    });
                }
                Handled::Nothing => {}
            },
            // The client has asked all it wanted; it may still be waiting for answers.
            Ok(Err(_)) | Err(_) => {
                while asked.join_next().await.is_some() {}
                return Ok(());
            }
        }
    }
}

/// The next frame is there as a whole.
fn has_frame(bytes: &[u8]) -> bool {
    match bytes {
        [high, low, rest @ ..] => rest.len() >= usize::from(u16::from_be_bytes([*high, *low])),
        _ => false,
    }
}

async fn read_frame(reader: &mut (impl AsyncRead + Unpin), packet: &mut Vec<u8>) -> io::Result<()> {
    let length = reader.read_u16().await?;
    packet.resize(length.into(), 0);
    reader.read_exact(packet).await?;
    Ok(())
}

fn push_frame(frames: &mut Vec<u8>, reply: &[u8]) -> io::Result<()> {
    let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
    frames.extend_from_slice(&length.to_be_bytes());
    frames.extend_from_slice(reply);
    Ok(())
}

async fn write(writer: &Writer, frames: &[u8]) -> io::Result<()> {
    if frames.is_empty() {
        return Ok(());
    }
    let mut writer = writer.lock().await;
    timeout(IDLE, writer.write_all(frames)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_is_there_when_its_last_byte_is() {
        for (bytes, whole) in
            [(&[][..], false), (&[0], false), (&[0, 0], true), (&[0, 2, 7], false), (&[0, 2, 7, 7], true)]
        {
            assert_eq!(has_frame(bytes), whole, "{bytes:?}");
        }
        let mut frames = Vec::new();
        push_frame(&mut frames, &[7, 7]).unwrap();
        assert_eq!(frames, [0, 2, 7, 7]);
    }

    proptest! {
        /// However the bytes come and whatever they say of lengths.
        #[test]
        fn frames_are_cut_where_their_lengths_say(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6),
            rest in proptest::collection::vec(any::<u8>(), 0..80),
            piece in 1..50usize,
        ) {
            let mut bytes = Vec::new();
            frames.iter().for_each(|frame| push_frame(&mut bytes, frame).unwrap());
            bytes.extend_from_slice(&rest);
            // Naively.
            let (mut wanted, mut left) = (Vec::new(), &bytes[..]);
            while let Some((length, behind)) = left.split_first_chunk() {
                let Some((frame, next)) = behind.split_at_checked(u16::from_be_bytes(*length).into()) else { break };
                wanted.push(frame.to_vec());
                left = next;
            }
            let mut pieces = in_pieces(&bytes, piece);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let found = runtime.block_on(async {
                let (mut found, mut packet) = (Vec::new(), Vec::new());
                while read_frame(&mut pieces, &mut packet).await.is_ok() {
                    found.push(packet.clone());
                }
                found
            });
            prop_assert_eq!(found, wanted);
        }
    }

    /// A reader that has no more than so many bytes at a time.
    fn in_pieces(bytes: &[u8], piece: usize) -> impl AsyncRead + Unpin {
        BufReader::with_capacity(piece, std::io::Cursor::new(bytes.to_vec()))
    }
}

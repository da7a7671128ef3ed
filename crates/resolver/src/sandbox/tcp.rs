//! Queries over TCP (RFC 7766): many on one connection, answered as they are ready.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use super::{Handled, SCRATCH, Serving};
use crate::answer::Transport;

/// Connections of one sandbox at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// A connection on which nothing happens for this long is closed.
const IDLE: Duration = Duration::from_secs(10);
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
    let (mut reader, writer) = stream.into_split();
    let writer: Writer = Arc::new(Mutex::new(writer));
    let mut asked = tokio::task::JoinSet::new();
    loop {
        let received = timeout(IDLE, read_frame(&mut reader)).await;
        while asked.try_join_next().is_some() {}
        match received {
            Ok(Ok(packet)) => {
                let mut reply = Vec::new();
                let handled = SCRATCH.with_borrow_mut(|scratch| {
                    serving.handle(&packet, Transport::Tcp, &mut scratch.random, &mut reply)
                });
                match handled {
                    Handled::Reply => write_frame(&writer, &reply).await?,
                    Handled::Ask(question) => {
                        let writer = writer.clone();
                        asked.spawn(async move { write_frame(&writer, &question.ask().await).await });
                    }
                    Handled::Nothing => {}
                }
            }
            // The client has asked all it wanted; it may still be waiting for answers.
            Ok(Err(_)) | Err(_) => {
                while asked.join_next().await.is_some() {}
                return Ok(());
            }
        }
    }
}

async fn read_frame(reader: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let length = reader.read_u16().await?;
    let mut packet = vec![0; length.into()];
    reader.read_exact(&mut packet).await?;
    Ok(packet)
}

async fn write_frame(writer: &Writer, reply: &[u8]) -> io::Result<()> {
    let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(reply.len() + 2);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(reply);
    let mut writer = writer.lock().await;
    timeout(IDLE, writer.write_all(&frame)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

//! The daemon's end of the feed.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use shoal_model::trace::Lookup;
use shoal_model::{NameCounts, NetworkId};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::{DnsPorts, FEED_VERSION, Hello, Reply, Request, SandboxView, State};
use crate::{Error, Names, Result};

/// A resolver that takes longer than this to answer a request is treated as gone.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the resolver process.
///
/// After an [`Error::Feed`] the connection is of no further use: connect anew and feed everything
/// again, the resolver may be a new process.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    hello: Hello,
    /// `None` once it failed: a reply that comes late must not be taken for the next one.
    stream: Mutex<Option<BufReader<UnixStream>>>,
}

impl Client {
    /// Connects and agrees on the feed's version.
    pub async fn connect(path: &Path) -> Result<Self> {
        let feed = |source| Error::Feed { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).await.map_err(feed)?;
        let mut stream = BufReader::new(stream);
        let request = Request::Hello { feed_version: FEED_VERSION };
        let hello = match exchange(&mut stream, &request).await.map_err(feed)? {
            Reply::Hello(hello) => hello,
            Reply::Error(message) => return Err(Error::Refused(message)),
            _ => return Err(feed(unexpected())),
        };
        if hello.feed_version != FEED_VERSION {
            return Err(Error::FeedVersion { ours: FEED_VERSION, theirs: hello.feed_version });
        }
        Ok(Self { path: path.to_owned(), hello, stream: Mutex::new(Some(stream)) })
    }

    /// Who answers.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Serves a sandbox, or changes how it is served. Its ports stay the same while its namespace
    /// does, also over a restart of the resolver as far as they are free.
    pub async fn set_sandbox(&self, view: SandboxView) -> Result<DnsPorts> {
        match self.call(&Request::SetSandbox(view)).await? {
            Reply::Ports(ports) => Ok(ports),
            _ => Err(self.broken(unexpected())),
        }
    }

    /// Closes a sandbox's sockets; no error when it is not served.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.done(&Request::RemoveSandbox(id.to_owned())).await
    }

    /// Replaces the names of one network.
    pub async fn set_names(&self, names: Names) -> Result<()> {
        self.done(&Request::SetNames(names)).await
    }

    /// Forgets a network; no error when it is not known.
    pub async fn remove_names(&self, network: &NetworkId) -> Result<()> {
        self.done(&Request::RemoveNames(network.clone())).await
    }

    /// Removes every sandbox and network that is not to be kept.
    pub async fn prune(&self, sandboxes: &HashSet<String>, networks: &HashSet<NetworkId>) -> Result<()> {
        self.done(&Request::Prune {
            sandboxes: sandboxes.iter().cloned().collect(),
            networks: networks.iter().cloned().collect(),
        })
        .await
    }

    /// What is being served.
    pub async fn read_back(&self) -> Result<State> {
        match self.call(&Request::ReadBack).await? {
            Reply::State(state) => Ok(state),
            _ => Err(self.broken(unexpected())),
        }
    }

    /// The names of one network as they are being served; `None` when the network is not known.
    pub async fn read_names(&self, network: &NetworkId) -> Result<Option<Names>> {
        match self.call(&Request::ReadNames(network.clone())).await? {
            Reply::Names(names) => Ok(names),
            _ => Err(self.broken(unexpected())),
        }
    }

    /// What became of all questions so far.
    pub async fn counts(&self) -> Result<NameCounts> {
        match self.call(&Request::Counts).await? {
            Reply::Counts(counts) => Ok(counts),
            _ => Err(self.broken(unexpected())),
        }
    }

    /// What a sandbox would be answered for a name, and why; `None` when it is not served. Nobody else is
    /// asked for it.
    pub async fn trace(&self, sandbox: &str, name: &str) -> Result<Option<Lookup>> {
        let request = Request::Trace { sandbox: sandbox.to_owned(), name: name.to_owned() };
        match self.call(&request).await? {
            Reply::Trace(lookup) => Ok(lookup),
            _ => Err(self.broken(unexpected())),
        }
    }

    /// Ends the process to make room for a successor (another version), which will find its state and
    /// open the same ports.
    pub async fn retire(&self) -> Result<()> {
        self.done(&Request::Retire).await
    }

    /// Ends the process and forgets its state on disk.
    pub async fn stop(&self) -> Result<()> {
        self.done(&Request::Stop).await
    }

    async fn done(&self, request: &Request) -> Result<()> {
        match self.call(request).await? {
            Reply::Done => Ok(()),
            _ => Err(self.broken(unexpected())),
        }
    }

    async fn call(&self, request: &Request) -> Result<Reply> {
        let mut slot = self.stream.lock().await;
        // Taken out while in use, so that a caller that gives up half-way leaves no half exchange.
        let Some(mut stream) = slot.take() else {
            return Err(self.broken(ErrorKind::NotConnected.into()));
        };
        match exchange(&mut stream, request).await {
            Ok(reply) => {
                *slot = Some(stream);
                match reply {
                    Reply::Error(message) => Err(Error::Refused(message)),
                    reply => Ok(reply),
                }
            }
            Err(error) => Err(self.broken(error)),
        }
    }

    fn broken(&self, source: io::Error) -> Error {
        Error::Feed { path: self.path.clone(), source }
    }
}

async fn exchange(stream: &mut BufReader<UnixStream>, request: &Request) -> io::Result<Reply> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let round_trip = async {
        stream.write_all(&line).await?;
        let mut reply = Vec::new();
        stream.read_until(b'\n', &mut reply).await?;
        if reply.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&reply)?)
    };
    tokio::time::timeout(REPLY_TIMEOUT, round_trip).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

fn unexpected() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "reply does not fit the request")
}

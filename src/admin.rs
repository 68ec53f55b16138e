//! The admin socket: how commands on this machine talk to a running bridge. A unix socket, `admin.sock` in the data
//! folder, mode 0600: whoever may open the data folder's files may use it. One JSON line in, one JSON line out.
//! Promise: a client that says nothing, too much or nonsense costs its own connection.

use crate::Failure;
use crate::cli::{DATA_DIR_DEFAULT, Whose};
use crate::config::bridge::Bridge;
use crate::keyring::Error::Locked;
use crate::keyring::Keyring;
use crate::office::{Answer, Office, Request};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// In the data folder.
pub(crate) const SOCKET: &str = "admin.sock";
/// Longest request: a create with a hundred services fits.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;
/// Longest answer a client reads: a list of a hundred thousand agents fits.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Clients served at a time; more wait in the listen queue.
const CLIENTS_MAX: usize = 16;
/// A client that has not said its line by then is dropped.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(5);

/// Asks for the bridge's place; what follows is not this protocol (`bridge_cmd/takeover.rs`).
const TAKEOVER: &str = "\"takeover\"";

/// Who has asked for it.
pub(crate) type Successors = tokio::sync::mpsc::Sender<std::os::unix::net::UnixStream>;

/// The listening end. The socket's file goes with it.
pub(crate) struct Admin {
    listener: UnixListener,
    path: PathBuf,
}

impl Admin {
    /// Listens in `data_dir`. The caller holds the keyring's lock, so a socket that is there is a dead process'.
    pub(crate) fn listen(data_dir: &Path) -> io::Result<Admin> {
        let path = data_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        // Bound under another name and renamed when its mode is right: there is no moment at which others may connect.
        let fresh = data_dir.join(format!("{SOCKET}.new"));
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&fresh, &path)?;
        Ok(Admin { listener, path })
    }

    /// Serves until dropped.
    pub(crate) async fn serve(self, office: Arc<Office>, successors: Successors) {
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "admin socket: accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (office, successors) = (office.clone(), successors.clone());
            tokio::spawn(async move {
                if let Err(error) = serve_one(stream, office, successors).await {
                    tracing::debug!(%error, "admin socket: client");
                }
                drop(place);
            });
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve_one(mut stream: UnixStream, office: Arc<Office>, successors: Successors) -> io::Result<()> {
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new((&mut stream).take(REQUEST_BYTES_MAX));
    tokio::time::timeout(CLIENT_TIME_MAX, reader.read_line(&mut line)).await??;
    if line.trim() == TAKEOVER {
        // Nothing comes behind it before we have answered. One at a time: the next one finds another bridge.
        return successors.try_send(stream.into_std()?).map_err(io::Error::other);
    }
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) => tokio::task::spawn_blocking(move || office.answer(request)).await.map_err(io::Error::other)?,
        Err(e) => {
            Answer::Wrong(format!("the bridge does not understand the request: {e}. Try: the same version of both"))
        }
    };
    let mut bytes = serde_json::to_vec(&answer).expect("an answer is JSON");
    bytes.push(b'\n');
    // Our own work may take its time, as a large import does; a client that does not read may not.
    tokio::time::timeout(CLIENT_TIME_MAX, stream.write_all(&bytes)).await?
}

/// Asks whoever has the data folder: the bridge that runs there, or `alone`, which gets the lock of one that does not, so
/// that none starts meanwhile. `is_new`: what is asked may make the folder.
pub(crate) fn ask_owner(
    whose: &Whose,
    request: Request,
    is_new: bool,
    alone: impl FnOnce(&Bridge, Keyring, Request) -> Result<Answer, Failure>,
) -> Result<Answer, Failure> {
    let config = match &whose.config {
        Some(file) => Bridge::read(file)?,
        None => {
            Bridge { data_dir: whose.data_dir.clone().unwrap_or_else(|| DATA_DIR_DEFAULT.into()), ..Bridge::default() }
        }
    };
    let folder = &config.data_dir;
    let ask_bridge =
        || ask(folder, &request).map_err(|e| Failure::Run(format!("{}: {e}", folder.join(SOCKET).display())));
    if let Some(answer) = ask_bridge()? {
        return Ok(answer);
    }
    if !is_new && !folder.exists() {
        // What is asked of a folder that is not there is a slip of the hand.
        return Err(Failure::Usage(format!(
            "data_dir {}: there is none. Try: --config bridge.toml, or --data-dir with the bridge's folder",
            folder.display()
        )));
    }
    match Keyring::open(folder) {
        Ok(keyring) => alone(&config, keyring, request),
        // A bridge started between the two looks.
        Err(e @ Locked(_)) => ask_bridge()?.ok_or_else(|| Failure::Run(e.to_string())),
        Err(e) => Err(Failure::Run(e.to_string())),
    }
}

/// Asks the bridge that runs on `data_dir`. `None`: none runs there.
pub(crate) fn ask(data_dir: &Path, request: &Request) -> io::Result<Option<Answer>> {
    ask_within(data_dir, request, Some(CLIENT_TIME_MAX * 2))
}

/// As [`ask`], for what may take as long as there are records.
pub(crate) fn ask_patiently(data_dir: &Path, request: &Request) -> io::Result<Option<Answer>> {
    ask_within(data_dir, request, None)
}

fn ask_within(data_dir: &Path, request: &Request, patience: Option<Duration>) -> io::Result<Option<Answer>> {
    let stream = match std::os::unix::net::UnixStream::connect(data_dir.join(SOCKET)) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) => return Err(e),
    };
    stream.set_read_timeout(patience)?;
    let mut line = serde_json::to_vec(request).expect("a request is JSON");
    line.push(b'\n');
    (&stream).write_all(&line)?;
    let mut answer = String::new();
    BufReader::new((&stream).take(ANSWER_BYTES_MAX)).read_line(&mut answer)?;
    serde_json::from_str(&answer).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringspan_tunnel::fingerprint::Trust;
    use ringspan_tunnel::rights::Rights;

    fn office(folder: &Path) -> Arc<Office> {
        Arc::new(Office {
            keyring: Arc::new(Keyring::open(folder).expect("a new one")),
            address: "127.0.0.1:8024".parse().expect("an address"),
            trust: Trust::Plain,
            floor: None,
        })
    }

    /// A command gets its answer while others say nonsense, say nothing, or hang up; the socket is ours alone.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_line_in_one_line_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        let office = office(&path);
        assert!(ask(&path, &Request::List).expect("nobody there is no error").is_none());
        let admin = Admin::listen(&path).expect("free");
        assert_eq!(std::fs::metadata(path.join(SOCKET)).expect("it is there").permissions().mode() & 0o777, 0o600);
        let serving = tokio::spawn(admin.serve(office, tokio::sync::mpsc::channel(1).0));
        let asked = tokio::task::spawn_blocking(move || {
            let connect = || std::os::unix::net::UnixStream::connect(path.join(SOCKET)).expect("it listens");
            let _silent: Vec<_> = (0..CLIENTS_MAX / 2).map(|_| connect()).collect();
            drop(connect());
            let mut nonsense = connect();
            nonsense.write_all(b"\xff\x00{}\n").expect("it reads");
            let create = Request::Create {
                services: vec!["web".into()],
                expires_s: 60,
                uses: 1,
                address: None,
                rights: Rights::default(),
            };
            let created = ask(&path, &create).expect("it answers");
            let listed = ask(&path, &Request::List).expect("it answers");
            let wrong = ask(&path, &Request::Revoke { id: "x".into() }).expect("it answers");
            (created, listed, wrong)
        });
        let (created, listed, wrong) = asked.await.expect("no panic");
        assert!(matches!(&created, Some(Answer::Created { token, .. }) if token.contains('@')), "{created:?}");
        assert!(matches!(&listed, Some(Answer::Listed(l)) if l.tokens.len() == 1 && l.agents.is_empty()), "{listed:?}");
        assert!(matches!(&wrong, Some(Answer::Wrong(text)) if text.contains("ringspan token list")), "{wrong:?}");
        serving.abort();
        let _ = serving.await;
        assert!(!folder.path().join(SOCKET).exists(), "the socket goes with its owner");
    }
}

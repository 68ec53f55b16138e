//! A bridge or an agent inside another program, with a control plane of one thread: no async runtime, no files but the
//! bridge's key.
//!
//! ```text
//! BridgeHost: workers (data path) + a thread: who may come in, routes        AgentHost: workers + a thread: events
//! ```
//! What it leaves out is what `ringspan bridge` and `ringspan agent` add: checks of backends (an agent's are up until
//! [`AgentHost::set_up`] says otherwise), a keyring on disk, a registry, listeners that read what they carry. Whoever wants another
//! control plane builds it on [`bridge`](crate::bridge) and [`agent`](crate::agent), as this one is.

mod agent;
mod bridge;

pub use agent::{AgentConfig, AgentHost};
pub use bridge::{BridgeConfig, BridgeHost};

use ringspan_engine::kernel::Backend;
use ringspan_engine::mailbox::Wake;
use ringspan_engine::resident::Resident;
use ringspan_engine::worker::{Seat, StartError, WorkerOptions, Workers};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Why one did not start.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// An address could not be listened on.
    #[error(transparent)]
    Bridge(#[from] crate::bridge::BridgeError),
    /// The bridge's key could not be read or made.
    #[error(transparent)]
    Tls(#[from] crate::tls::ServerTlsError),
    /// The join token is none.
    #[error(transparent)]
    Token(#[from] crate::token::TokenError),
    /// What is to be exposed cannot be: a name, a count.
    #[error("{0}")]
    Exposes(String),
    /// No threads, or no way to ask the kernel.
    #[error(transparent)]
    Workers(#[from] StartError),
    /// No descriptors or threads.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Rung by workers.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Wake for Bell {
    fn wake(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.heard.notify_all();
    }
}

impl Bell {
    fn wait(&self) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rung = self.heard.wait_while(rung, |rung| !*rung).unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

/// The threads of one host. Dropping it stops them.
struct Threads {
    workers: Option<Workers>,
    bell: Arc<Bell>,
    over: Arc<AtomicBool>,
    control: Option<JoinHandle<()>>,
}

impl Threads {
    /// `step` is called each time the bell has been rung.
    fn start(
        seats: Vec<Seat>,
        residents: Vec<Box<dyn Resident>>,
        bell: Arc<Bell>,
        mut step: impl FnMut() + Send + 'static,
    ) -> Result<Threads, EmbedError> {
        let seats = seats.into_iter().zip(residents).map(|(seat, resident)| (seat, vec![resident])).collect();
        let workers = Workers::start(&WorkerOptions { backend: Backend::Auto, pin: false, batch: false }, seats)?;
        let over = Arc::new(AtomicBool::new(false));
        let (its_bell, its_over) = (bell.clone(), over.clone());
        let control = std::thread::Builder::new().name("rs-control".into()).spawn(move || {
            while !its_over.load(Ordering::Acquire) {
                step();
                its_bell.wait();
            }
        })?;
        Ok(Threads { workers: Some(workers), bell, over, control: Some(control) })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(workers) = self.workers.take() {
            workers.stop();
        }
        self.over.store(true, Ordering::Release);
        self.bell.wake();
        if let Some(control) = self.control.take() {
            // Its panic has been told where it happened.
            let _ = control.join();
        }
    }
}

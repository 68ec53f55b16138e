//! Keeps the engine's targets in step with the registry's persistent instances, and brings back what it finds.

use crate::service::Registry;
use ringspan_engine::mailbox::Wake;
use ringspan_engine::target::{Target, TargetId, Transition};
use std::sync::Arc;
use tokio::sync::Notify;

/// The engine, as the prober needs it.
pub trait Probing: Send {
    /// Starts to probe. `None`: the engine's mailbox is full, try again.
    fn add(&mut self, target: Target) -> Option<TargetId>;
    /// Stops to probe. `false`: the engine's mailbox is full, try again.
    fn remove(&mut self, id: TargetId) -> bool;
    /// Takes what changed since the last call.
    fn transitions(&mut self, into: &mut Vec<Transition>);
}

/// Rung by the engine when there are transitions: give it to `Engine::start` as its `wake`.
#[derive(Clone, Default)]
pub struct Bell {
    rung: Arc<Notify>,
}

impl Wake for Bell {
    fn wake(&self) {
        self.rung.notify_one();
    }
}

/// Runs until the registry stops. Spawn it on the control plane's runtime.
pub async fn run(registry: Registry, engine: impl Probing, bell: Bell) {
    let _ = (registry, engine, bell);
    std::future::pending::<()>().await;
}

//! One engine, one probe at a time: what the tests against real peers share.

use ringspan_engine::check::Check;
use ringspan_engine::engine::{Engine, Feed, Options};
use ringspan_engine::health::Health;
use ringspan_engine::kernel::Backend;
use ringspan_engine::mailbox::Wake;
use ringspan_engine::target::{Policy, Sample, Target};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

/// Longer than anything takes that goes well, on a machine that does ten other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

struct Bell(Sender<()>);

impl Wake for Bell {
    fn wake(&self) {
        let _ = self.0.send(());
    }
}

/// See the module.
pub(crate) struct Prober {
    engine: Engine,
    feed: Feed,
    bell: Receiver<()>,
}

impl Prober {
    pub(crate) fn start(backend: Backend) -> Prober {
        let (ring, bell) = mpsc::channel();
        let options = Options { workers: 1, pin: false, samples_max: 64, backend, ..Options::default() };
        let (engine, feed) = Engine::start(&options, Arc::new(Bell(ring)), |_| Vec::new()).expect("an engine");
        Prober { engine, feed, bell }
    }

    /// One probe.
    pub(crate) fn probe(
        &mut self,
        address: SocketAddr,
        check: Check,
        source: Option<IpAddr>,
        timeout: Duration,
    ) -> Sample {
        let interval = Duration::from_millis(100);
        let target = Target {
            address,
            check,
            policy: Arc::new(Policy { interval, timeout, source, ..Policy::DEFAULT }),
            initial: Health::Unknown,
            count: Some(1),
            key: 1,
            group: 0,
        };
        let id = self.engine.probes().add(target).expect("room for one");
        let mut samples = Vec::new();
        loop {
            self.feed.samples(&mut samples);
            if let Some(sample) = samples.iter().find(|sample| sample.id == id && sample.last) {
                self.engine.probes().remove(id).expect("room for one");
                return *sample;
            }
            self.bell.recv_timeout(PATIENCE).expect("an outcome");
        }
    }
}

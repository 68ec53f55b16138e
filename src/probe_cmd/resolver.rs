//! Names: looked up by threads of their own, a slow name server delays its own targets and nobody else's.
//! Promise: a name is asked for once at a time; at most [`LOOKUPS_AT_ONCE`] wait for a server.

use ringspan_engine::mailbox::Wake;
use std::collections::VecDeque;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, mpsc};

/// Names looked up at a time: a name server's usual limit per client is far higher, and a list of dead names at 5 s
/// each still gets through.
const LOOKUPS_AT_ONCE: usize = 32;

/// A name and what it means: every address, in the server's order, or why none.
pub(crate) struct Answer {
    /// The name.
    pub(crate) host: String,
    /// At least one address.
    pub(crate) found: Result<Vec<IpAddr>, String>,
}

/// See the module.
pub(crate) struct Resolver {
    queue: Arc<(Mutex<VecDeque<String>>, Condvar)>,
    answers: mpsc::Receiver<Answer>,
    to: mpsc::Sender<Answer>,
    threads: usize,
    asked: usize,
    bell: Arc<dyn Wake>,
}

impl Resolver {
    /// Asks nobody yet. `bell` is rung for each answer.
    pub(crate) fn new(bell: Arc<dyn Wake>) -> Resolver {
        let (to, answers) = mpsc::channel();
        Resolver { queue: Arc::default(), answers, to, threads: 0, asked: 0, bell }
    }

    /// Looks a name up.
    pub(crate) fn ask(&mut self, host: String) {
        self.queue.0.lock().expect("nobody panics with the queue").push_back(host);
        self.queue.1.notify_one();
        self.asked += 1;
        if self.threads < self.asked.min(LOOKUPS_AT_ONCE) {
            self.threads += 1;
            let (queue, to, bell) = (self.queue.clone(), self.to.clone(), self.bell.clone());
            let thread = std::thread::Builder::new().name("names".into()).stack_size(256 << 10);
            if let Err(error) = thread.spawn(move || work(&queue, &to, &*bell)) {
                self.threads -= 1;
                tracing::warn!(%error, "no thread for looking up names");
            }
        }
    }

    /// An answer, if there is one.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let answer = self.answers.try_recv().ok()?;
        self.asked -= 1;
        Some(answer)
    }
}

fn work(queue: &(Mutex<VecDeque<String>>, Condvar), to: &mpsc::Sender<Answer>, bell: &dyn Wake) {
    loop {
        let mut names = queue.0.lock().expect("nobody panics with the queue");
        let host = loop {
            match names.pop_front() {
                Some(host) => break host,
                None => names = queue.1.wait(names).expect("nobody panics with the queue"),
            }
        };
        drop(names);
        let found = match (host.as_str(), 0).to_socket_addrs() {
            Ok(addresses) => {
                let all: Vec<IpAddr> = addresses.map(|a| a.ip()).collect();
                if all.is_empty() { Err("the answer was empty".to_owned()) } else { Ok(all) }
            }
            Err(e) => Err(e.to_string()),
        };
        if to.send(Answer { host, found }).is_err() {
            return;
        }
        bell.wake();
    }
}

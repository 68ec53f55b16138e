//! Mailboxes: many senders, one owner, a size, and an answer to "then what?".
//!
//! A message is pushed into a lock-free queue and the owner is woken. Full is normal: the sender gets its message back
//! and decides (keep it, drop and count, refuse). No lock, no allocation per message.

use crossbeam_queue::ArrayQueue;
use std::sync::Arc;

/// Rouses the owner of a mailbox. A worker's is an eventfd ([`Waker`](crate::kernel::Waker)); the control plane's is
/// whatever its runtime offers.
pub trait Wake: Send + Sync {
    /// Cheap if the owner is awake. Never blocks.
    fn wake(&self);
}

/// A mailbox nobody waits on: its owner looks by itself.
pub struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

/// The mailbox was full; here is the message back.
#[derive(Debug, PartialEq, Eq)]
pub struct Full<T>(pub T);

/// The sending end. Clones share the mailbox.
pub struct Sender<T> {
    queue: Arc<ArrayQueue<T>>,
    wake: Arc<dyn Wake>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender { queue: self.queue.clone(), wake: self.wake.clone() }
    }
}

impl<T> Sender<T> {
    /// Leaves a message and wakes the owner.
    ///
    /// # Errors
    /// [`Full`] with the message, if the mailbox holds as many as it can.
    pub fn send(&self, message: T) -> Result<(), Full<T>> {
        self.post(message)?;
        self.wake();
        Ok(())
    }

    /// Leaves a message without waking the owner: for a sender that leaves many and wakes once, by
    /// [`wake`](Sender::wake).
    ///
    /// # Errors
    /// As [`send`](Sender::send).
    pub fn post(&self, message: T) -> Result<(), Full<T>> {
        self.queue.push(message).map_err(Full)
    }

    /// Wakes the owner.
    pub fn wake(&self) {
        self.wake.wake();
    }

    /// How many messages it can hold.
    pub fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    /// Whether it holds as many as it can. A snapshot.
    pub fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// How many messages wait. A snapshot.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits. A snapshot.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// The owner's end.
pub struct Receiver<T> {
    queue: Arc<ArrayQueue<T>>,
}

impl<T> Receiver<T> {
    /// The oldest message, if there is one.
    pub fn try_recv(&self) -> Option<T> {
        self.queue.pop()
    }

    /// How many messages wait. A snapshot.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits. A snapshot.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// A mailbox of `capacity` messages (at least 1) whose owner is roused by `wake`.
pub fn mailbox<T>(capacity: usize, wake: Arc<dyn Wake>) -> (Sender<T>, Receiver<T>) {
    let queue = Arc::new(ArrayQueue::new(capacity.max(1)));
    (Sender { queue: queue.clone(), wake }, Receiver { queue })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A full mailbox gives the message back and keeps what it has, in order.
    #[test]
    fn full_gives_the_message_back() {
        let (tx, rx) = mailbox(2, Arc::new(NoWake));
        assert_eq!((tx.send(1), tx.send(2), tx.send(3)), (Ok(()), Ok(()), Err(Full(3))));
        assert_eq!([rx.try_recv(), rx.try_recv(), rx.try_recv()], [Some(1), Some(2), None]);
    }
}

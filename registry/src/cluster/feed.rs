//! The two tasks that talk to etcd all the time: one watches the prefix and brings every change in order, the other keeps
//! this member's lease.
//!
//! ```text
//! read all at revision R ──► watch from R+1 ──► events, in order ─┐
//!        ▲                      ▲    └── stream broke: again from the last revision + 1
//!        └── compacted ─────────┴────── (a change may have been missed: read all, and compare)
//! ```
//! Promise: no change is left out and none comes twice; a broken stream or a lost leader costs time, not changes.

use super::etcd::{Etcd, KeyValue, Op, Txn, WatchEvent};
use super::keys::{self, StoredMember};
use super::stats::count;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// What came from etcd.
pub(crate) enum News {
    /// Everything there is, as of this revision.
    All { revision: i64, kvs: Vec<KeyValue> },
    /// What has happened since, up to this revision.
    Events { revision: i64, events: Vec<WatchEvent> },
}

/// Answers of the watch that may wait for the table; then the watch waits, and etcd behind it.
const NEWS_LEN: usize = 64;
/// A member that has not renewed its lease for this long is gone. Short enough that its share has new keepers within 5 s,
/// long enough for an election in etcd, which renews all leases besides.
const LEASE_S: i64 = 4;
const RENEW: Duration = Duration::from_millis(1_000);
/// Between attempts to reach an etcd that does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// The watch's end in the writer.
pub(crate) struct Feed {
    pub(crate) news: mpsc::Receiver<News>,
}

/// Starts to watch everything under `prefix` from after `revision`.
pub(crate) fn watch(etcd: Arc<Etcd>, prefix: Vec<u8>, revision: i64) -> Feed {
    let (sender, news) = mpsc::channel(NEWS_LEN);
    tokio::spawn(watch_on(etcd, prefix, revision, sender));
    Feed { news }
}

async fn watch_on(etcd: Arc<Etcd>, prefix: Vec<u8>, mut done: i64, news: mpsc::Sender<News>) {
    let mut in_trouble = false;
    while !news.is_closed() {
        match follow(&etcd, &prefix, &mut done, &news, &mut in_trouble).await {
            Ok(()) => return,
            Err(End::Compacted) => {
                count(&etcd.stats().reread);
                tracing::warn!(done, "etcd has forgotten changes that were not read yet: reading everything");
                match etcd.all(&prefix).await {
                    Ok((revision, kvs)) => {
                        done = revision;
                        if news.send(News::All { revision, kvs }).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    Err(status) => tracing::debug!(%status, "etcd: cannot read everything"),
                }
            }
            Err(End::Broken(why)) => {
                count(&etcd.stats().watch_breaks);
                if !in_trouble {
                    tracing::warn!(why, "etcd: the watch broke; going on from memory until it is back");
                }
                in_trouble = true;
                etcd.leave();
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

enum End {
    Compacted,
    Broken(String),
}

/// Follows one stream to its end. `Ok`: nobody listens any more.
async fn follow(
    etcd: &Etcd,
    prefix: &[u8],
    done: &mut i64,
    news: &mpsc::Sender<News>,
    in_trouble: &mut bool,
) -> Result<(), End> {
    let broken = |status: tonic::Status| End::Broken(format!("{:?}: {}", status.code(), status.message()));
    let (_open, mut answers) = etcd.watch(prefix, *done + 1).await.map_err(broken)?;
    loop {
        let answer = tokio::select! {
            answer = answers.message() => answer.map_err(broken)?.ok_or_else(|| End::Broken("it ended".into()))?,
            () = news.closed() => return Ok(()),
        };
        if answer.compact_revision > 0 {
            return Err(End::Compacted);
        }
        if answer.canceled {
            return Err(End::Broken(answer.cancel_reason));
        }
        if *in_trouble {
            *in_trouble = false;
            tracing::info!("etcd: the watch is back");
        }
        // The header may be ahead of what has been sent, with events (a watch that catches up) and without (etcd before
        // 3.4.25, when it tells of progress): events alone say how far we are.
        let Some(revision) = answer.events.last().and_then(|e| e.kv.as_ref()).map(|kv| kv.mod_revision) else {
            continue;
        };
        *done = revision.max(*done);
        if news.send(News::Events { revision: *done, events: answer.events }).await.is_err() {
            return Ok(());
        }
    }
}

/// Keeps this member in the list of those that live, until `stop` is dropped or asked; then it leaves at once.
pub(crate) async fn keep(
    etcd: Arc<Etcd>,
    prefix: Vec<u8>,
    (name, member): (String, StoredMember),
    mut stop: oneshot::Receiver<()>,
) {
    let key = [&prefix[..], &keys::member_key(&name)].concat();
    let value = crate::store::codec::json(&member);
    let mut lease = 0;
    let mut in_trouble = false;
    loop {
        let result = async {
            if lease == 0 {
                let fresh = etcd.grant(LEASE_S).await?;
                let success = vec![Op::put(key.clone(), value.clone(), fresh)];
                etcd.txn(Txn { compare: Vec::new(), success }).await?;
                lease = fresh;
            } else if etcd.keep(lease).await? <= 0 {
                count(&etcd.stats().leases_lost);
                tracing::warn!("this member's lease has run out; the others have its share. Joining again");
                lease = 0;
            }
            Ok::<(), tonic::Status>(())
        }
        .await;
        count(if result.is_ok() { &etcd.stats().renewals } else { &etcd.stats().renewals_failed });
        match result {
            Ok(()) if in_trouble => {
                in_trouble = false;
                tracing::info!("etcd answers again");
            }
            Ok(()) => {}
            Err(status) => {
                if !in_trouble {
                    tracing::warn!(%status, "etcd does not answer: reads, pushes and probes go on, changes are refused");
                }
                in_trouble = true;
            }
        }
        let pause = if lease == 0 { RETRY } else { RENEW };
        tokio::select! {
            _ = &mut stop => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    if lease != 0
        && let Err(status) = etcd.revoke(lease).await
    {
        tracing::debug!(%status, "the lease could not be given up; it runs out by itself");
    }
}

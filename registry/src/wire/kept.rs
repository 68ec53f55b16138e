//! Lists as JSON, kept for whoever asks the same next: between two changes a list is written once, not for each query.
//! Promise: what is given is what would be written now, but for changes that come while it is given. At most
//! [`BYTES_MAX`] are kept; what has not been asked for the longest goes first.

use super::{hosts, service_alone};
use crate::model::{Name, ServiceKey};
use crate::snapshot::{ServiceView, Stamp};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Written lists in all, in two shelves. A hundred instances take 32 KiB. Bytes.
const BYTES_MAX: usize = 16 << 20;
/// What an entry takes beside its text, about. Bytes.
const ENTRY_BYTES: usize = 256;

/// What was asked, letter by letter, so that no list can be mistaken for another's.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    service: ServiceKey,
    clusters: Name,
    healthy_only: bool,
}

/// A list's hosts, from the bracket to the end of the object that they are the last field of.
#[derive(Clone)]
struct Written {
    stamp: Stamp,
    protect: bool,
    json: Bytes,
}

#[derive(Default)]
struct Shelves {
    /// What has been asked since the other shelf was put away.
    young: HashMap<Question, Written>,
    old: HashMap<Question, Written>,
    /// Of the young ones.
    bytes: usize,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Kept {
    shelves: Mutex<Shelves>,
}

impl Kept {
    /// Nacos' ServiceInfo as JSON, in two pieces: one of this answer, and one that is shared. The view is of this service.
    pub(crate) fn list(&self, view: &ServiceView, clusters: &str, healthy_only: bool, now_unix_ms: u64) -> [Bytes; 2] {
        let question = Question { service: view.key.clone(), clusters: Name::from(clusters), healthy_only };
        let stamp = view.stamp();
        let Written { protect, json, .. } = self.find(&question, stamp).unwrap_or_else(|| {
            let (hosts, protect) = hosts(&view.key, Some(view), clusters, healthy_only);
            let mut json = serde_json::to_vec(&hosts).expect("strings, numbers and maps are JSON");
            json.push(b'}');
            let written = Written { stamp, protect, json: json.into() };
            self.keep(question, written.clone());
            written
        });
        let alone = service_alone(&view.key, clusters, protect, now_unix_ms);
        let mut head = serde_json::to_vec(&alone).expect("strings and numbers are JSON");
        // No hosts, which is what comes last: `[]}`.
        head.truncate(head.len() - 3);
        [head.into(), json]
    }

    fn find(&self, question: &Question, stamp: Stamp) -> Option<Written> {
        // Each change of it is whole even if a holder panicked: at worst less is kept than could be.
        let mut shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(written) = shelves.young.get(question) {
            return Some(written).filter(|w| w.stamp == stamp).cloned();
        }
        let written = shelves.old.remove(question).filter(|w| w.stamp == stamp)?;
        shelves.keep(question.clone(), written.clone());
        Some(written)
    }

    fn keep(&self, question: Question, written: Written) {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner).keep(question, written);
    }
}

impl Shelves {
    fn keep(&mut self, question: Question, written: Written) {
        let size = |question: &Question, written: &Written| question.clusters.len() + written.json.len() + ENTRY_BYTES;
        let added = size(&question, &written);
        if added > BYTES_MAX / 2 {
            return;
        }
        if self.bytes + added > BYTES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        let replaced = self.young.insert(question.clone(), written);
        self.bytes = self.bytes + added - replaced.map_or(0, |was| size(&question, &was));
    }
}

#[cfg(test)]
mod tests;

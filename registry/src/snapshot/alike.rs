//! Services that are found by their names in small letters: DNS does not tell a capital from a small one.
//! Promise: a service whose names are in small letters (and in the default group) costs nothing here: it is found by its key.

use crate::model::{GROUP_DEFAULT, ServiceKey};
use std::collections::HashMap;

/// Services with capitals, by their names without them.
#[derive(Debug, Default)]
pub(super) struct Alike(HashMap<String, Vec<ServiceKey>>);

impl Alike {
    pub(super) fn insert(&mut self, key: &ServiceKey) {
        if has_capitals(key) {
            let keys = self.0.entry(small(key)).or_default();
            if !keys.contains(key) {
                keys.push(key.clone());
            }
        }
    }

    pub(super) fn remove(&mut self, key: &ServiceKey) {
        if !has_capitals(key) {
            return;
        }
        let small = small(key);
        if let Some(keys) = self.0.get_mut(&small) {
            keys.retain(|k| k != key);
            if keys.is_empty() {
                self.0.remove(&small);
            }
        }
    }

    /// Those that differ from it in the case of letters alone.
    pub(super) fn of(&self, key: &ServiceKey) -> &[ServiceKey] {
        self.0.get(&small(key)).map_or(&[], Vec::as_slice)
    }
}

fn has_capitals(key: &ServiceKey) -> bool {
    let has = |text: &str| text.bytes().any(|b| b.is_ascii_uppercase());
    has(key.namespace()) || has(key.name()) || (**key.group() != *GROUP_DEFAULT && has(key.group()))
}

fn small(key: &ServiceKey) -> String {
    key.to_string().to_ascii_lowercase()
}

//! Parts of a service's or an instance's record, changed in one step: what others change meanwhile is not undone.
//! Promise: an edit is carried out on what is there at that moment, wholly or not at all.

use super::{Changes, Patch, Refusal, Table};
use crate::model::{Checker, Cluster, InstanceId, Metadata, Name, ServiceKey, ServiceMeta};
use crate::selector::service::ServiceSelector;
use ringspan_engine::time::Instant;
use std::collections::BTreeMap;

/// Pairs to set, and keys to take out (`None`); others stay.
pub type Merge = BTreeMap<String, Option<String>>;

/// What an edit finds before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// A service that is there: what is not named stays.
    Present,
    /// Whatever is there, or nothing: what is not named is the default.
    Anything,
}

/// What is to become of a service's settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceEdit {
    /// New threshold; `None` does not name it.
    pub protect_threshold: Option<f64>,
    /// New selector; `None` does not name it.
    pub selector: Option<ServiceSelector>,
    /// Into its metadata.
    pub metadata: Merge,
    /// Its clusters; `None` in place of one: as if it had never been configured.
    pub clusters: BTreeMap<Name, Option<ClusterEdit>>,
}

/// What is to become of a cluster's settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterEdit {
    /// New checker; `None` does not name it.
    pub checker: Option<Checker>,
    /// Into its metadata.
    pub metadata: Merge,
}

/// What is to become of an instance's record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstanceEdit {
    /// 0 to 10 000; `None` does not name it.
    pub weight: Option<f64>,
    /// Whether clients may see it; `None` does not name it.
    pub enabled: Option<bool>,
    /// Into its metadata.
    pub metadata: Merge,
}

/// Carries a merge out.
pub fn merge(metadata: &mut Metadata, merge: Merge) {
    for (key, value) in merge {
        match value {
            Some(value) => drop(metadata.insert(key, value)),
            None => drop(metadata.remove(&key)),
        }
    }
}

impl Table {
    pub(super) fn edit_service(
        &mut self,
        now: Instant,
        service: &ServiceKey,
        onto: Onto,
        edit: ServiceEdit,
    ) -> Result<Changes, Refusal> {
        match (self.services.contains_key(service), onto) {
            (true, _) => {}
            (false, Onto::Present) => return Err(Refusal::NoService { service: service.clone() }),
            (false, Onto::Anything) => self.check_room(0, 1)?,
        }
        let before = self.meta(service).cloned();
        let old = before.as_deref().cloned().unwrap_or_default();
        let mut meta = match onto {
            Onto::Present => old.clone(),
            Onto::Anything => ServiceMeta::default(),
        };
        meta.protect_threshold = edit.protect_threshold.unwrap_or(meta.protect_threshold);
        meta.selector = edit.selector.unwrap_or(meta.selector);
        merge(&mut meta.metadata, edit.metadata);
        for (name, edit) in edit.clusters {
            let Some(edit) = edit else {
                meta.clusters.remove(&name);
                continue;
            };
            let cluster: &mut Cluster = meta.clusters.entry(name.clone()).or_default();
            if let Some(checker) = edit.checker {
                cluster.checker = checker.with_secret_of(old.clusters.get(&name).map(|c| &c.checker))?;
            }
            merge(&mut cluster.metadata, edit.metadata);
        }
        self.change_meta(now, service, before, meta)
    }

    pub(super) fn edit_instance(
        &mut self,
        now: Instant,
        service: &ServiceKey,
        id: &InstanceId,
        edit: InstanceEdit,
    ) -> Result<Changes, Refusal> {
        let metadata = self.entry(service, id).filter(|_| !edit.metadata.is_empty()).map(|entry| {
            let mut metadata = entry.record.metadata.clone();
            merge(&mut metadata, edit.metadata);
            metadata
        });
        self.update(now, service, id, Patch { weight: edit.weight, enabled: edit.enabled, metadata })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Kind;
    use crate::model::Instance;
    use crate::table::{Command, Limits};

    fn pairs(list: &[(&str, Option<&str>)]) -> Merge {
        list.iter().map(|(k, v)| ((*k).to_owned(), v.map(str::to_owned))).collect()
    }

    fn mysql(password: &str) -> Checker {
        let kind = Kind::Mysql { user: "check".into(), password: password.into(), cmd: "select 1".into() };
        Checker::new(kind, None, None).unwrap()
    }

    /// An edit of what is there leaves what it does not name; one that is to be all leaves nothing; a password that was
    /// never told cannot be meant.
    #[test]
    fn what_stays() {
        let mut table = Table::new(Limits::default());
        let service = ServiceKey::public("web").unwrap();
        let mut edit = |onto, edit| {
            let command = Command::EditService { service: service.clone(), onto, edit };
            table.apply(Instant::ZERO, command).map(|_| table.meta(&service).unwrap().as_ref().clone())
        };
        let first = ServiceEdit {
            protect_threshold: Some(0.5),
            metadata: pairs(&[("a", Some("1")), ("b", Some("2"))]),
            clusters: [
                (Name::from("c"), Some(ClusterEdit { checker: Some(mysql("pw")), ..ClusterEdit::default() })),
                (Name::from("d"), Some(ClusterEdit { metadata: pairs(&[("x", Some("y"))]), ..ClusterEdit::default() })),
            ]
            .into(),
            ..ServiceEdit::default()
        };
        assert!(matches!(edit(Onto::Present, first.clone()), Err(Refusal::NoService { .. })));
        edit(Onto::Anything, first).unwrap();
        let second = ServiceEdit {
            metadata: pairs(&[("a", None), ("c", Some("3"))]),
            clusters: [
                (Name::from("c"), Some(ClusterEdit { checker: Some(mysql("***")), ..ClusterEdit::default() })),
                (Name::from("d"), None),
            ]
            .into(),
            ..ServiceEdit::default()
        };
        let after = edit(Onto::Present, second.clone()).unwrap();
        assert_eq!(after.protect_threshold, 0.5);
        assert_eq!(after.metadata, [("b".into(), "2".into()), ("c".into(), "3".into())].into());
        assert_eq!(after.checker("c"), mysql("pw"), "what is shown as *** is kept");
        assert!(!after.clusters.contains_key("d"));
        let after = edit(Onto::Anything, second.clone()).unwrap();
        assert_eq!((after.protect_threshold, after.metadata.len()), (0.0, 1));
        assert_eq!(after.checker("c"), mysql("pw"), "even then");
        edit(Onto::Anything, ServiceEdit::default()).unwrap();
        let refused = edit(Onto::Present, second).unwrap_err();
        assert!(matches!(&refused, Refusal::Invalid(e) if e.param == "password"), "{refused}");
    }

    /// Metadata of an instance is merged with what it has at that moment.
    #[test]
    fn instances() {
        let mut table = Table::new(Limits::default());
        let (service, id) = (ServiceKey::public("web").unwrap(), InstanceId::new("", "10.0.0.1", 80).unwrap());
        let edit = |merge| Command::EditInstance {
            service: service.clone(),
            id: id.clone(),
            edit: InstanceEdit { metadata: merge, ..InstanceEdit::default() },
        };
        assert!(matches!(table.apply(Instant::ZERO, edit(pairs(&[]))), Err(Refusal::NoService { .. })));
        let instance = Instance::new(id.clone());
        table.apply(Instant::ZERO, Command::Register { service: service.clone(), instance }).unwrap();
        table.apply(Instant::ZERO, edit(pairs(&[("a", Some("1")), ("b", Some("2"))]))).unwrap();
        table.apply(Instant::ZERO, edit(pairs(&[("a", None), ("c", Some("3"))]))).unwrap();
        let has = &table.entry(&service, &id).unwrap().record.metadata;
        assert_eq!(*has, [("b".into(), "2".into()), ("c".into(), "3".into())].into());
        let too_large = "x".repeat(2000);
        assert!(table.apply(Instant::ZERO, edit(pairs(&[("d", Some(&too_large))]))).is_err());
    }
}

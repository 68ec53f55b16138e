//! Services and clusters as people configure them, and health set by hand.

use super::edits::ServiceEdit;
use super::{Change, Changes, Entry, Refusal, Table};
use crate::health::{Health, Reason};
use crate::model::{Checker, Cluster, Instance, InstanceId, Metadata, Name, ServiceKey, ServiceMeta, Vantage};
use ringspan_engine::time::Instant;
use std::sync::Arc;

impl Table {
    pub(super) fn put_service(
        &mut self,
        now: Instant,
        service: ServiceKey,
        edit: ServiceEdit,
        metadata: Option<Metadata>,
        create: bool,
    ) -> Result<Changes, Refusal> {
        match (create, self.services.contains_key(&service)) {
            (true, true) => return Err(Refusal::ServiceExists { service }),
            (false, false) => return Err(Refusal::NoService { service }),
            (true, false) => self.check_room(0, 1)?,
            (false, true) => {}
        }
        let before = self.meta(&service).cloned();
        let mut meta = before.as_deref().cloned().unwrap_or_default();
        meta.protect_threshold = edit.protect_threshold.unwrap_or(meta.protect_threshold);
        meta.selector = edit.selector.unwrap_or(meta.selector);
        meta.metadata = metadata.unwrap_or(meta.metadata);
        self.change_meta(now, &service, before, meta)
    }

    pub(super) fn delete_service(&mut self, service: &ServiceKey) -> Result<Changes, Refusal> {
        let Some(known) = self.services.get(service) else {
            return Err(Refusal::NoService { service: service.clone() });
        };
        if !known.instances.is_empty() {
            return Err(Refusal::NotEmpty { service: service.clone() });
        }
        let before = known.meta.clone();
        self.put_meta(service, None);
        Ok(Changes { list: vec![Change::Service { service: service.clone(), before, after: None }] })
    }

    pub(super) fn put_cluster(
        &mut self,
        now: Instant,
        service: &ServiceKey,
        cluster: Name,
        settings: Cluster,
    ) -> Result<Changes, Refusal> {
        let Some(known) = self.services.get(service) else {
            return Err(Refusal::NoService { service: service.clone() });
        };
        let before = known.meta.clone();
        let mut meta = before.as_deref().cloned().unwrap_or_default();
        let checker = settings.checker.with_secret_of(meta.clusters.get(&cluster).map(|c| &c.checker))?;
        meta.clusters.insert(cluster, Cluster { checker, ..settings });
        self.change_meta(now, service, before, meta)
    }

    /// Sets one pair of a service's metadata, or of one of its clusters, and leaves the rest; `None` takes it out.
    pub(super) fn steer(
        &mut self,
        now: Instant,
        service: &ServiceKey,
        cluster: Option<Name>,
        key: &str,
        value: Option<String>,
    ) -> Result<Changes, Refusal> {
        let Some(known) = self.services.get(service) else {
            return Err(Refusal::NoService { service: service.clone() });
        };
        let before = known.meta.clone();
        let mut meta = before.as_deref().cloned().unwrap_or_default();
        let metadata = match cluster {
            None => &mut meta.metadata,
            Some(cluster) => &mut meta.clusters.entry(cluster).or_default().metadata,
        };
        match value {
            Some(value) => metadata.insert(key.to_owned(), value),
            None => metadata.remove(key),
        };
        self.change_meta(now, service, before, meta)
    }

    /// Clusters' checkers, behind the registrations that brought them: all of it, or nothing.
    pub(super) fn put_checkers(
        &mut self,
        now: Instant,
        service: &ServiceKey,
        checkers: Vec<(Name, Checker)>,
        mut changes: Changes,
    ) -> Result<Changes, Refusal> {
        for (cluster, checker) in checkers {
            match self.put_checker(now, service, &cluster, checker) {
                Ok(more) => changes.list.extend(more.list),
                Err(refusal) => {
                    self.revert(&changes);
                    return Err(refusal);
                }
            }
        }
        Ok(changes)
    }

    /// Changes a cluster's checker alone.
    fn put_checker(
        &mut self,
        now: Instant,
        service: &ServiceKey,
        cluster: &Name,
        checker: Checker,
    ) -> Result<Changes, Refusal> {
        let known = self.meta(service).and_then(|m| m.clusters.get(cluster)).cloned();
        let checker = checker.with_secret_of(known.as_ref().map(|k| &k.checker))?;
        let settings = Cluster { checker, ..known.clone().unwrap_or_default() };
        if known.unwrap_or_default() == settings {
            return Ok(Changes::default());
        }
        self.put_cluster(now, service, cluster.clone(), settings)
    }

    /// Makes a service's own instances all of one kind. What is believed of each stays, until those who decide then
    /// have spoken.
    pub(super) fn convert(&mut self, now: Instant, service: &ServiceKey, ephemeral: bool) -> Result<Changes, Refusal> {
        let Some(known) = self.services.get(service) else {
            return Err(Refusal::NoService { service: service.clone() });
        };
        let ours = |e: &&Entry| e.record.vantage == Vantage::Registry && e.record.ephemeral != ephemeral;
        let all: Vec<Entry> = known.instances.values().filter(ours).cloned().collect();
        let meta = known.meta.clone();
        let mut changes = Changes::default();
        for before in all {
            let record = Arc::new(Instance { ephemeral, ..Instance::clone(&before.record) });
            let ballot = self.convene(now, &record, meta.as_deref(), before.ballot.as_ref());
            let mut after = Entry { record, ballot, beat: now, client: None, ..before.clone() };
            after.rearm(now);
            let (id, had, has) = (after.record.id.clone(), before.ballot.is_some(), after.ballot.is_some());
            self.replace(service, Some(before), Some(after), &mut changes);
            if had != has {
                self.conclude(now, service, &id, &mut changes);
            }
        }
        Ok(changes)
    }

    pub(super) fn set_health(
        &mut self,
        now: Instant,
        service: &ServiceKey,
        id: &InstanceId,
        healthy: bool,
    ) -> Result<Changes, Refusal> {
        let Some(entry) = self.entry(service, id) else {
            return Err(Refusal::NoInstance { service: service.clone(), id: id.clone() });
        };
        let checked = self.meta(service).is_none_or(|m| m.asked(id).is_some());
        if checked || entry.record.ephemeral || entry.record.vantage != Vantage::Registry {
            return Err(Refusal::StillChecked { id: id.clone() });
        }
        let health = if healthy { Health::Up } else { Health::Down };
        let mut changes = Changes::default();
        self.believe(service, id, |h| h.heard(now, health, Reason::Manual, 0), &mut changes);
        Ok(changes)
    }

    pub(super) fn change_meta(
        &mut self,
        now: Instant,
        service: &ServiceKey,
        before: Option<Arc<ServiceMeta>>,
        meta: ServiceMeta,
    ) -> Result<Changes, Refusal> {
        meta.check()?;
        let after = Some(Arc::new(meta));
        let mut changes = Changes::default();
        if before != after {
            self.put_meta(service, after.clone());
            changes.list.push(Change::Service { service: service.clone(), before: before.clone(), after });
            self.reconvene(now, service, before.as_deref(), &mut changes);
        }
        Ok(changes)
    }
}

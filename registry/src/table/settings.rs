//! Services and clusters as people configure them, and health set by hand.

use super::{Change, Changes, Refusal, Table};
use crate::health::{Health, HealthRecord, Reason};
use crate::model::{Cluster, InstanceId, Metadata, Name, ServiceKey, ServiceMeta, Vantage};
use ringspan_engine::time::Instant;
use std::sync::Arc;

impl Table {
    pub(super) fn put_service(
        &mut self,
        service: ServiceKey,
        protect_threshold: Option<f64>,
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
        meta.protect_threshold = protect_threshold.unwrap_or(meta.protect_threshold);
        meta.metadata = metadata.unwrap_or(meta.metadata);
        self.change_meta(&service, before, meta)
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
        let rechecked = meta.checker(&cluster) != settings.checker;
        meta.clusters.insert(cluster.clone(), settings);
        let mut changes = self.change_meta(service, before, meta)?;
        if rechecked {
            // What another checker found says nothing of what this one will.
            for id in self.probed_in(service, &cluster) {
                self.believe(service, &id, |_| HealthRecord::unseen(now), &mut changes);
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
        let checked = self.meta(service).is_none_or(|m| m.checker(id.cluster()).asked(id).is_some());
        if checked || entry.record.ephemeral || entry.record.vantage != Vantage::Registry {
            return Err(Refusal::StillChecked { id: id.clone() });
        }
        let health = if healthy { Health::Up } else { Health::Down };
        let mut changes = Changes::default();
        self.believe(service, id, |h| h.heard(now, health, Reason::Manual, 0), &mut changes);
        Ok(changes)
    }

    fn change_meta(
        &mut self,
        service: &ServiceKey,
        before: Option<Arc<ServiceMeta>>,
        meta: ServiceMeta,
    ) -> Result<Changes, Refusal> {
        meta.check()?;
        let after = Some(Arc::new(meta));
        let mut changes = Changes::default();
        if before != after {
            self.put_meta(service, after.clone());
            changes.list.push(Change::Service { service: service.clone(), before, after });
        }
        Ok(changes)
    }

    /// The instances of a cluster whose health is the registry's checker's.
    fn probed_in(&self, service: &ServiceKey, cluster: &Name) -> Vec<InstanceId> {
        let all = self.services.get(service).into_iter().flat_map(|s| s.instances.values());
        let ours = all.filter(|e| e.record.vantage == Vantage::Registry && !e.record.ephemeral);
        ours.map(|e| e.record.id.clone()).filter(|id| id.cluster() == cluster).collect()
    }
}

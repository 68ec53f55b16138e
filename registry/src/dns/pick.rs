//! Which instances an answer shows, and in which order.
//! Promise: never one that is disabled, of no weight, only reachable through a tunnel, or, but for the protection threshold,
//! not well; the first one of an order is each instance with the probability of its weight's share.
//! Pure: chance comes in.

use crate::model::{Instance, Vantage};
use crate::snapshot::{InstanceView, ServiceView};
use crate::wire::{is_healthy, is_reachable};
use std::collections::HashMap;
use std::net::IpAddr;

/// An instance that may be shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    pub(super) record: &'a Instance,
    pub(super) address: IpAddr,
    pub(super) weight: f64,
}

/// Those of a service, or of one cluster of it, that visitors should be led to: the same that a list of Nacos' shows as healthy,
/// but for those that have no address here.
pub(super) fn shown<'a>(view: &'a ServiceView, cluster: Option<&str>) -> Vec<Choice<'a>> {
    let is_ours = |i: &&InstanceView| i.record.enabled && cluster.is_none_or(|c| **i.record.id.cluster() == *c);
    let all: Vec<_> = view.instances.iter().filter(is_ours).map(|i| (i, is_healthy(i))).collect();
    let healthy = all.iter().filter(|(_, healthy)| *healthy).count();
    let protect = (healthy as f64) < view.protect_threshold() * all.len() as f64;
    let choice = |(i, healthy): (&'a InstanceView, bool)| {
        let record = &*i.record;
        let is_well = healthy || (protect && is_reachable(i));
        let has_way = record.vantage == Vantage::Registry;
        let address = record.id.ip().filter(|_| is_well && has_way && record.weight > 0.0)?;
        Some(Choice { record, address, weight: record.weight })
    };
    all.into_iter().filter_map(choice).collect()
}

/// As many of them as `most`, drawn by weight without putting back: Efraimidis and Spirakis, "Weighted random sampling with a
/// reservoir" (2006), with exponentials.
pub(super) fn draw<'a>(choices: Vec<Choice<'a>>, most: usize, chance: &mut fastrand::Rng) -> Vec<Choice<'a>> {
    // 1 - f64() is in (0, 1]: its logarithm is finite.
    let key = |c: &Choice<'_>, chance: &mut fastrand::Rng| -(1.0 - chance.f64()).ln() / c.weight;
    let mut keyed: Vec<(f64, Choice<'a>)> = choices.into_iter().map(|c| (key(&c, chance), c)).collect();
    if keyed.len() > most {
        keyed.select_nth_unstable_by(most, |a, b| a.0.total_cmp(&b.0));
        keyed.truncate(most);
    }
    keyed.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    keyed.into_iter().map(|(_, choice)| choice).collect()
}

/// One for each address of a family, with the weight of all that are there.
pub(super) fn by_address(choices: Vec<Choice<'_>>, is_v4: bool) -> Vec<Choice<'_>> {
    let mut at = HashMap::<IpAddr, usize>::new();
    let mut out = Vec::<Choice<'_>>::new();
    for choice in choices.into_iter().filter(|c| c.address.is_ipv4() == is_v4) {
        match at.get(&choice.address) {
            Some(&n) => out[n].weight += choice.weight,
            None => {
                at.insert(choice.address, out.len());
                out.push(choice);
            }
        }
    }
    out
}

/// Weights as SRV has them, whole numbers to 65535: hundredths, or less fine if one is above 655.35; never 0, which RFC 2782
/// keeps for those that hardly anybody should come to.
pub(super) fn srv_weights(choices: &[Choice<'_>]) -> Vec<u16> {
    let largest = choices.iter().map(|c| c.weight).fold(0.0, f64::max);
    let scale = (f64::from(u16::MAX) / largest).min(100.0);
    choices.iter().map(|c| (c.weight * scale).round().clamp(1.0, f64::from(u16::MAX)) as u16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::InstanceId;

    fn records(weights: &[f64]) -> Vec<Instance> {
        let of = |(n, weight): (usize, &f64)| {
            let id = InstanceId::new("", &format!("10.0.0.{n}"), 80).unwrap();
            Instance { weight: *weight, ..Instance::new(id) }
        };
        weights.iter().enumerate().map(of).collect()
    }

    fn choices(records: &[Instance]) -> Vec<Choice<'_>> {
        let of = |record: &'_ Instance| record.id.ip().unwrap();
        records.iter().map(|record| Choice { record, address: of(record), weight: record.weight }).collect()
    }

    /// Who comes first does so by weight, and nobody comes twice or is more than was asked for.
    #[test]
    fn drawn_by_weight() {
        let records = records(&[1.0, 2.0, 7.0]);
        let mut chance = fastrand::Rng::with_seed(7);
        let mut first = [0_u32; 3];
        const ROUNDS: u32 = 20_000;
        for _ in 0..ROUNDS {
            let drawn = draw(choices(&records), 2, &mut chance);
            assert!(drawn.len() == 2 && drawn[0].address != drawn[1].address);
            first[records.iter().position(|r| r.id == drawn[0].record.id).unwrap()] += 1;
        }
        for (count, share) in first.iter().zip([0.1, 0.2, 0.7]) {
            let got = f64::from(*count) / f64::from(ROUNDS);
            assert!((got - share).abs() < 0.02, "{first:?}");
        }
    }

    /// Two instances at one address are one answer, of both weights.
    #[test]
    fn one_answer_an_address() {
        let mut records = records(&[1.0, 2.0]);
        records.push(Instance { weight: 3.0, ..Instance::new(InstanceId::new("", "10.0.0.0", 81).unwrap()) });
        let got: Vec<f64> = by_address(choices(&records), true).iter().map(|c| c.weight).collect();
        assert_eq!(got, [4.0, 2.0]);
        assert!(by_address(choices(&records), false).is_empty());
    }

    /// SRV's weights keep the proportions that fit and are never 0.
    #[test]
    fn weights_of_srv() {
        let of = |weights: &[f64]| srv_weights(&choices(&records(weights)));
        assert_eq!(of(&[1.0, 0.5, 0.001]), [100, 50, 1]);
        assert_eq!(of(&[10_000.0, 5_000.0, 1.0]), [65_535, 32_768, 7]);
        assert!(of(&[]).is_empty());
    }
}

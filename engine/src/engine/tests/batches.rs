//! Orders by the thousand: none is lost, none is done twice, and whoever finds no room can go on where it stopped.

use super::*;

/// Goes on until all is sent: `rest` sends as many as find room and says whether that was all.
fn to_the_end(mut rest: impl FnMut() -> bool) {
    while !rest() {
        std::thread::yield_now();
    }
}

/// Thirty thousand targets, more than two mailboxes hold, are added, changed and removed in batches: each order is
/// carried out once, workers have an even share, and the ids are those of the targets.
#[test]
fn batches_are_carried_out_once() {
    const COUNT: u64 = 30_000;
    let options = Options { workers: 2, backend: Backend::Epoll, ..Options::default() };
    let (engine, _feed) = Engine::start(&options, Arc::new(Bell::default()), |_| vec![]).expect("an engine");
    let probes = engine.probes();
    let policy = Arc::new(Policy { interval: crate::target::INTERVAL_MAX, ..Policy::DEFAULT });
    let address = own_address(Family::V4);
    let one = |key| Target { policy: policy.clone(), count: None, ..target(key, address, Mode::HalfOpen, 0) };
    let (mut targets, mut ids, mut back) = ((0..COUNT).map(one), Vec::new(), None);
    to_the_end(|| {
        let first: Option<Target> = back.take();
        let sent = match first {
            Some(target) => probes.add_all(&mut std::iter::once(target), &mut ids),
            None => Ok(()),
        };
        back = sent.and_then(|()| probes.add_all(&mut targets, &mut ids)).err().map(|Full(target)| target);
        back.is_none()
    });
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), COUNT as usize, "no id twice");
    // A worker that is kept from its turn for long is counted as it stood before: asked again, it tells.
    let settle = |each: u64| {
        let told = || engine.stats().workers.iter().map(|worker| worker.counters.targets).collect::<Vec<_>>();
        assert!((0..100).any(|_| told() == [each, each]), "{:?} targets, not {each} each", told());
    };
    settle(COUNT / 2);

    let mut changes = ids.iter().map(|id| (*id, policy.clone()));
    let mut back = None;
    to_the_end(|| {
        if let Some((id, policy)) = back.take()
            && let Err(Full(change)) = probes.update(id, policy)
        {
            back = Some(change);
            return false;
        }
        back = probes.update_all(&mut changes).err().map(|Full(change)| change);
        back.is_none()
    });
    // The numbers are given when all orders before them have been carried out.
    settle(COUNT / 2);
    assert_eq!(Arc::strong_count(&policy), COUNT as usize + 1);

    let mut gone = ids.into_iter();
    let mut back = None;
    to_the_end(|| {
        if let Some(id) = back.take()
            && let Err(Full(id)) = probes.remove(id)
        {
            back = Some(id);
            return false;
        }
        back = probes.remove_all(&mut gone).err().map(|Full(id)| id);
        back.is_none()
    });
    settle(0);
    assert_eq!(Arc::strong_count(&policy), 1, "nothing is kept of them");
}

//! Who looks after what: rendezvous hashing over the members that live. Each instance's address falls to the member that
//! has the highest score for it, so a member that goes leaves its share to the others and nothing else moves.
//! Pure: the same members give the same answer on every node.

use crate::model::InstanceId;

/// The members that live, and which one we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    me: String,
    /// In order. Empty: not a cluster, everything is ours.
    members: Vec<String>,
}

impl Shares {
    /// Of the member `me` among `members`, who need not have it: then `me` is there all the same.
    pub fn new(me: &str, members: impl IntoIterator<Item = String>) -> Shares {
        let mut members: Vec<String> = members.into_iter().chain([me.to_owned()]).collect();
        members.sort_unstable();
        members.dedup();
        Shares { me: me.to_owned(), members }
    }

    /// The members, in order.
    pub fn members(&self) -> &[String] {
        &self.members
    }

    /// Whether it is for us to probe this instance.
    pub fn is_ours(&self, id: &InstanceId) -> bool {
        self.keeper(id).is_none_or(|keeper| keeper == self.me)
    }

    /// Whether we are the first of the members: what only one of them should do is for that one.
    pub fn is_first(&self) -> bool {
        self.members.first().is_none_or(|first| *first == self.me)
    }

    /// Who probes it; `None`: there is no cluster. An address has one keeper, whichever services it is in.
    pub fn keeper(&self, id: &InstanceId) -> Option<&str> {
        self.members.iter().map(String::as_str).max_by_key(|member| (score(member, id), *member))
    }
}

/// FNV-1a, and the finisher of SplitMix64 to spread what differs in the last byte alone.
fn score(member: &str, id: &InstanceId) -> u64 {
    let port = id.port().to_be_bytes();
    let bytes = member.bytes().chain([0]).chain(id.host().bytes()).chain([0]).chain(port);
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Vec<InstanceId> {
        (0..3000_u16).map(|n| InstanceId::new("", &format!("10.0.{}.{}", n / 250, n % 250), 80).unwrap()).collect()
    }

    fn of(me: &str, members: &[&str]) -> Shares {
        Shares::new(me, members.iter().map(|m| (*m).to_owned()))
    }

    /// Each instance has exactly one keeper, the shares are alike, and a member that goes moves its own share alone.
    #[test]
    fn shares() {
        let all = ["a", "b", "c"];
        for id in ids() {
            let keepers = all.iter().filter(|me| of(me, &all).is_ours(&id)).count();
            assert_eq!(keepers, 1, "{id}");
            let (before, after) = (of("a", &all), of("a", &["a", "c"]));
            if before.keeper(&id) != Some("b") {
                assert_eq!(before.keeper(&id), after.keeper(&id), "{id} moved though its keeper stayed");
            }
        }
        for me in all {
            let ours = ids().iter().filter(|id| of(me, &all).is_ours(id)).count();
            assert!((800..1200).contains(&ours), "{me} has {ours} of 3000");
            assert_eq!(of(me, &all).is_first(), me == "a");
        }
        assert!(Shares::default().is_ours(&ids()[0]), "without a cluster everything is ours");
    }
}

//! Doors for scripts/fuzz, and for nobody else: each takes the bytes a peer might send, feeds them to a conversation, and
//! panics where a promise is broken.

use crate::check::{Content, HttpCheck, HttpSettings, Method, Redirects, TlsCheck, TlsSettings, Trust};
use crate::io::SAY_MAX;
use crate::outcome::Code;
use crate::probe::talk::{Next, Peer, Talk};
use crate::probe::{http::Asking, tls};
use crate::time::Instant;
use std::sync::{Arc, OnceLock};

/// More connections than any conversation may ask for: the most redirects, and the first.
const CONNECTIONS_MAX: usize = HttpSettings::REDIRECTS_MAX as usize + 1;

/// What came of it: the finding, and the detail's number. A conversation that wants more is asked at its deadline.
type Came = (Code, u32);

fn peer() -> Peer {
    Peer { address: "10.1.2.3:8080".parse().expect("an address") }
}

/// Feeds `answer` in pieces as long as `pieces` says, again and again to each new connection, until the conversation
/// knows or the pieces are used up.
fn feed(talk: &mut dyn Talk, answer: &[u8], closes: bool, mut piece: impl FnMut() -> usize) -> Came {
    'connection: for _ in 0..=CONNECTIONS_MAX {
        let mut say = Vec::new();
        talk.open(Instant::ZERO, &peer(), &mut say);
        let mut rest = answer;
        loop {
            assert!(say.len() <= SAY_MAX, "says at most what fits");
            let (first, after) = rest.split_at(rest.len().min(piece().max(1)));
            if first.is_empty() && !closes {
                let finding = talk.at_deadline();
                return (finding.code, finding.detail.number);
            }
            say.clear();
            match talk.hear(Instant::ZERO, first, &mut say) {
                Next::Hear | Next::Say => assert!(!first.is_empty(), "a closed connection says no more"),
                Next::Again => continue 'connection,
                Next::Over(finding) => return (finding.code, finding.detail.number),
            }
            rest = after;
        }
    }
    panic!("asks for ever");
}

/// Checks of every shape.
fn http_checks() -> &'static [Arc<HttpCheck>] {
    static CHECKS: OnceLock<Vec<Arc<HttpCheck>>> = OnceLock::new();
    CHECKS.get_or_init(|| {
        let check = |change: &dyn Fn(&mut HttpSettings)| {
            let mut settings = HttpSettings { head_max: 512, body_max: 256, ..HttpSettings::default() };
            change(&mut settings);
            Arc::new(HttpCheck::new(settings).expect("valid"))
        };
        vec![
            check(&|_| ()),
            check(&|s| s.content = Some(Content::Contains("ready".into()))),
            check(&|s| s.content = Some(Content::Lacks("ready".into()))),
            check(&|s| s.content = Some(Content::Matches("^r(ea|ae)dy$".into()))),
            check(&|s| s.redirects = Redirects::Follow { max: 3, any_host: false }),
            check(&|s| {
                s.redirects = Redirects::Follow { max: HttpSettings::REDIRECTS_MAX, any_host: true };
                s.content = Some(Content::Avoids("ready".into()));
            }),
            check(&|s| s.method = Method::Head),
        ]
    })
}

/// The first byte chooses the check, the second how pieces are cut; the rest is the answer.
pub fn http(data: &[u8]) {
    let [which, seed, answer @ ..] = data else { return };
    let checks = http_checks();
    let check = &checks[usize::from(*which) % checks.len()];
    let closes = which & 0x80 != 0;
    let whole = feed(&mut Asking::new(check.clone()), answer, closes, || usize::MAX);
    let mut random = fastrand::Rng::with_seed(u64::from(*seed));
    let cut = feed(&mut Asking::new(check.clone()), answer, closes, || random.usize(1..8));
    assert_eq!(whole, cut, "the same answer, whole and in pieces");
}

/// The first byte chooses the check, the second how pieces are cut; the rest is what the server says.
pub fn tls(data: &[u8]) {
    static CHECKS: OnceLock<(Arc<TlsCheck>, Arc<HttpCheck>)> = OnceLock::new();
    let [which, seed, answer @ ..] = data else { return };
    let (handshake, https) = CHECKS.get_or_init(|| {
        let tls = TlsSettings { trust: Trust::Insecure, ..TlsSettings::default() };
        let handshake = TlsCheck::new(tls.clone()).expect("valid");
        let https = HttpCheck::new(HttpSettings { tls: Some(tls), ..HttpSettings::default() }).expect("valid");
        (Arc::new(handshake), Arc::new(https))
    });
    let mut random = fastrand::Rng::with_seed(u64::from(*seed));
    let closes = which & 0x80 != 0;
    let mut talk: Box<dyn Talk> = match which & 1 {
        0 => Box::new(tls::Handshaking::new(handshake.clone())),
        _ => {
            let client = https.tls().expect("it speaks TLS").clone();
            Box::new(tls::Wrapped::new(client, Asking::new(https.clone())))
        }
    };
    feed(&mut *talk, answer, closes, || random.usize(1..4096));
}

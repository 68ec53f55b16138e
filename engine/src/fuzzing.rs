//! Doors for scripts/fuzz, and for nobody else: each takes the bytes a peer might send, feeds them to a conversation, and
//! panics where a promise is broken.

use crate::check::{
    Content, HttpCheck, HttpSettings, Method, MysqlAsk, MysqlCheck, MysqlColumn, MysqlTls, MysqlValue, Redirects,
    Secret, TlsCheck, TlsClient, TlsSettings, Trust,
};
use crate::io::SAY_MAX;
use crate::outcome::Code;
use crate::probe::talk::{Next, Peer, Talk};
use crate::probe::{http::Asking, mysql::LoggingIn, tls};
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

/// A greeting of MariaDB 10.11 and an OK: what most of a conversation comes after.
const GREETING: &[u8] = b"\x5a\0\0\x00\x0a5.5.5-10.11.19-MariaDB\0\x2e\0\0\0abcdefgh\0\xfe\xff\x2d\x02\0\xff\xc1\x15\
    \0\0\0\0\0\0\x1d\0\0\0ijklmnopqrst\0mysql_native_password\0";
const LOGGED_IN: &[u8] = b"\x07\0\0\x02\0\0\0\x02\0\0\0";

fn mysql_checks() -> &'static [Arc<MysqlCheck>] {
    static CHECKS: OnceLock<Vec<Arc<MysqlCheck>>> = OnceLock::new();
    CHECKS.get_or_init(|| {
        let user = || MysqlCheck::new("monitor", Secret::new("sesame")).expect("valid").taking_server_key(true);
        let asking = |ask| user().asking(ask).expect("valid");
        let expect = MysqlValue { column: MysqlColumn::Name("value".into()), value: "1".into() };
        let tls = TlsSettings { trust: Trust::Insecure, ..TlsSettings::default() };
        let checks = [
            user(),
            asking(MysqlAsk::IsPrimary),
            asking(MysqlAsk::Statement { sql: "select 1".into(), expect: None }),
            asking(MysqlAsk::Statement { sql: "select 1".into(), expect: Some(expect) }),
            user().taking_server_key(false),
            user().over(MysqlTls::Preferred(TlsClient::new(tls).expect("valid"))),
        ];
        checks.map(Arc::new).into()
    })
}

/// The first byte chooses the check and how far it has come, the second how pieces are cut; the rest is what the server
/// says next.
pub fn mysql(data: &[u8]) {
    let [which, seed, words @ ..] = data else { return };
    let checks = mysql_checks();
    let check = &checks[usize::from(which & 0x0f) % checks.len()];
    let closes = which & 0x80 != 0;
    let before: &[&[u8]] = match which & 0x30 {
        0x00 => &[],
        0x10 => &[GREETING],
        _ => &[GREETING, LOGGED_IN],
    };
    let words = [&before.concat(), words].concat();
    let mut random = fastrand::Rng::with_seed(u64::from(*seed));
    let cut = feed(&mut LoggingIn::new(check.clone()), &words, closes, || random.usize(1..64));
    // TLS begins where a piece ends, or not at all.
    if !matches!(check.tls(), MysqlTls::Preferred(_)) {
        let whole = feed(&mut LoggingIn::new(check.clone()), &words, closes, || usize::MAX);
        assert_eq!(whole, cut, "the same words, whole and in pieces");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words that a fuzzed conversation begins with lead where they should.
    #[test]
    fn the_given_words_are_a_login() {
        let whole = |words: &[u8]| feed(&mut LoggingIn::new(mysql_checks()[0].clone()), words, true, || usize::MAX);
        assert_eq!(whole(&[GREETING, LOGGED_IN].concat()), (Code::L7Ok, 0));
    }
}

//! Accounts through their lives, with a clock of our own.

use super::*;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const START_MS: u64 = 1_800_000_000_000;

struct Time(Arc<AtomicU64>);

impl Time {
    fn start() -> (Time, Clock) {
        let now = Arc::new(AtomicU64::new(START_MS));
        let read = now.clone();
        (Time(now), Arc::new(move || read.load(Ordering::Relaxed)))
    }

    fn passes(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

fn required() -> (Time, Access) {
    let (time, clock) = Time::start();
    (time, Access::open(&Options { required: true, clock, ..Options::default() }).unwrap())
}

async fn add(access: &Access, user: &str, grants: &[&str]) {
    let grants = grants.iter().map(|g| (*g).to_owned()).collect();
    let password = Some(Password("correct horse".into()));
    access.change(Change::Add { user: user.into(), password, grants }).await.unwrap();
}

async fn grant(access: &Access, to: &str, grants: &[&str]) -> Result<(), Refused> {
    let grants = grants.iter().map(|g| (*g).to_owned()).collect();
    access.change(Change::Grant { to: to.into(), grants }).await.map(drop)
}

async fn log_in(access: &Access, user: &str) -> String {
    access.log_in(None, user, "correct horse").await.unwrap().token
}

/// A session holds until its time is over, its user has another password, or its user is gone; an API token until its own
/// time is over, it is revoked, or its user is gone.
#[tokio::test]
async fn tokens_end() {
    let (time, access) = required();
    add(&access, "root", &["admin"]).await;
    add(&access, "alice", &["dev:write"]).await;
    let who = |token: &str| access.principal(Some(token)).map(|p| p.name().to_string());
    let session = log_in(&access, "alice").await;
    let token = Change::Token { user: "alice".into(), name: "ci".into(), seconds: 86_400 };
    let token = access.change(token).await.unwrap().unwrap();
    assert_eq!((who(&session), who(&token)), (Ok("alice".into()), Ok("alice".into())));
    assert_eq!(access.principal(None).map(drop), Err(Unknown::Missing));
    assert_eq!(who(""), Err(Unknown::Missing));

    time.passes(SESSION_DEFAULT - Duration::from_millis(1));
    assert_eq!(who(&session), Ok("alice".into()));
    time.passes(Duration::from_millis(1));
    assert_eq!((who(&session), who(&token)), (Err(Unknown::Expired), Ok("alice".into())));

    let session = log_in(&access, "alice").await;
    let password = Password("another horse".into());
    access.change(Change::Password { user: "alice".into(), password }).await.unwrap();
    assert_eq!((who(&session), who(&token)), (Err(Unknown::Invalid), Ok("alice".into())));
    assert_eq!(access.log_in(None, "alice", "correct horse").await.err(), Some(LoginError::Wrong));

    time.passes(Duration::from_secs(86_400) - SESSION_DEFAULT);
    assert_eq!(who(&token), Err(Unknown::Expired));
    let second = Change::Token { user: "alice".into(), name: "cd".into(), seconds: 60 };
    let second = access.change(second).await.unwrap().unwrap();
    let tokens = access.list().into_iter().find(|u| u.name == "alice").unwrap().tokens;
    assert_eq!(tokens.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["cd"], "the one that is over is gone");
    access.change(Change::RevokeToken { id: tokens[0].id.clone() }).await.unwrap();
    assert_eq!(who(&second), Err(Unknown::Invalid));

    let session = access.log_in(None, "alice", "another horse").await.unwrap().token;
    let third = Change::Token { user: "alice".into(), name: "cd".into(), seconds: 60 };
    let third = access.change(third).await.unwrap().unwrap();
    access.change(Change::Remove { user: "alice".into() }).await.unwrap();
    assert_eq!((who(&session), who(&third)), (Err(Unknown::Invalid), Err(Unknown::Invalid)));
    add(&access, "alice", &["dev:write"]).await;
    assert!(who(&third).is_err() && who(&session).is_err(), "a new user of the same name is another one");
}

/// No bit of a session can be changed, no other registry's is believed, and no nonsense is.
#[tokio::test]
async fn sessions_cannot_be_forged() {
    let (_, access) = required();
    add(&access, "alice", &["dev:read"]).await;
    add(&access, "alicf", &["admin"]).await;
    let good = log_in(&access, "alice").await;
    for at in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(bytes).unwrap();
        // The last letters of base64 may have bits that say nothing; the decoder takes none of those.
        assert!(access.principal(Some(&forged)).is_err(), "letter {at}");
    }
    let (_, other) = required();
    add(&other, "alice", &["admin"]).await;
    assert_eq!(access.principal(Some(&log_in(&other, "alice").await)).map(drop), Err(Unknown::Invalid));
    for nonsense in ["rss_", "rsk_", "rss_AAAA", "AUTH_DISABLED", "x", &"rss_A".repeat(10_000), "rss_\u{fc}"] {
        assert_eq!(access.principal(Some(nonsense)).map(drop), Err(Unknown::Invalid), "{nonsense:.20}");
    }
}

/// Who may what where: table.
#[tokio::test]
async fn rights() {
    let (_, access) = required();
    grant(&access, "role:ops", &["prod:write", "test-*:read"]).await.unwrap();
    for (user, grants) in [
        ("root", &["admin"][..]),
        ("reader", &["dev:read"]),
        ("writer", &["dev:write"]),
        ("all", &["*:read"]),
        ("ops", &["role:ops"]),
        ("nothing", &[]),
    ] {
        add(&access, user, grants).await;
    }
    let table = [
        ("root", "anything", true, true),
        ("reader", "dev", true, false),
        ("reader", "dev2", false, false),
        ("reader", "public", false, false),
        ("writer", "dev", true, true),
        ("all", "dev", true, false),
        ("ops", "prod", true, true),
        ("ops", "test-1", true, false),
        ("ops", "test", false, false),
        ("ops", "test-1,prod2", false, false),
        ("ops", "test-*", true, false),
        ("all", "*", true, false),
        ("ops", "*", false, false),
        ("nothing", "public", false, false),
    ];
    for (user, namespace, read, write) in table {
        let principal = access.principal(Some(&log_in(&access, user).await)).unwrap();
        let may = (principal.may(namespace, Action::Read), principal.may(namespace, Action::Write));
        assert_eq!(may, (read, write), "{user} in {namespace}");
        assert_eq!(principal.is_admin(), user == "root");
        assert_eq!(principal.may_everywhere(Action::Read), matches!(user, "root" | "all"), "{user}");
        assert_eq!(principal.may_somewhere(Action::Read), user != "nothing", "{user}");
    }
    // What is taken away is gone at once, for those who are logged in too.
    let ops = log_in(&access, "ops").await;
    let grants = vec!["prod:write".to_owned(), "test-*:read".to_owned()];
    access.change(Change::Revoke { from: "role:ops".into(), grants }).await.unwrap();
    assert!(!access.principal(Some(&ops)).unwrap().may_somewhere(Action::Read));
    assert!(!access.list().iter().any(|l| l.name == "role:ops" || l.grants.contains(&"role:ops".to_owned())));
}

/// What cannot be is refused with a sentence, and changes nothing: table.
#[tokio::test]
async fn what_cannot_be() {
    let (_, access) = required();
    add(&access, "root", &["admin"]).await;
    let before = access.list();
    let user = |user: &str, password: &str, grants: &[&str]| Change::Add {
        user: user.into(),
        password: Some(Password(password.into())),
        grants: grants.iter().map(|g| (*g).to_owned()).collect(),
    };
    let good = "long enough";
    let revoke = |from: &str, what: &str| Change::Revoke { from: from.into(), grants: vec![what.into()] };
    let token = |user: &str, seconds| Change::Token { user: user.into(), name: "t".into(), seconds };
    for (change, says) in [
        (user("", good, &[]), "1 to 64"),
        (user("a/b", good, &[]), "1 to 64"),
        (user("a\0b", good, &[]), "1 to 64"),
        (user("root", good, &[]), "already"),
        (user("bob", "short", &[]), "8 to 256"),
        (user("bob", &"x".repeat(257), &[]), "8 to 256"),
        (user("bob", good, &["dev:admin"]), "NAMESPACE:read"),
        (user("bob", good, &["d v:read"]), "NAMESPACE:read"),
        (user("bob", good, &["role:none"]), "no role"),
        (Change::Remove { user: "root".into() }, "last administrator"),
        (Change::Remove { user: "bob".into() }, "no user"),
        (revoke("root", "admin"), "last administrator"),
        (revoke("root", "dev:read"), "not granted"),
        (revoke("role:admin", "dev:read"), "may do everything"),
        (Change::Grant { to: "role:admin".into(), grants: vec!["dev:read".into()] }, "may do everything"),
        (token("root", 0), "holds for"),
        (token("root", u64::MAX), "holds for"),
        (token("bob", 60), "no user"),
        (Change::RevokeToken { id: "0".into() }, "no API token"),
    ] {
        let refused = access.change(change.clone()).await.expect_err(says);
        assert!(refused.to_string().contains(says), "{change:?}: {refused}");
    }
    assert_eq!(access.list(), before);
}

/// The first administrator is made once, where access is required; what is on disk is nobody else's to read, and holds no
/// password; it is there after a restart, sessions too.
#[tokio::test]
async fn the_first_administrator() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let open = |required| Access::open(&Options { required, ..Options::in_folder(folder.path()) }).unwrap();
    assert!(open(false).first_admin().await.unwrap().is_none());
    let access = open(true);
    let first = access.first_admin().await.unwrap().expect("nobody had an account");
    assert!(access.first_admin().await.unwrap().is_none(), "once");
    assert!(!format!("{first:?}").contains(&first.password));
    let session = access.log_in(None, first.name, &first.password).await.unwrap();
    assert!(session.is_admin);
    let path = folder.path().join("accounts.redb");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = std::fs::read(&path).unwrap();
    let holds = |text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(holds("$argon2id$") && !holds(&first.password) && !holds(&session.token));
    access.stop();
    let again = open(true);
    assert!(again.first_admin().await.unwrap().is_none());
    assert!(again.principal(Some(&session.token)).unwrap().is_admin());
    std::fs::write(&path, b"nonsense").unwrap();
    let error = Access::open(&Options::in_folder(folder.path())).err().expect("it is no store").to_string();
    assert!(error.contains("accounts.redb"), "{error}");
}

/// Wrong passwords are limited for an address and for a user, the right one too while they are; others are not touched, and
/// time heals it. A user who is not there is as wrong as any.
#[tokio::test]
async fn guesses_are_limited() {
    let (_, access) = required();
    add(&access, "alice", &["admin"]).await;
    add(&access, "bob", &["dev:read"]).await;
    let start = Instant::now();
    let at = |s: u64, from: &str, user: &str, password: &str| {
        let (from, now) = (from.parse().ok(), start + Duration::from_secs(s));
        let (access, user, password) = (access.clone(), user.to_owned(), password.to_owned());
        async move { access.log_in_at(move || now, from, &user, &password).await.map(drop) }
    };
    let good = "correct horse";
    for _ in 0..5 {
        assert_eq!(at(0, "10.0.0.1", "alice", "wrong horse").await, Err(LoginError::Wrong));
        assert_eq!(at(0, "10.0.0.1", "nobody", good).await, Err(LoginError::Wrong));
    }
    let limited = at(0, "10.0.0.1", "alice", good).await;
    assert!(matches!(limited, Err(LoginError::TooMany(wait)) if wait > Duration::ZERO), "{limited:?}");
    assert_eq!(at(0, "10.0.0.2", "alice", good).await, Ok(()), "another address");
    assert_eq!(at(6, "10.0.0.1", "alice", good).await, Ok(()), "later");
    // From everywhere: 25 more are wrong, and then nobody gets in as alice for a while, but bob does.
    for i in 0..25 {
        let from = format!("10.1.0.{i}");
        assert_eq!(at(6, &from, "alice", "wrong horse").await, Err(LoginError::Wrong), "{i}");
    }
    for i in 0..3 {
        let _ = at(6, &format!("10.2.0.{i}"), "alice", "wrong horse").await;
    }
    assert!(matches!(at(6, "10.3.0.1", "alice", good).await, Err(LoginError::TooMany(_))));
    assert_eq!(at(6, "10.3.0.1", "bob", good).await, Ok(()));
    assert_eq!(at(60, "10.3.0.1", "alice", good).await, Ok(()));
}

/// Whoever changes accounts is noted, with what, and without any secret.
#[tokio::test]
async fn changes_are_noted() {
    let folder = tempfile::tempdir().unwrap();
    let path = audit_file_in(folder.path());
    let (_, clock) = Time::start();
    let audit = Some(AuditOptions::new(path.clone()));
    let access = Access::open(&Options { required: true, audit, clock, ..Options::default() }).unwrap();
    add(&access, "root", &["admin"]).await;
    let root = access.principal(Some(&log_in(&access, "root").await)).unwrap();
    let peer = Some("10.0.0.9:1234".parse().unwrap());
    let actor = Actor { access: access.clone(), principal: root, peer, via: "http" };
    let secret = actor
        .scope(async {
            add(&access, "bob", &["dev:read"]).await;
            let token = Change::Token { user: "bob".into(), name: "ci".into(), seconds: 60 };
            access.change(token).await.unwrap().unwrap()
        })
        .await;
    access.note_login(peer, "eve", Err(LoginError::Wrong));
    access.note_denied(None, peer, "grpc", "InstanceRequest", Unknown::Missing.as_str());
    access.stop();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let seen: Vec<_> = lines
        .iter()
        .map(|l| {
            let of = |name: &str| l[name].as_str().unwrap_or("-").to_owned();
            [of("who"), of("address"), of("via"), of("action"), of("subject"), of("detail"), of("outcome")].join("|")
        })
        .collect();
    assert_eq!(
        seen,
        [
            "|-|socket|user add|root|admin|ok",
            "root|10.0.0.9:1234|http|user add|bob|dev:read|ok",
            "root|10.0.0.9:1234|http|user token|bob|ci, 60 s|ok",
            "|10.0.0.9:1234|http|login|eve|-|unknown user!",
            "|10.0.0.9:1234|grpc|denied|-|InstanceRequest|missing",
        ]
    );
    assert!(lines.iter().all(|l| l["time"] == "2027-01-15T08:00:00.000Z"));
    assert!(!text.contains(&secret) && !text.contains("horse") && !text.contains("argon2"));
}

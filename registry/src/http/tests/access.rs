//! Who may ask what: every route that the router has, every place where a token or a namespace can be said.

use super::*;
use crate::access::{Access, AuditOptions, Change, Options as AccessOptions, Password, Rate, Rates, audit_file_in};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

struct Guarded {
    api: Api,
    access: Access,
    tokens: BTreeMap<&'static str, String>,
}

const PASSWORD: &str = "correct horse";

/// A registry that asks who is there, and one user of each kind.
async fn guarded(options: AccessOptions) -> Guarded {
    let access = Access::open(&AccessOptions { required: true, ..options }).unwrap();
    let registry = Registry::open(&RegistryOptions::default()).unwrap();
    let events = Events::default();
    tokio::spawn(events.clone().run(registry.clone()));
    let router = router(registry.clone(), Options { access: access.clone(), events, ..Options::default() });
    let api = Api { registry, router };
    let mut tokens = BTreeMap::new();
    for (user, grants) in [
        ("root", &["admin"][..]),
        ("reader", &["dev:read"]),
        ("writer", &["dev:write"]),
        ("watcher", &["*:read"]),
        ("nothing", &[]),
    ] {
        let grants = grants.iter().map(|g| (*g).to_owned()).collect();
        let password = Some(Password(PASSWORD.into()));
        access.change(Change::Add { user: user.into(), password, grants }).await.unwrap();
        tokens.insert(user, access.log_in(None, user, PASSWORD).await.unwrap().token);
    }
    Guarded { api, access, tokens }
}

impl Guarded {
    /// `"POST /path?query"`, by a user or by nobody.
    async fn by(&self, user: &str, line: &str) -> (u16, String) {
        let (status, _, body) = self.full(user, line, "").await;
        (status, body)
    }

    async fn full(&self, user: &str, line: &str, form: &str) -> (u16, HeaderMap, String) {
        let (method, uri) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(token) = self.tokens.get(user) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if !form.is_empty() {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        }
        let mut request = request.body(Body::from(form.to_owned())).unwrap();
        request.extensions_mut().insert(ConnectInfo::<SocketAddr>("10.0.0.9:4711".parse().unwrap()));
        let response = self.api.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        if headers.get("content-type").is_some_and(|t| t == "text/event-stream") {
            return (status, headers, String::new());
        }
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, headers, String::from_utf8(body.to_vec()).unwrap())
    }
}

/// Every path that the router has, as its own description says.
fn paths(router: &Router) -> BTreeSet<String> {
    let text = format!("{router:?}");
    let paths = text.split('"').filter(|part| part.starts_with('/')).map(str::to_owned);
    // A fallback is a route to axum, too.
    paths.filter(|p| !p.contains("__private__axum") && p.len() > 1).collect()
}

const METHODS: [Method; 6] = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::PATCH];

/// Without an account nobody is told anything but whether the server is well, and how to log in; with one that has no
/// rights, nothing about any namespace; with rights in one namespace, nothing about another. On every path that the router
/// has, with every method.
#[tokio::test]
async fn every_route_asks() {
    let world = guarded(AccessOptions::default()).await;
    let all = paths(&world.api.router);
    assert!(all.len() > 70, "all routes are found: {all:?}");
    assert!(all.contains("/api/v1/services/{namespace}/{group}/{name}") && all.contains("/metrics"));
    let open: BTreeSet<&str> = [
        "/api/v1/health",
        "/api/v1/login",
        "/nacos/v1/auth/login",
        "/nacos/v1/auth/users/login",
        "/nacos/v1/console/health/liveness",
        "/nacos/v1/console/health/readiness",
        "/nacos/v1/console/server/state",
        "/nacos/v2/console/health/liveness",
        "/nacos/v2/console/health/readiness",
        "/nacos/v3/admin/core/state",
        "/nacos/v3/admin/core/state/liveness",
        "/nacos/v3/admin/core/state/readiness",
        "/nacos/v3/auth/user/login",
    ]
    .into();
    // Of no namespace: for whoever has an account.
    let of_nobody = |path: &str| {
        let rest = ["v1", "v2", "v3/admin"].iter().find_map(|v| path.strip_prefix(&format!("/nacos/{v}/")));
        let rest = rest.unwrap_or_default();
        ["core/cluster/", "ns/operator/", "ns/ops/"].iter().any(|p| rest.starts_with(p))
            || ["ns/health/server", "ns/health/checkers", "ns/service/selector/types"].contains(&rest)
            // Filtered by the handler.
            || ["console/namespaces", "console/namespace/list", "core/namespace/list"].contains(&rest)
            || matches!(
                path,
                "/api/v1/me" | "/metrics" | "/api/v1/openapi.json" | "/api/v1/cluster" | "/api/v1/namespaces"
            )
            || matches!(path, "/nacos/v1/auth/users" | "/nacos/v3/auth/user")
    };
    assert!(open.iter().all(|path| all.contains(*path)), "what is open is there");
    let mut asked = 0;
    for path in &all {
        for method in METHODS {
            let at = |namespace: &str| {
                let real = path.replace("{namespace}", namespace).replace(['{', '}'], "");
                format!(
                    "{method} {real}?namespaceId={namespace}&namespace={namespace}&key={namespace}%23%23web&serviceName=web&ip=10.0.0.1&port=80"
                )
            };
            let is_open = open.contains(path.as_str());
            let (status, body) = world.by("nobody", &at("dev")).await;
            let is_denied = status == 403 || status == 401;
            let reads = matches!(method, Method::GET | Method::HEAD);
            if is_open {
                let may = reads || path.ends_with("/login");
                assert!(!may || !is_denied, "{method} {path} is open: {status} {body}");
            } else {
                assert!(is_denied, "{method} {path} without a token: {status} {body}");
            }
            if is_open || of_nobody(path) {
                continue;
            }
            for (user, namespace) in [("nothing", "dev"), ("reader", "prod"), ("writer", "prod"), ("reader", "dev1")] {
                let (status, body) = world.by(user, &at(namespace)).await;
                assert_eq!(status, 403, "{method} {path} by {user} in {namespace}: {body}");
            }
            if !reads {
                let (status, body) = world.by("reader", &at("dev")).await;
                assert_eq!(status, 403, "{method} {path} by a reader: {body}");
            }
            asked += 1;
        }
    }
    assert!(asked > 200, "{asked}");
    // And whoever may, may.
    for user in ["root", "reader", "writer", "watcher"] {
        for line in [
            "GET /nacos/v1/ns/instance/list?serviceName=web&namespaceId=dev",
            "GET /nacos/v2/ns/service/list?namespaceId=dev",
            "GET /nacos/v3/client/ns/instance/list?serviceName=web&namespaceId=dev",
            "GET /api/v1/services?namespace=dev",
            "GET /api/v1/events?namespace=dev",
            "GET /metrics",
        ] {
            let (status, body) = world.by(user, line).await;
            assert_eq!(status, 200, "{line} by {user}: {body}");
        }
    }
    let register = "POST /nacos/v1/ns/instance?serviceName=web&ip=10.0.0.1&port=80&ephemeral=false";
    for (user, namespace, want) in [("writer", "dev", 200), ("root", "prod", 200), ("watcher", "dev", 403)] {
        let (status, body) = world.by(user, &format!("{register}&namespaceId={namespace}")).await;
        assert_eq!(status, want, "{user} in {namespace}: {body}");
    }
    // Lists of all namespaces: for who may read all of them; names of namespaces: those that one may read.
    for line in ["GET /nacos/v1/ns/service/names", "GET /api/v1/events", "GET /api/v1/events?namespace=dev,prod"] {
        assert_eq!((world.by("reader", line).await.0, world.by("watcher", line).await.0), (403, 200), "{line}");
    }
    let (_, named) = world.by("reader", "GET /nacos/v1/console/namespaces").await;
    assert!(named.contains("\"dev\"") && !named.contains("\"prod\""), "{named}");
}

/// A token is taken from wherever clients put it, and from nowhere else; nothing else opens a door: neither what Nacos'
/// servers say to each other, nor a password, nor names that proxies use.
#[tokio::test]
async fn a_token_and_nothing_else() {
    let world = guarded(AccessOptions::default()).await;
    let token = &world.tokens["reader"];
    let uri = "/nacos/v1/ns/instance/list?serviceName=web&namespaceId=dev";
    let status = async |uri: &str, headers: &[(&str, &str)], form: &str| {
        let mut request = Request::builder().method("GET").uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        world.api.send(request.body(Body::from(form.to_owned())).unwrap()).await.0
    };
    let bearer = format!("Bearer {token}");
    assert_eq!(status(uri, &[("authorization", &bearer)], "").await, 200);
    assert_eq!(status(uri, &[("accessToken", token)], "").await, 200);
    assert_eq!(status(&format!("{uri}&accessToken={token}"), &[], "").await, 200);
    assert_eq!(status(uri, &[], &format!("accessToken={token}")).await, 200);
    let basic = "Basic cm9vdDpjb3JyZWN0IGhvcnNl";
    for headers in [
        &[("serverIdentity", "security")][..],
        &[("User-Agent", "Nacos-Server")],
        &[("User-Agent", "Nacos-Server"), ("serverIdentity", "security"), ("nacos.core.auth.server.identity.key", "x")],
        &[("authKey", "nacosSecurty")],
        &[("Authorization", basic)],
        &[("Authorization", token)],
        &[("X-Forwarded-For", "127.0.0.1"), ("X-Real-IP", "127.0.0.1")],
        &[("X-Forwarded-User", "root"), ("Remote-User", "root")],
        &[("Cookie", &bearer)],
    ] {
        assert_eq!(status(uri, headers, "").await, 403, "{headers:?}");
    }
    // A token signed with a key that Nacos once had by default.
    let jwt =
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJuYWNvcyIsImV4cCI6OTk5OTk5OTk5OX0.00LxfkpzYpdVeojTfqMhtpPvNidpNcDoLU90MnHzA8Q";
    assert_eq!(status(&format!("{uri}&accessToken={jwt}"), &[], "").await, 403);
}

/// One namespace cannot be asked about and another one touched: what is asked about is what the handler takes.
#[tokio::test]
async fn a_namespace_cannot_be_smuggled() {
    let world = guarded(AccessOptions::default()).await;
    let names = "serviceName=web&ip=10.0.0.1&port=80&ephemeral=false";
    let at = |namespace: &str| {
        let key = ServiceKey::new(namespace, "", "web").unwrap();
        world.api.registry.snapshot().service(&key).is_some()
    };
    let post = async |query: &str, form: &str| world.full("writer", &format!("POST {INSTANCE}?{query}"), form).await.0;
    assert_eq!(post("", &format!("{names}&namespaceId=prod")).await, 403);
    assert_eq!(post(names, "namespaceId=prod").await, 403);
    assert_eq!(post("namespaceId=prod", &format!("{names}&namespaceId=dev")).await, 403);
    assert_eq!(post(&format!("{names}&namespaceId=prod&namespaceId=dev"), "").await, 403);
    assert_eq!(post(names, "").await, 403, "the default one is not his either");
    assert_eq!(post(&format!("{names}&namespaceId=dev*"), "").await, 403);
    assert!(!at("prod") && !at("public") && !at("dev"));
    assert_eq!(post(&format!("{names}&namespaceId=dev&namespaceId=prod"), "namespaceId=prod").await, 200);
    assert!(at("dev") && !at("prod"));
    // The registry asks by itself: a handler that forgot to would change nothing.
    let principal = world.access.principal(Some(&world.tokens["writer"])).unwrap();
    let actor = crate::access::Actor { access: world.access.clone(), principal, peer: None, via: "http" };
    let service = ServiceKey::new("prod", "", "web").unwrap();
    let refused = actor.scope(world.api.registry.submit(Command::DeleteService { service })).await.unwrap_err();
    assert!(refused.to_string().contains("No permission to write in namespace prod"), "{refused}");
}

/// Refusals in each API's own words, as its clients understand them.
#[tokio::test]
async fn refusals_are_understood() {
    let world = guarded(AccessOptions::default()).await;
    let (status, text) = world.by("nobody", "GET /nacos/v1/ns/instance/list?serviceName=web").await;
    assert_eq!((status, text.starts_with("user not found!")), (403, true), "{text}");
    let (status, text) = world.by("reader", "GET /nacos/v1/ns/instance/list?serviceName=web").await;
    assert_eq!((status, text.starts_with("authorization failed!")), (403, true), "{text}");
    for version in ["v2/ns", "v3/client/ns"] {
        let (status, text) = world.by("nobody", &format!("GET /nacos/{version}/instance/list?serviceName=web")).await;
        let said: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &said["code"], &said["message"]), (403, &10_001.into(), &"access denied".into()), "{text}");
    }
    let (status, headers, _) = world.full("nobody", "GET /api/v1/services", "").await;
    assert_eq!((status, headers["www-authenticate"].to_str().unwrap()), (401, "Bearer"));
    assert_eq!(world.by("reader", "GET /api/v1/services").await.0, 403);

    for path in ["v1/auth/login", "v1/auth/users/login", "v3/auth/user/login"] {
        let login = |user: &str, password: &str| format!("username={user}&password={}", password.replace(' ', "+"));
        let line = format!("POST /nacos/{path}");
        let (status, headers, text) = world.full("nobody", &line, &login("root", PASSWORD)).await;
        let said: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &said["tokenTtl"], &said["globalAdmin"]), (200, &18_000.into(), &true.into()), "{text}");
        assert_eq!(said["username"], "root");
        let token = said["accessToken"].as_str().unwrap();
        assert_eq!(headers["authorization"], format!("Bearer {token}"));
        assert!(world.access.principal(Some(token)).unwrap().is_admin());
        let (status, text) = world.by("nobody", &format!("{line}?{}", login("reader", PASSWORD))).await;
        assert_eq!((status, serde_json::from_str::<Value>(&text).unwrap()["globalAdmin"] == false), (200, true));
        for (user, password) in [("root", "wrong horse"), ("no-one", PASSWORD)] {
            let (status, text) = world.by("nobody", &format!("{line}?{}", login(user, password))).await;
            assert_eq!((status, &*text), (403, "unknown user!"), "{user}");
        }
    }
}

/// Nacos' scripts for users, roles and permissions; whoever is made by them can do what they say.
#[tokio::test]
async fn nacos_administration() {
    let mut world = guarded(AccessOptions::default()).await;
    let auth = "/nacos/v1/auth";
    for line in [
        format!("POST {auth}/users?username=app&password=secretsecret"),
        format!("POST {auth}/permissions?role=devs&resource=test:*:*&action=rw"),
        format!("POST {auth}/roles?role=devs&username=app"),
    ] {
        assert_eq!(world.by("writer", &line).await.0, 403, "{line}");
        let (status, body) = world.by("root", &line).await;
        assert_eq!(
            (status, serde_json::from_str::<Value>(&body).unwrap()["code"] == 200),
            (200, true),
            "{line}: {body}"
        );
    }
    let json = async |line: &str| serde_json::from_str::<Value>(&world.by("root", line).await.1).unwrap();
    let users = json(&format!("GET {auth}/users?pageNo=1&pageSize=10&search=accurate&username=app")).await;
    assert_eq!((&users["totalCount"], &users["pageItems"][0]), (&1.into(), &serde_json::json!({ "username": "app" })));
    let roles = json(&format!("GET {auth}/roles?pageNo=1&pageSize=10&username=app")).await;
    assert_eq!(roles["pageItems"][0]["role"], "devs");
    let admins = json(&format!("GET {auth}/roles?role=ROLE_ADMIN")).await;
    assert_eq!(admins["pageItems"][0]["username"], "root");
    let permissions = json("GET /nacos/v3/auth/permission/list?role=devs").await;
    let want = serde_json::json!({ "role": "devs", "resource": "test:*:*", "action": "rw" });
    assert_eq!(permissions["data"]["pageItems"][0], want);

    let (_, said) = world.by("nobody", "POST /nacos/v1/auth/login?username=app&password=secretsecret").await;
    let token = serde_json::from_str::<Value>(&said).unwrap()["accessToken"].as_str().unwrap().to_owned();
    world.tokens.insert("app", token);
    let register = "POST /nacos/v1/ns/instance?serviceName=web&ip=10.0.0.1&port=80&namespaceId=test";
    assert_eq!(world.by("app", register).await, (200, "ok".into()));
    let own = format!("PUT {auth}/users?username=app&newPassword=anothersecret");
    let others = format!("PUT {auth}/users?username=root&newPassword=anothersecret");
    assert_eq!((world.by("app", &others).await.0, world.by("app", &own).await.0), (403, 200));
    assert_eq!(world.by("app", register).await.0, 403, "the session ended with the password");
    for (line, want) in [
        (format!("POST {auth}/permissions?role=devs&resource=test:g:web&action=r"), 400),
        (format!("DELETE {auth}/roles?role=devs&username=app"), 200),
        (format!("DELETE {auth}/permissions?role=devs&resource=test:*:*&action=rw"), 200),
        (format!("DELETE {auth}/users?username=app"), 200),
        (format!("DELETE {auth}/users?username=app"), 404),
        (format!("DELETE {auth}/users?username=root"), 400),
    ] {
        let (status, body) = world.by("root", &line).await;
        assert_eq!(status, want, "{line}: {body}");
    }
    let (_, text) = world.by("root", &format!("GET {auth}/users")).await;
    assert!(!text.contains("argon2") && !text.contains("secret"), "{text}");
}

/// Too many requests of an address, or of a user from everywhere, are told when to come again; others are not touched.
#[tokio::test]
async fn rates_are_limited() {
    let rate = Rate { per_second: 0.001, burst: 3.0 };
    let list = "GET /nacos/v2/ns/instance/list?serviceName=web&namespaceId=dev";
    let world = guarded(AccessOptions {
        rates: Rates { per_address: rate, per_principal: Rate::OFF },
        ..AccessOptions::default()
    })
    .await;
    for _ in 0..3 {
        assert_eq!(world.by("reader", list).await.0, 200);
    }
    let (status, headers, text) = world.full("reader", list, "").await;
    assert_eq!((status, text.contains("\"code\":429")), (429, true), "{text}");
    assert!(headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 100);
    assert_eq!(world.by("nobody", "GET /api/v1/health").await.0, 429, "whatever it asks for");
    let world = guarded(AccessOptions {
        rates: Rates { per_address: Rate::OFF, per_principal: rate },
        ..AccessOptions::default()
    })
    .await;
    for _ in 0..3 {
        assert_eq!(world.by("reader", list).await.0, 200);
    }
    assert_eq!((world.by("reader", list).await.0, world.by("writer", list).await.0), (429, 200));
    let (_, metrics) = world.by("root", "GET /metrics").await;
    assert!(metrics.contains("ringspan_access_limited_total{by=\"user\"} 1"), "{metrics}");
}

/// A body that is too large is refused before it is read, whoever sends it.
#[tokio::test]
async fn bodies_are_limited() {
    let world = guarded(AccessOptions::default()).await;
    let form = format!("serviceName=web&namespaceId=dev&metadata={}", "x".repeat(BODY_BYTES_MAX));
    for user in ["nobody", "writer"] {
        assert_eq!(world.full(user, &format!("POST {INSTANCE}"), &form).await.0, 413, "{user}");
    }
}

/// Who changed what, from where, before and after; who was refused; and no secret in any of it.
#[tokio::test]
async fn changes_are_noted() {
    let folder = tempfile::tempdir().unwrap();
    let path = audit_file_in(folder.path());
    let world =
        guarded(AccessOptions { audit: Some(AuditOptions::new(path.clone())), ..AccessOptions::default() }).await;
    let names = "serviceName=web&ip=10.0.0.1&port=80&ephemeral=false&namespaceId=dev";
    world.by("writer", &format!("POST {INSTANCE}?{names}&weight=2")).await;
    world.by("writer", &format!("PUT {INSTANCE}?{names}&weight=5")).await;
    world.by("reader", &format!("DELETE {INSTANCE}?{names}")).await;
    world.by("writer", &format!("DELETE {INSTANCE}?{}", names.replace("ephemeral=false", "ephemeral=true"))).await;
    let checker = "%7B%22type%22%3A%22MYSQL%22%2C%22user%22%3A%22u%22%2C%22pwd%22%3A%22hush-hush%22%2C%22cmd%22%3A%22select+1%22%7D";
    let cluster = format!(
        "PUT /nacos/v1/ns/cluster?serviceName=web&clusterName=DEFAULT&namespaceId=dev&checkPort=1&useInstancePort4Check=true&healthChecker={checker}"
    );
    let (status, body) = world.by("writer", &cluster).await;
    assert_eq!(status, 200, "{body}");
    world.by("nobody", "POST /nacos/v1/auth/login?username=root&password=hush-hush").await;
    world.access.stop();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let lines: Vec<&Value> = lines.iter().filter(|l| l["action"] != "user add").collect();
    let actions: Vec<_> = lines.iter().map(|l| (l["who"].as_str().unwrap(), l["action"].as_str().unwrap())).collect();
    let want = [
        ("writer", "register"),
        ("writer", "update"),
        ("reader", "denied"),
        ("writer", "deregister"),
        ("writer", "cluster put"),
        ("", "login"),
    ];
    assert_eq!(actions, want);
    assert_eq!((lines[0]["before"].is_null(), &lines[0]["after"]["weight"]), (true, &2.0.into()));
    assert_eq!((&lines[1]["before"]["weight"], &lines[1]["after"]["weight"]), (&2.0.into(), &5.0.into()));
    let place = |l: &Value| {
        [&l["namespace"], &l["service"], &l["instance"], &l["address"]].map(|v| v.as_str().unwrap_or("").to_owned())
    };
    assert_eq!(place(lines[1]), ["dev", "web", "10.0.0.1:80 in DEFAULT", "10.0.0.9:4711"].map(str::to_owned));
    assert!(lines[3]["outcome"].as_str().unwrap().contains("not removed"), "{}", lines[3]);
    assert_eq!(lines[4]["after"]["clusters"]["DEFAULT"]["checker"], "mysql");
    assert!(!text.contains("hush") && !text.contains("rss_") && !text.contains("horse"), "{text}");
}

/// A stream of events ends when its reader is shut out.
#[tokio::test]
async fn streams_end() {
    let world = guarded(AccessOptions::default()).await;
    let uri = format!("/api/v1/events?namespace=dev&accessToken={}", world.tokens["reader"]);
    let request = Request::builder().uri(uri).body(Body::empty()).unwrap();
    let response = world.api.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let change = Change::Revoke { from: "reader".into(), grants: vec!["dev:read".into()] };
    world.access.change(change).await.unwrap();
    // The next thing that it would have been told it is not.
    let register = "POST /nacos/v1/ns/instance?serviceName=web&ip=10.0.0.1&port=80&namespaceId=dev";
    assert_eq!(world.by("writer", register).await.0, 200);
    let rest = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    assert_eq!(rest.len(), 0);
}

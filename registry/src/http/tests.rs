//! The API as its clients meet it: requests to the router, no socket.

mod access;
mod hostile;
mod ops;
mod v2;

use super::*;
use crate::health::{Health, Reason};
use crate::model::{InstanceId, ServiceKey};
use crate::service::Options as RegistryOptions;
use crate::table::{Command, Delta, Exposed};
use axum::body::Body;
use ringspan_engine::outcome::Code;
use serde_json::Value;
use tower::ServiceExt;

struct Api {
    registry: Registry,
    router: Router,
}

impl Api {
    fn new() -> Api {
        let registry = Registry::open(&RegistryOptions::default()).unwrap();
        let stats: ProbeStats = Arc::new(ringspan_engine::stats::Stats::default);
        let router = router(registry.clone(), Options { probe_stats: Some(stats), ..Options::default() });
        Api { registry, router }
    }

    async fn send(&self, request: axum::http::Request<Body>) -> (u16, String) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// `"POST /path?query"`.
    async fn call(&self, line: &str) -> (u16, String) {
        let (method, uri) = line.split_once(' ').unwrap();
        self.send(axum::http::Request::builder().method(method).uri(uri).body(Body::empty()).unwrap()).await
    }

    async fn ok(&self, line: &str) {
        assert_eq!(self.call(line).await, (200, "ok".into()), "{line}");
    }

    async fn json(&self, line: &str) -> Value {
        let (status, body) = self.call(line).await;
        assert_eq!(status, 200, "{line}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Ports and healths in a list's answer.
    async fn list(&self, query: &str) -> Vec<(u64, bool)> {
        let info = self.json(&format!("GET /nacos/v1/ns/instance/list?{query}")).await;
        let hosts = info["hosts"].as_array().unwrap().iter();
        hosts.map(|h| (h["port"].as_u64().unwrap(), h["healthy"].as_bool().unwrap())).collect()
    }

    /// Registers persistent instances of "web" at these ports and tells what the prober found.
    async fn web(&self, ports: &[(u16, Health)]) {
        let mut deltas = Vec::new();
        for (port, health) in ports {
            self.ok(&format!("POST {INSTANCE}?serviceName=web&ip=10.0.0.1&port={port}&ephemeral=false")).await;
            let (service, id) = (ServiceKey::public("web").unwrap(), InstanceId::new("", "10.0.0.1", *port).unwrap());
            let code = if *health == Health::Up { Code::L4Ok } else { Code::L4Refused };
            let reason = Reason::Probe { code, errno: 0 };
            deltas.push(Delta { service, id, health: *health, reason, rtt_ns: 5_000, due: None });
        }
        self.registry.submit(Command::Heard { deltas }).await.unwrap();
    }
}

const INSTANCE: &str = "/nacos/v1/ns/instance";

/// Register, look, change, list, deregister: every field where clients look for it.
#[tokio::test]
async fn an_instance_through_its_life() {
    let api = Api::new();
    let names = "serviceName=web&ip=10.0.0.1&port=80";
    api.ok(&format!(
        "POST {INSTANCE}?{names}&namespaceId=dev&groupName=g&clusterName=c1&weight=2.5&enabled=true&ephemeral=false\
         &metadata=%7B%22a%22%3A%22b%22%2C%22n%22%3A1%7D"
    ))
    .await;
    let names = "serviceName=g@@web&ip=10.0.0.1&port=80&namespaceId=dev&clusterName=c1";
    let detail = api.json(&format!("GET {INSTANCE}?{names}")).await;
    let want = r#"{"service":"g@@web","ip":"10.0.0.1","port":80,"clusterName":"c1","weight":2.5,"healthy":true,
        "enabled":true,"ephemeral":false,"instanceId":"10.0.0.1#80#c1#g@@web","metadata":{"a":"b","n":"1"}}"#;
    assert_eq!(detail, serde_json::from_str::<Value>(want).unwrap());

    api.ok(&format!("PUT {INSTANCE}?{names}&weight=1&metadata=k=v,l=w")).await;
    api.ok(&format!("PATCH {INSTANCE}?{names}&metadata=k=v")).await;
    let info =
        api.json("GET /nacos/v1/ns/instance/list?serviceName=web&groupName=g&namespaceId=dev&clusters=c1,c2").await;
    let mut want: Value = serde_json::from_str(
        r#"{"name":"g@@web","groupName":"g","clusters":"c1,c2","cacheMillis":10000,"checksum":"","allIPs":false,
        "reachProtectionThreshold":false,"valid":true,"hosts":[{"instanceId":"10.0.0.1#80#c1#g@@web","ip":"10.0.0.1",
        "port":80,"weight":1.0,"healthy":true,"enabled":true,"ephemeral":false,"clusterName":"c1",
        "serviceName":"g@@web","metadata":{"k":"v"},"instanceHeartBeatInterval":5000,
        "instanceHeartBeatTimeOut":15000,"ipDeleteTimeout":30000,"instanceIdGenerator":"simple"}]}"#,
    )
    .unwrap();
    want["lastRefTime"] = info["lastRefTime"].clone();
    assert!(info["lastRefTime"].as_u64().unwrap() > 1_600_000_000_000);
    assert_eq!(info, want);

    api.ok(&format!("PATCH {INSTANCE}?{names}&enabled=false")).await;
    assert_eq!(api.list("serviceName=g@@web&namespaceId=dev").await, [], "disabled ones are not listed");
    api.ok(&format!("DELETE {INSTANCE}?{names}&ephemeral=false")).await;
    api.ok(&format!("DELETE {INSTANCE}?{names}")).await;
    let (status, text) = api.call(&format!("GET {INSTANCE}?{names}")).await;
    assert_eq!((status, text.contains("not found")), (404, true), "{text}");
    assert_eq!(api.list("serviceName=nobody").await, [], "nobody has registered it yet");
}

/// Parameters are taken from a form, too, and from both; the query wins.
#[tokio::test]
async fn parameters_come_from_anywhere() {
    let api = Api::new();
    let form = |method: &str, uri: &str, body: &str, content_type: Option<&str>| {
        let mut request = axum::http::Request::builder().method(method).uri(uri);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        request.body(Body::from(body.to_owned())).unwrap()
    };
    let typed = Some("application/x-www-form-urlencoded; charset=UTF-8");
    let all = "serviceName=web&ip=10.0.0.1&port=80&ephemeral=False&enable=True";
    assert_eq!(api.send(form("POST", INSTANCE, all, typed)).await.0, 200);
    assert_eq!(api.send(form("POST", &format!("{INSTANCE}?port=81"), all, None)).await.0, 200);
    assert_eq!(api.list("serviceName=web").await, [(80, true), (81, true)]);
    assert_eq!(api.send(form("DELETE", INSTANCE, all, typed)).await.0, 200);
    assert_eq!(api.list("serviceName=web").await, [(81, true)]);
    let (status, text) = api.send(form("POST", INSTANCE, all, Some("application/json"))).await;
    assert_eq!((status, &*text), (400, "Param 'ip' is required."));
}

/// What cannot be is answered with 400 and the parameter's name, as text.
#[tokio::test]
async fn bad_requests_are_told_why() {
    let api = Api::new();
    api.ok(&format!("POST {INSTANCE}?serviceName=beats&ip=10.0.0.1&port=80")).await;
    let good = format!("POST {INSTANCE}?serviceName=web&ip=10.0.0.1&port=80");
    let cases = [
        (format!("POST {INSTANCE}?ip=10.0.0.1&port=80"), 400, "'serviceName' is required"),
        (format!("POST {INSTANCE}?serviceName=web&ip=10.0.0.1"), 400, "'port' is required"),
        (format!("POST {INSTANCE}?serviceName=web&ip=db.local&port=80"), 400, "'ip'"),
        (format!("POST {INSTANCE}?serviceName=web&ip=10.0.0.1&port=65536"), 400, "'port'"),
        (format!("{good}&weight=10001"), 400, "'weight'"),
        (format!("{good}&weight=much"), 400, "'weight'"),
        (format!("{good}&ephemeral=maybe"), 400, "'ephemeral'"),
        (format!("{good}&metadata=%7Bx"), 400, "'metadata'"),
        (format!("{good}&metadata=k%3D{}", "v".repeat(1_024)), 400, "should not exceed 1024"),
        (format!("{good}&namespaceId=a/b"), 400, "'namespaceId'"),
        (format!("POST {INSTANCE}?serviceName=beats&ip=10.0.0.1&port=81&ephemeral=false"), 400, "is ephemeral service"),
        (format!("DELETE {INSTANCE}?serviceName=beats&ip=10.0.0.1&port=80&ephemeral=false"), 400, "not removed"),
        (format!("PUT {INSTANCE}?serviceName=web&ip=10.0.0.1&port=80"), 400, "service not found"),
        (format!("PUT {INSTANCE}?serviceName=beats&ip=10.0.0.1&port=81"), 404, "instance not found"),
        ("PUT /nacos/v1/ns/instance/beat?serviceName=web&beat=%7B".into(), 400, "'beat'"),
        ("GET /nacos/v1/ns/service/list?pageNo=0&pageSize=1".into(), 400, "'pageNo'"),
        ("GET /nacos/v1/ns/service?serviceName=web".into(), 404, "service not found"),
        ("GET /nacos/v1/cs/configs?dataId=x".into(), 501, "configuration"),
        ("GET /nacos/v1/auth/nothing".into(), 501, "accounts"),
        ("POST /nacos/v1/auth/login".into(), 400, "username"),
        ("GET /nacos/v2/cs/config".into(), 501, "configuration"),
        ("GET /nacos/v3/client/cs/config".into(), 501, "configuration"),
        ("GET /nacos/v2/ns/instance/list".into(), 400, "10000"),
        ("GET /nacos/v1/ns/nothing".into(), 404, "no such path"),
        ("GET /".into(), 404, "no such path"),
        (format!("OPTIONS {INSTANCE}"), 405, "does not take OPTIONS"),
    ];
    for (line, status, text) in cases {
        let (got, body) = api.call(&line).await;
        assert!(got == status && body.contains(text), "{line}: {got} {body:?}, wanted {status} {text:?}");
    }
    assert_eq!(api.list("serviceName=web").await, []);
}

/// A beat renews, registers when it says enough, and asks for a registration when it does not.
#[tokio::test]
async fn beats() {
    let api = Api::new();
    let beat = |query: &str| format!("PUT /nacos/v1/ns/instance/beat?{query}");
    let light = beat("serviceName=web&ip=10.0.0.1&port=80");
    let answer = api.json(&light).await;
    let want = r#"{"clientBeatInterval":5000,"code":20404,"lightBeatEnabled":true}"#;
    assert_eq!(answer, serde_json::from_str::<Value>(want).unwrap());
    // As Python's SDK does it: grouped name in the beat, its null cluster left out.
    let body = r#"{"serviceName":"DEFAULT_GROUP@@web","ip":"10.0.0.1","port":80,"weight":1.0,"ephemeral":true,
        "metadata":{"preserved.heart.beat.interval":"1000"}}"#;
    let body = serde_urlencoded::to_string([("beat", body)]).unwrap();
    let full = beat(&format!("serviceName=DEFAULT_GROUP@@web&groupName=DEFAULT_GROUP&{body}"));
    for _ in 0..2 {
        let answer = api.json(&full).await;
        assert_eq!((answer["code"].as_u64(), answer["clientBeatInterval"].as_u64()), (Some(10_200), Some(1_000)));
    }
    assert_eq!(api.json(&light).await["code"], 10_200);
    assert_eq!(api.list("serviceName=web").await, [(80, true)]);
    // Registered with Python's null cluster it is the same instance.
    api.ok(&format!("POST {INSTANCE}?serviceName=web&ip=10.0.0.1&port=80&clusterName=None")).await;
    assert_eq!(api.list("serviceName=web&clusters=DEFAULT").await, [(80, true)]);
    assert_eq!(api.list("serviceName=web&clusters=other").await, []);
    // A beat cannot turn a persistent service into an ephemeral one.
    api.ok(&format!("POST {INSTANCE}?serviceName=db&ip=10.0.0.1&port=5432&ephemeral=false")).await;
    let body = serde_urlencoded::to_string([("beat", r#"{"ip":"10.0.0.2","port":5432}"#)]).unwrap();
    assert_eq!(api.call(&beat(&format!("serviceName=db&{body}"))).await.0, 400);
}

/// Health in a list is what is known; before anything is known, what was claimed; below the threshold, all.
#[tokio::test]
async fn lists_and_protection() {
    let api = Api::new();
    api.web(&[(1, Health::Up), (2, Health::Down), (3, Health::Down)]).await;
    api.ok(&format!("POST {INSTANCE}?serviceName=web&ip=10.0.0.1&port=4&ephemeral=false&healthy=false")).await;
    let true_health = [(1, true), (2, false), (3, false), (4, false)];
    assert_eq!(api.list("serviceName=web").await, true_health);
    assert_eq!(api.list("serviceName=web&healthyOnly=true").await, [(1, true)]);
    // A quarter is healthy: not below a quarter, but below a half.
    api.ok("PUT /nacos/v1/ns/service?serviceName=web&protectThreshold=0.25").await;
    assert_eq!(api.list("serviceName=web").await, true_health);
    api.ok("PUT /nacos/v1/ns/service?serviceName=web&protectThreshold=0.5").await;
    let info = api.json("GET /nacos/v1/ns/instance/list?serviceName=web&healthyOnly=true").await;
    assert_eq!(info["reachProtectionThreshold"], true);
    assert_eq!(api.list("serviceName=web").await, [(1, true), (2, true), (3, true), (4, true)]);
    // Our own API does not take part in that.
    let truth = api.json("GET /api/v1/services/public/DEFAULT_GROUP/web").await;
    assert_eq!((truth["up"].as_u64(), truth["down"].as_u64(), truth["unknown"].as_u64()), (Some(1), Some(2), Some(1)));
    let second = &truth["instances"][1];
    assert_eq!((&second["health"], &second["reason"]), (&"down".into(), &"L4CON".into()));
    assert_eq!((&second["probed"], &second["rtt_us"]), (&"10.0.0.1:2".into(), &5.into()));
    // With the default threshold of 0 a service that is dead throughout is shown dead.
    api.ok("PUT /nacos/v1/ns/service?serviceName=web&protectThreshold=0").await;
    api.web(&[(1, Health::Down)]).await;
    assert_eq!(api.list("serviceName=web&healthyOnly=true").await, []);
}

/// An agent's backends are listed with the agent's word, never healthy without it, threshold or not.
#[tokio::test]
async fn agents_backends() {
    let api = Api::new();
    let service = ServiceKey::public("web").unwrap();
    let exposed = Exposed {
        service: service.clone(),
        host: "127.0.0.1".into(),
        port: 8081,
        weight: 1.0,
        metadata: Default::default(),
    };
    let id = exposed.id("edge").unwrap();
    api.registry.agent_up("edge", 1, vec![exposed]).await.unwrap();
    api.ok("PUT /nacos/v1/ns/service?serviceName=web&protectThreshold=1").await;
    assert_eq!(api.list("serviceName=web").await, [(8081, false)]);
    let reason = Reason::Probe { code: Code::L4Ok, errno: 0 };
    let delta = Delta { service, id, health: Health::Up, reason, rtt_ns: 1_000, due: None };
    api.registry.agent_health("edge", 1, vec![delta]).await.unwrap();
    assert_eq!(api.list("serviceName=web&clusters=edge").await, [(8081, true)]);
    api.registry.agent_gone("edge", 1).await.unwrap();
    assert_eq!(api.list("serviceName=web").await, [(8081, false)]);
    let truth = api.json("GET /api/v1/services/public/DEFAULT_GROUP/web").await;
    let seen = &truth["instances"][0];
    assert_eq!((&seen["vantage"], &seen["reason"]), (&"agent:edge".into(), &"AGENTGONE".into()));
    let (status, text) =
        api.call(&format!("DELETE {INSTANCE}?serviceName=web&ip=127.0.0.1&port=8081&clusterName=edge")).await;
    assert_eq!((status, text.contains("agent edge")), (409, true), "{text}");
}

/// What an agent was asked to look at, and is unknown, is in no list of healthy ones, and no threshold makes it so, whoever
/// else was asked.
#[tokio::test]
async fn what_agents_were_asked_to_look_at() {
    let api = Api::new();
    for (port, vantage) in [(1, "agent:edge"), (2, "registry,agent:edge")] {
        let metadata = serde_urlencoded::to_string([("metadata", format!("{{\"preserved.vantage\":\"{vantage}\"}}"))]);
        let id = format!("serviceName=web&ip=10.0.0.1&port={port}&ephemeral=false&{}", metadata.unwrap());
        api.ok(&format!("POST {INSTANCE}?{id}")).await;
    }
    let of = |port| (ServiceKey::public("web").unwrap(), InstanceId::new("", "10.0.0.1", port).unwrap());
    let up = |port| {
        let ((service, id), reason) = (of(port), Reason::Probe { code: Code::L4Ok, errno: 0 });
        Delta { service, id, health: Health::Up, reason, rtt_ns: 1_000, due: None }
    };
    api.ok("PUT /nacos/v1/ns/service?serviceName=web&protectThreshold=1").await;
    let nobody = |lists: Vec<(u64, bool)>| assert_eq!(lists, [(1, false), (2, false)]);
    nobody(api.list("serviceName=web").await);
    api.registry.submit(Command::Heard { deltas: vec![up(2)] }).await.unwrap();
    nobody(api.list("serviceName=web").await);
    assert_eq!(api.list("serviceName=web&healthyOnly=true").await, [], "unreachable ones are no healthy ones");
    api.registry.agent_up("edge", 1, vec![]).await.unwrap();
    let witnessed = Command::Witnessed { agent: "edge".into(), session: 1, deltas: vec![up(1), up(2)] };
    api.registry.submit(witnessed).await.unwrap();
    assert_eq!(api.list("serviceName=web&healthyOnly=true").await, [(1, true), (2, true)]);
    api.registry.agent_gone("edge", 1).await.unwrap();
    nobody(api.list("serviceName=web").await);
    for path in ["v1/ns/instance/list", "v2/ns/instance/list", "v3/client/ns/instance/list"] {
        let all = api.call(&format!("GET /nacos/{path}?serviceName=web&healthyOnly=true")).await;
        assert!(all.0 == 200 && !all.1.contains("\"healthy\":true"), "{path}: {all:?}");
    }
    let catalog = api.call("GET /nacos/v1/ns/catalog/instances?serviceName=web&pageNo=1&pageSize=9").await;
    assert!(catalog.0 == 200 && !catalog.1.contains("\"healthy\":true"), "{catalog:?}");
}

/// A service's instances become of the other kind in one step, and nobody's list is empty meanwhile.
#[tokio::test]
async fn kinds_are_converted() {
    let api = Api::new();
    const KIND: &str = "/api/v1/services/public/DEFAULT_GROUP/web/kind";
    assert_eq!(api.call(&format!("PUT {KIND}?kind=ephemeral")).await.0, 404);
    api.web(&[(1, Health::Up), (2, Health::Down)]).await;
    assert_eq!(api.json(&format!("GET {KIND}")).await["kind"], "persistent");
    let (status, text) = api.call(&format!("POST {INSTANCE}?serviceName=web&ip=10.0.0.1&port=3")).await;
    assert!(status == 400 && text.contains("/kind"), "{text}");
    let answer = api.json(&format!("PUT {KIND}?kind=ephemeral")).await;
    assert_eq!((&answer["kind"], &answer["converted"]), (&"ephemeral".into(), &2.into()));
    assert_eq!(api.list("serviceName=web").await, [(1, true), (2, false)], "what is believed stays for now");
    api.ok(&format!("POST {INSTANCE}?serviceName=web&ip=10.0.0.1&port=3")).await;
    let answer = api.json(&format!("PUT {KIND}?kind=persistent")).await;
    assert_eq!((&answer["kind"], &answer["converted"]), (&"persistent".into(), &3.into()));
    assert_eq!(api.json(&format!("PUT {KIND}?kind=persistent")).await["converted"], 0);
    assert_eq!(api.call(&format!("PUT {KIND}?kind=other")).await.0, 400);
    assert_eq!(api.call(&format!("PUT {KIND}")).await.0, 400);
}

/// Services: made, listed in pages, configured, and removed when empty; checkers that are not served are refused.
#[tokio::test]
async fn services_and_clusters() {
    let api = Api::new();
    for name in ["c", "a", "b"] {
        api.ok(&format!("POST /nacos/v1/ns/service?serviceName={name}&metadata=k=v&protectThreshold=0.5")).await;
    }
    let page = api.json("GET /nacos/v1/ns/service/list?pageNo=2&pageSize=2").await;
    assert_eq!(page, serde_json::from_str::<Value>(r#"{"count":3,"doms":["c"]}"#).unwrap());
    assert_eq!(api.json("GET /nacos/v1/ns/service/list?groupName=other").await["count"], 0);
    let mine = api.json("GET /api/v1/services?size=2&page=1").await;
    assert_eq!((&mine["count"], &mine["services"][1]["name"]), (&3.into(), &"b".into()));
    assert_eq!(api.call("POST /nacos/v1/ns/service?serviceName=a").await.0, 400, "it is there");
    assert_eq!(api.call("PUT /nacos/v1/ns/service?serviceName=d&protectThreshold=0").await.0, 400, "it is not");

    api.ok(&format!("POST {INSTANCE}?serviceName=a&ip=10.0.0.1&port=80&ephemeral=false")).await;
    let cluster = "PUT /nacos/v1/ns/cluster?serviceName=a&clusterName=DEFAULT&checkPort=81&useInstancePort4Check=false";
    for (kind, status) in [("HTTP", 200), ("MYSQL", 400), ("ICMP", 400), ("TCP", 200)] {
        let checker = format!("{cluster}&healthChecker=%7B%22type%22%3A%22{kind}%22%7D");
        assert_eq!(api.call(&checker).await.0, status, "{kind}");
    }
    assert_eq!(api.json("GET /api/v1/services/public/DEFAULT_GROUP/a").await["instances"][0]["probed"], "10.0.0.1:81");
    // What is shown of a checker is what was asked for, but for its password.
    let put = |json: &str| {
        let encoded: String = json.bytes().map(|b| format!("%{b:02x}")).collect();
        format!("{cluster}&healthChecker={encoded}")
    };
    for (asked, shown) in [
        (
            r#"{"type":"http","path":"health"}"#,
            r#"{"type":"HTTP","path":"/health","headers":"","expectedResponseCode":200}"#,
        ),
        (
            r#"{"type":"HTTP","path":"/h","headers":"A:b|C:d","expectedResponseCode":204,"manner":"nacos","new":1}"#,
            r#"{"type":"HTTP","path":"/h","headers":"A:b|C:d","expectedResponseCode":204,"manner":"nacos"}"#,
        ),
        (
            r#"{"type":"MYSQL","user":"u","pwd":"hush","cmd":"select 1"}"#,
            r#"{"type":"MYSQL","user":"u","pwd":"***","cmd":"select 1"}"#,
        ),
        (
            r#"{"type":"TCP","intervalMs":200,"fall":1}"#,
            r#"{"type":"TCP","intervalMs":200,"timeoutMs":1000,"rise":2,"fall":1}"#,
        ),
    ] {
        api.ok(&put(asked)).await;
        let detail = api.json("GET /nacos/v1/ns/service?serviceName=a").await;
        assert_eq!(detail["clusters"][0]["healthChecker"], serde_json::from_str::<Value>(shown).unwrap(), "{asked}");
    }
    for wrong in [
        r#"{"type":"HTTP","path":"/a b"}"#,
        r#"{"type":"TCP","manner":"eager"}"#,
        r#"{"type":"TCP","manner":"nacos","rise":3}"#,
        r#"{"type":"TCP","intervalMs":1}"#,
        r#"{"type":"TCP","rise":0}"#,
        "[]",
    ] {
        let (status, text) = api.call(&put(wrong)).await;
        assert!(status == 400 && text.starts_with("Param '"), "{wrong}: {status} {text}");
    }
    let health = "PUT /nacos/v1/ns/health/instance?serviceName=a&ip=10.0.0.1&port=80&healthy=false";
    let (status, text) = api.call(health).await;
    assert_eq!((status, text.contains("still working")), (400, true), "{text}");
    api.ok(&format!("{cluster}&healthChecker=%7B%22type%22%3A%22NONE%22%7D")).await;
    api.ok(health).await;
    // One instance tells the truth; the list is below its threshold.
    let instance = api.json(&format!("GET {INSTANCE}?serviceName=a&ip=10.0.0.1&port=80")).await;
    assert_eq!((&instance["healthy"], api.list("serviceName=a").await), (&false.into(), vec![(80, true)]));
    let detail = api.json("GET /nacos/v1/ns/service?serviceName=a").await;
    let want = r#"{"namespaceId":"public","groupName":"DEFAULT_GROUP","name":"a","protectThreshold":0.5,
        "metadata":{"k":"v"},"selector":{"type":"none","contextType":"NONE"},
        "clusters":[{"name":"DEFAULT","healthChecker":{"type":"NONE"},"metadata":{}}]}"#;
    assert_eq!(detail, serde_json::from_str::<Value>(want).unwrap());

    assert_eq!(api.call("DELETE /nacos/v1/ns/service?serviceName=a").await.0, 400, "it is not empty");
    api.ok("DELETE /nacos/v1/ns/service?serviceName=b").await;
    assert_eq!(api.json("GET /nacos/v1/ns/service/list").await["doms"], serde_json::json!(["a", "c"]));
}

/// The server says that it is up wherever clients ask.
#[tokio::test]
async fn the_server_is_up() {
    let api = Api::new();
    assert_eq!(api.json("GET /nacos/v1/ns/operator/metrics").await, serde_json::json!({ "status": "UP" }));
    assert_eq!(api.json("GET /nacos/v1/ns/operator/metrics?onlyStatus=false").await["instanceCount"], 0);
    for path in ["readiness", "liveness"] {
        assert_eq!(api.call(&format!("GET /nacos/v1/console/health/{path}")).await, (200, "OK".into()));
    }
    assert_eq!(api.json("GET /nacos/v1/console/server/state").await["function_mode"], "naming");
    assert_eq!(api.json("GET /nacos/v1/ns/health/checkers").await["TCP"]["type"], "TCP");
    assert!(api.json("GET /nacos/v1/ns/health/server").await["msg"].is_string());
    assert_eq!(api.json("GET /api/v1/health").await["status"], "up");
}

/// A change that some other site's page asks for is refused; a program's, or our own page's, is not.
#[tokio::test]
async fn other_sites_pages_are_refused() {
    let api = Api::new();
    let uri = format!("{INSTANCE}?serviceName=web&ip=10.0.0.1&port=80");
    for (method, origin, want) in [
        ("POST", "http://evil.example", 403),
        ("POST", "null", 403),
        ("DELETE", "http://evil.example", 403),
        ("POST", "http://127.0.0.1:8848", 200),
        ("GET", "http://evil.example", 200),
    ] {
        let request = axum::http::Request::builder().method(method).uri(&uri);
        let request = request.header("host", "127.0.0.1:8848").header("origin", origin);
        assert_eq!(api.send(request.body(Body::empty()).unwrap()).await.0, want, "{method} {origin}");
    }
}

/// A body beyond the limit is refused before it is read, announced or not.
#[tokio::test]
async fn large_bodies_are_refused() {
    let api = Api::new();
    let body = vec![b'x'; BODY_BYTES_MAX + 1];
    let request = || axum::http::Request::builder().method("POST").uri(INSTANCE);
    let announced = request().header("content-length", body.len()).body(Body::from(body.clone())).unwrap();
    assert_eq!(api.send(announced).await.0, 413);
    assert_eq!(api.send(request().body(Body::from(body)).unwrap()).await.0, 413);
}

/// /metrics has the registry's state and the requests, in series that do not grow with what is registered.
#[tokio::test]
async fn metrics() {
    let api = Api::new();
    api.web(&[(1, Health::Up), (2, Health::Down)]).await;
    api.ok(&format!("POST {INSTANCE}?serviceName=beats&ip=10.0.0.1&port=3")).await;
    api.call("GET /no/such/path").await;
    let (status, text) = api.call("GET /metrics").await;
    assert_eq!(status, 200);
    for line in [
        "ringspan_registry_services 2.0",
        r#"ringspan_registry_instances{kind="persistent",health="up"} 1.0"#,
        r#"ringspan_registry_instances{kind="persistent",health="down"} 1.0"#,
        r#"ringspan_registry_instances{kind="ephemeral",health="up"} 1.0"#,
        r#"ringspan_http_requests_total{method="POST",route="/nacos/v1/ns/instance",status="200"} 3"#,
        r#"ringspan_http_requests_total{method="GET",route="other",status="404"} 1"#,
        r#"ringspan_probes_total{code="L4TOUT"} 0"#,
        "ringspan_registry_store_commits_total 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("10.0.0.1") && !text.contains("\"web\""), "series name no instance");
}

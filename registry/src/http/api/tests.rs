//! Our own API as its users meet it: requests to the router, no socket.

use super::document::document;
use super::operations;
use crate::http::{Options, router};
use crate::service::{Options as RegistryOptions, Registry};
use crate::table::Exposed;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use tower::ServiceExt;

struct Api {
    registry: Registry,
    router: Router,
}

impl Api {
    fn new() -> Api {
        let registry = Registry::open(&RegistryOptions::default()).unwrap();
        Api { router: router(registry.clone(), Options::default()), registry }
    }

    /// `"PUT /path"`; the path without its beginning.
    async fn call(&self, line: &str, body: Option<Value>) -> (u16, Value) {
        let (method, path) = line.split_once(' ').unwrap();
        let request = Request::builder().method(method).uri(format!("/api/v1{path}"));
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        let response = self.router.clone().oneshot(request.unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let kind = response.headers().get("content-type").map(|v| v.to_str().unwrap().to_owned());
        let bytes = axum::body::to_bytes(response.into_body(), 4 << 20).await.unwrap();
        if status >= 400 {
            assert_eq!(kind.as_deref(), Some("application/problem+json"), "{line}: {status}");
        }
        (status, if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() })
    }

    async fn good(&self, line: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.call(line, body).await;
        assert!((200..300).contains(&status), "{line}: {status} {answer}");
        answer
    }

    /// Status, word of the problem, parameter.
    async fn bad(&self, line: &str, body: Option<Value>) -> (u16, String, String) {
        let (status, answer) = self.call(line, body).await;
        let of = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer["status"], status, "{line}: {answer}");
        (status, of("type").replace("urn:ringspan:problem:", ""), of("param"))
    }
}

const WEB: &str = "/services/public/DEFAULT_GROUP/web";

fn at(port: u16) -> String {
    format!("{WEB}/instances/DEFAULT/10.0.0.1/{port}")
}

/// A registration sets the cluster's checker in the same step, or nothing is done; what is shown is what was asked for.
#[tokio::test]
async fn a_registration_brings_its_checker() {
    let api = Api::new();
    let body = json!({
        "weight": 2.5, "metadata": { "zone": "a" },
        "checker": { "type": "http", "path": "/up?x=1", "headers": { "Host": "shop", "X-Key": "v" },
            "expected": ["2xx", "301"], "port": 81, "manner": { "interval_ms": 500, "fall": 1 } },
    });
    let (status, seen) = api.call(&format!("PUT {}", at(80)), Some(body.clone())).await;
    assert_eq!((status, &seen["probed"], &seen["health"]), (201, &json!("10.0.0.1:81"), &json!("unknown")));
    assert_eq!(seen["metadata"], json!({ "zone": "a" }), "the checker is no metadata");
    assert_eq!(api.call(&format!("PUT {}", at(80)), Some(body)).await.0, 200, "the same again");
    let shown = api.good(&format!("GET {WEB}"), None).await["clusters"]["DEFAULT"]["checker"].clone();
    let want = json!({ "type": "http", "path": "/up?x=1", "headers": { "Host": "shop", "X-Key": "v" },
        "expected": ["2xx", "301"], "port": 81,
        "manner": { "interval_ms": 500, "timeout_ms": 1000, "rise": 2, "fall": 1 } });
    assert_eq!(shown, want);
    // What is shown can be sent back.
    api.good(&format!("PATCH {WEB}"), Some(json!({ "clusters": { "DEFAULT": { "checker": shown } } }))).await;
    let wrong = json!({ "checker": { "type": "http", "path": "no slash" } });
    assert_eq!(api.bad(&format!("PUT {}", at(81)), Some(wrong)).await.0, 400);
    assert_eq!(api.bad(&format!("GET {}", at(81)), None).await, (404, "no-instance".into(), String::new()));
}

/// Changes name what they change; null takes away; lists are picked from by label, health and the rest.
#[tokio::test]
async fn instances_are_changed_and_listed() {
    let api = Api::new();
    for (port, zone) in [(80, "a"), (81, "b"), (82, "c")] {
        api.good(&format!("PUT {}", at(port)), Some(json!({ "metadata": { "zone": zone } }))).await;
    }
    let patch = json!({ "weight": 0, "enabled": false, "metadata": { "zone": null, "x": "y" } });
    let seen = api.good(&format!("PATCH {}", at(82)), Some(patch)).await;
    assert_eq!(
        (&seen["weight"], &seen["enabled"], &seen["metadata"]),
        (&json!(0.0), &json!(false), &json!({ "x": "y" }))
    );
    let ports = |page: Value| {
        let all = page["instances"].as_array().unwrap().iter().map(|i| i["port"].as_u64().unwrap());
        (page["count"].as_u64().unwrap(), all.collect::<Vec<_>>())
    };
    let cases = [
        ("", (3, vec![80, 81, 82])),
        ("?label=zone+in+(a,b)", (2, vec![80, 81])),
        ("?label=!zone", (1, vec![82])),
        ("?enabled=true&size=1&page=2", (2, vec![81])),
        ("?health=down", (0, vec![])),
        ("?health=down,unknown&cluster=DEFAULT&ephemeral=false", (3, vec![80, 81, 82])),
        ("?cluster=other", (0, vec![])),
    ];
    for (query, want) in cases {
        assert_eq!(ports(api.good(&format!("GET {WEB}/instances{query}"), None).await), want, "{query}");
        assert_eq!(ports(api.good(&format!("GET /instances{query}"), None).await), want, "all: {query}");
    }
    assert_eq!(ports(api.good("GET /instances?namespace=dev", None).await), (0, vec![]));
    assert_eq!(ports(api.good("GET /instances?namespace=*&service=web", None).await).0, 3);
    let bad = [
        ("?label=zone+in", "label"),
        ("?size=0", "size"),
        ("?size=1001", "size"),
        ("?page=+1", "page"),
        ("?page=", "page"),
        ("?page=1&page=1", "page"),
        ("?moon=1", "moon"),
        ("?health=well", "health"),
        ("?enabled=yes", "enabled"),
    ];
    for (query, param) in bad {
        let want = (400, "invalid".to_owned(), param.to_owned());
        assert_eq!(api.bad(&format!("GET {WEB}/instances{query}"), None).await, want, "{query}");
    }
    assert_eq!(api.call(&format!("DELETE {}", at(80)), None).await.0, 204);
    assert_eq!(api.bad(&format!("DELETE {}", at(80)), None).await.1, "no-instance");
    assert_eq!(api.bad(&format!("DELETE {WEB}"), None).await.1, "not-empty");
}

/// A service's settings: all of them, parts of them, none of them; what is null is as if never set.
#[tokio::test]
async fn services_are_configured() {
    let api = Api::new();
    let dev = "/services/dev/g:1/a%2Fb";
    assert_eq!(api.bad(&format!("PATCH {dev}"), Some(json!({}))).await.1, "no-service");
    let body = json!({ "protect_threshold": 0.5, "metadata": { "team": "shop", "tier": "1" },
        "checked_by": { "vantages": ["registry", "agent:edge"], "quorum": 1 },
        "clusters": { "c1": { "checker": { "type": "mysql", "user": "u", "password": "hush", "query": "select 1" } },
            "c2": { "checker": { "type": "none" }, "metadata": { "k": "v" } } } });
    let (status, shown) = api.call(&format!("PUT {dev}"), Some(body.clone())).await;
    assert_eq!((status, &shown["name"], &shown["checked_by"]), (201, &json!("a/b"), &body["checked_by"]));
    assert_eq!(shown["clusters"]["c1"]["checker"]["password"], "***");
    assert_eq!(api.call(&format!("PUT {dev}"), Some(body)).await.0, 200);
    let patch = json!({ "metadata": { "tier": null }, "checked_by": null,
        "clusters": { "c1": { "checker": shown["clusters"]["c1"]["checker"] }, "c2": null } });
    let shown = api.good(&format!("PATCH {dev}"), Some(patch)).await;
    assert_eq!((&shown["metadata"], &shown["protect_threshold"]), (&json!({ "team": "shop" }), &json!(0.5)));
    assert_eq!((&shown["checked_by"], shown["clusters"].get("c2")), (&Value::Null, None));
    let list = api.good("GET /services?namespace=*&label=team%3Dshop&name=A", None).await;
    assert_eq!((&list["count"], &list["services"][0]["namespace"]), (&json!(1), &json!("dev")));
    assert_eq!(api.good("GET /services?name=a", None).await["count"], 0, "of public");
    assert_eq!(api.good("GET /namespaces", None).await["namespaces"][0]["name"], "dev");
    let shown = api.good(&format!("PUT {dev}"), Some(json!({}))).await;
    assert_eq!((&shown["metadata"], &shown["clusters"]), (&json!({}), &json!({})), "what is not named is the default");
    let bad = [
        (json!({ "protect_threshold": 1.5 }), "protect_threshold"),
        (json!({ "protect_threshold": null }), "body"),
        (json!({ "moon": 1 }), "body"),
        (json!({ "metadata": { "a": 1 } }), "body"),
        (json!({ "metadata": { "a": "x".repeat(2000) } }), "metadata"),
        (json!({ "metadata": { "preserved.checker": "{}" } }), "metadata"),
        (json!({ "clusters": { "a/b": {} } }), "cluster"),
        (json!({ "clusters": { "c": { "checker": { "type": "icmp" } } } }), "body"),
        (json!({ "clusters": { "c": { "checker": { "type": "http", "expected": ["99"] } } } }), "checker.expected"),
        (
            json!({ "clusters": { "c": { "checker": { "type": "http", "headers": { "a b": "c" } } } } }),
            "checker.headers",
        ),
        (json!({ "clusters": { "c": { "checker": { "type": "tcp", "manner": "mad" } } } }), "body"),
        (
            json!({ "clusters": { "c": { "checker": { "type": "tcp", "manner": { "interval_ms": 1 } } } } }),
            "checker.manner.interval_ms",
        ),
        (
            json!({ "clusters": { "c": { "checker": { "type": "mysql", "user": "u", "password": "***", "query": "q" } } } }),
            "checker.password",
        ),
        (json!({ "checked_by": { "vantages": ["moon"] } }), "checked_by"),
        (json!({ "checked_by": { "vantages": ["registry"], "quorum": 2 } }), "checked_by"),
    ];
    for (body, param) in bad {
        let want = (400, "invalid".to_owned(), param.to_owned());
        assert_eq!(api.bad(&format!("PUT {dev}"), Some(body.clone())).await, want, "{body}");
    }
    assert_eq!(api.call(&format!("DELETE {dev}"), None).await.0, 204);
    assert_eq!(api.bad(&format!("GET {dev}"), None).await.1, "no-service");
}

/// Ephemeral ones live by beats, kinds do not mix, and a service is converted as a whole.
#[tokio::test]
async fn kinds() {
    let api = Api::new();
    let seen = api.good(&format!("PUT {}", at(80)), Some(json!({ "ephemeral": true, "healthy": false }))).await;
    assert_eq!((&seen["health"], &seen["reason"]), (&json!("down"), &json!("BEAT")));
    assert_eq!(api.call(&format!("POST {}/beat", at(80)), None).await.0, 204);
    assert_eq!(api.good(&format!("GET {}", at(80)), None).await["health"], "up");
    assert_eq!(api.bad(&format!("POST {}/beat", at(81)), None).await.1, "no-instance");
    assert_eq!(api.bad(&format!("PUT {}", at(81)), Some(json!({}))).await, (409, "wrong-kind".into(), String::new()));
    let health = format!("PUT {}/health", at(80));
    assert_eq!(api.bad(&health, Some(json!({ "healthy": true }))).await.1, "still-checked");
    let convert = format!("PUT {WEB}/kind?kind=persistent");
    assert_eq!(api.good(&convert, None).await, json!({ "kind": "persistent", "converted": 1 }));
    assert_eq!(api.good(&convert, None).await["converted"], 0);
    assert_eq!(api.good(&format!("GET {WEB}/kind"), None).await["kind"], "persistent");
    assert_eq!(api.bad(&format!("PUT {WEB}/kind?kind=other"), None).await.2, "kind");
    api.good(&format!("PATCH {WEB}"), Some(json!({ "clusters": { "DEFAULT": { "checker": { "type": "none" } } } })))
        .await;
    let seen = api.good(&health, Some(json!({ "healthy": false }))).await;
    assert_eq!(
        (&seen["health"], &seen["reason"], &seen["ephemeral"]),
        (&json!("down"), &json!("MANUAL"), &json!(false))
    );
}

/// An agent is shown with what it exposes, what it was asked to look at, and its link.
#[tokio::test]
async fn agents() {
    let registry = Registry::open(&RegistryOptions::default()).unwrap();
    let link = super::AgentLink {
        id: "ab".into(),
        name: "edge".into(),
        software: "ringspan/1".into(),
        peer: None,
        since_ms: 5,
        carriers: 2,
    };
    let links = BTreeMap::from([("edge-0a1b2c3d".to_owned(), link)]);
    let agents: super::AgentLinks = Arc::new(move || links.clone());
    let options = Options { agents: Some(agents), ..Options::default() };
    let api = Api { router: router(registry.clone(), options), registry };
    let exposed = |port| Exposed {
        service: crate::model::ServiceKey::public("shop").unwrap(),
        host: "db.local".into(),
        port,
        weight: 1.0,
        metadata: Default::default(),
    };
    api.registry.agent_up("edge-0a1b2c3d", 1, vec![exposed(1), exposed(2)]).await.unwrap();
    api.registry.agent_up("gone", 1, vec![]).await.unwrap();
    api.registry.agent_gone("gone", 1).await.unwrap();
    api.good(&format!("PUT {}", at(80)), Some(json!({ "checked_by": { "vantages": ["agent:edge"] } }))).await;
    let list = api.good("GET /agents", None).await;
    assert_eq!((&list["count"], &list["agents"][1]["connected"]), (&json!(2), &json!(false)));
    let edge = api.good("GET /agents/edge-0a1b2c3d", None).await;
    assert_eq!((&edge["exposes"], &edge["watches"], &edge["unknown"]), (&json!(2), &json!(1), &json!(2)));
    assert_eq!((&edge["exposed"][1]["port"], &edge["watched"][0]["port"]), (&json!(2), &json!(80)));
    assert_eq!((&edge["link"]["carriers"], &edge["services"]), (&json!(2), &json!(["shop"])));
    assert_eq!(api.bad("GET /agents/moon", None).await.1, "no-agent");
    let theirs = "/services/public/DEFAULT_GROUP/shop/instances/edge-0a1b2c3d/db.local/1";
    assert_eq!(api.bad(&format!("DELETE {theirs}"), None).await, (409, "of-agent".into(), String::new()));
    assert_eq!(api.good("GET /health", None).await["agents_connected"], 1);
}

/// Whoever refuses, router, layers or handlers, it is a problem.
#[tokio::test]
async fn every_refusal_is_a_problem() {
    let api = Api::new();
    assert_eq!(api.bad("GET /moon", None).await.0, 404);
    assert_eq!(api.bad("DELETE /health", None).await.0, 405);
    assert_eq!(api.bad("GET /services/a%20b/g/n", None).await, (400, "invalid".into(), "namespace".into()));
    assert_eq!(api.bad("GET /services/public/g/a@@b", None).await, (400, "invalid".into(), "name".into()));
    assert_eq!(api.bad("GET /services/public/g/%FF", None).await.0, 400);
    assert_eq!(api.bad(&format!("GET {WEB}/instances/c/h/080"), None).await.2, "port");
    assert_eq!(api.bad(&format!("PUT {WEB}/instances/c/name/80"), Some(json!({}))).await.2, "host");
    let send = |kind: &'static str, body: String| {
        let request = Request::builder().method("PUT").uri(format!("/api/v1{WEB}")).header("content-type", kind);
        api.router.clone().oneshot(request.body(Body::from(body)).unwrap())
    };
    assert_eq!(send("text/plain", "{}".into()).await.unwrap().status(), 415);
    assert_eq!(send("application/json", "{".into()).await.unwrap().status(), 400);
    assert_eq!(send("application/json; charset=utf-8", "{}".into()).await.unwrap().status(), 201);
    assert_eq!(send("application/json", format!("{{\"x\":\"{}\"}}", "y".repeat(70_000))).await.unwrap().status(), 413);
}

/// The document is whole: what it refers to is there, names are used once, and every example is taken by what it is an
/// example of.
#[tokio::test]
async fn the_document_is_whole() {
    let api = Api::new();
    let served = api.good("GET /openapi.json", None).await;
    let document = document(&operations());
    assert_eq!(served, document);
    let text = document.to_string();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
    }
    let mut ids = std::collections::BTreeSet::new();
    for operation in operations() {
        let place = &document["paths"][operation.path][operation.method];
        let id = place["operationId"].as_str().unwrap().to_owned();
        assert!(ids.insert(id.clone()), "{id} is there twice");
        assert!(!place["summary"].as_str().unwrap().is_empty());
        let answers = place["responses"].as_object().unwrap();
        assert!(answers.keys().any(|s| s.starts_with('2')) && answers.contains_key("401"), "{id}");
        // Each is served, and by what it says.
        let line = operation.path.replace("/api/v1", "").replace("{namespace}", "n").replace("{group}", "g");
        let line = line.replace("{name}", "s").replace("{cluster}", "c").replace("{host}", "10.0.0.1");
        let line =
            format!("{} {}", operation.method.to_uppercase(), line.replace("{port}", "80").replace("{agent}", "a"));
        if id == "streamEvents" || id == "login" {
            continue;
        }
        let example = place["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str().map(|reference| {
            let name = reference.rsplit('/').next().unwrap();
            document["components"]["schemas"][name]["examples"][0].clone()
        });
        // What has to be asked along.
        let parameters = place["parameters"].as_array().cloned().unwrap_or_default();
        let needed = parameters.iter().filter(|p| p["in"] == "query" && p["required"] == true);
        let needed =
            needed.map(|p| format!("{}={}", p["name"].as_str().unwrap(), p["schema"]["enum"][0].as_str().unwrap()));
        let line = [line]
            .into_iter()
            .chain(needed)
            .reduce(|a, b| format!("{a}{}{b}", if a.contains('?') { "&" } else { "?" }));
        let line = line.expect("there is a path");
        let (status, answer) = api.call(&line, example).await;
        assert!(answers.contains_key(&status.to_string()), "{line}: {status} {answer}");
        assert_ne!(status, 400, "{line}: {answer}");
        assert_ne!(status, 405, "{line}: {answer}");
    }
}

/// What is read has a tag; whoever has it already is told so, until something that is shown changes.
#[tokio::test]
async fn tags() {
    let api = Api::new();
    api.good(&format!("PUT {}", at(80)), Some(json!({}))).await;
    let get = async |path: &str, have: Option<&str>| {
        let request = Request::builder().uri(format!("/api/v1{path}"));
        let request = have.into_iter().fold(request, |request, tag| request.header("if-none-match", tag));
        let response = api.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let tag = response.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 4 << 20).await.unwrap();
        (status, tag, body.len())
    };
    let one = at(80);
    let paths =
        ["/services", WEB, &format!("{WEB}/instances"), "/instances", &one, "/namespaces", "/agents", "/openapi.json"];
    for path in paths {
        let (status, tag, bytes) = get(path, None).await;
        assert!(status == 200 && bytes > 0, "{path}");
        let tag = tag.unwrap_or_else(|| panic!("{path} has no tag"));
        assert_eq!(get(path, Some(&tag)).await, (304, Some(tag.clone()), 0), "{path}");
        assert_eq!(get(path, Some(&format!("\"x\", W/{tag}"))).await.0, 304, "{path}");
        assert_eq!(get(path, Some("\"x\"")).await, (200, Some(tag), bytes), "{path}");
    }
    let (_, before, _) = get(WEB, None).await;
    // The same again changes nothing.
    api.good(&format!("PUT {}", at(80)), Some(json!({}))).await;
    assert_eq!(get(WEB, before.as_deref()).await.0, 304);
    api.good(&format!("PATCH {}", at(80)), Some(json!({ "weight": 2 }))).await;
    let (status, after, _) = get(WEB, before.as_deref()).await;
    assert_eq!((status, before == after), (200, false));
    // Refusals have none, and a health check is about this moment.
    assert_eq!(get("/services/public/g/moon", Some("*")).await.1, None);
    assert_eq!(get("/health", None).await.1, None);
}

/// A list is no structure: where none belongs it is refused, at whatever depth.
#[tokio::test]
async fn lists_are_no_structures() {
    let api = Api::new();
    let bodies = [
        (json!([]), "body"),
        (json!([0.5, {}]), "body"),
        (json!({ "checked_by": [["registry"], 1] }), "checked_by"),
        (json!({ "clusters": { "a": [] } }), "a"),
        (json!({ "clusters": { "vantages": [] } }), "vantages"),
        (json!({ "clusters": { "a": { "checker": ["tcp"] } } }), "checker"),
        (json!({ "clusters": { "a": { "checker": { "type": "tcp", "manner": [100, 50, 1, 1] } } } }), "manner"),
    ];
    for (body, field) in bodies {
        let refused = api.bad(&format!("PUT {WEB}"), Some(body.clone())).await;
        assert_eq!(refused, (400, "invalid".into(), field.into()), "{body}");
    }
    let checker = json!({ "type": "http", "expected": ["2xx"] });
    let clusters = json!({ "a": { "checker": checker, "checked_by": { "vantages": ["registry"] } } });
    api.good(&format!("PUT {WEB}"), Some(json!({ "clusters": clusters, "same_labels": ["zone"] }))).await;
}

/// Nacos' label selector by its labels: whole, changed, taken away; what no expression can name is refused.
#[tokio::test]
async fn label_selectors() {
    let api = Api::new();
    let shown = api.good(&format!("PUT {WEB}"), Some(json!({ "same_labels": ["zone", "room"] }))).await;
    assert_eq!(shown["same_labels"], json!(["room", "zone"]));
    let shown = api.good(&format!("PATCH {WEB}"), Some(json!({ "protect_threshold": 0.5 }))).await;
    assert_eq!(shown["same_labels"], json!(["room", "zone"]));
    for bad in [json!([""]), json!(["a b"]), json!(["a=b"]), json!(["x", "x"]), json!([1])] {
        let (status, answer) = api.call(&format!("PATCH {WEB}"), Some(json!({ "same_labels": bad }))).await;
        // A label said twice is one.
        assert_eq!(status, if bad == json!(["x", "x"]) { 200 } else { 400 }, "{bad}: {answer}");
    }
    let many: Vec<String> = (0..17).map(|n| n.to_string()).collect();
    let refused = api.bad(&format!("PATCH {WEB}"), Some(json!({ "same_labels": many }))).await;
    assert_eq!(refused, (400, "invalid".into(), "same_labels".into()));
    let shown = api.good(&format!("PATCH {WEB}"), Some(json!({ "same_labels": null }))).await;
    assert_eq!(shown.get("same_labels"), None);
    api.good(&format!("PATCH {WEB}"), Some(json!({ "same_labels": [] }))).await;
    assert_eq!(api.good(&format!("PUT {WEB}"), Some(json!({}))).await.get("same_labels"), None);
}

/// A probe out of turn where nobody probes: what is wrong is told apart.
#[tokio::test]
async fn probes_out_of_turn() {
    let api = Api::new();
    let probe = format!("POST {}/probe", at(80));
    assert_eq!(api.bad(&probe, None).await.1, "no-service");
    api.good(&format!("PUT {}", at(81)), Some(json!({}))).await;
    assert_eq!(api.bad(&probe, None).await.1, "no-instance");
    api.good(&format!("PUT {}", at(80)), Some(json!({}))).await;
    assert_eq!(api.bad(&probe, None).await.1, "busy", "there is no prober");
    let (asks, orders) = crate::prober::now::probe_now();
    let options = Options { probe_now: Some(asks), ..Options::default() };
    let api = Api { router: router(api.registry.clone(), options), registry: api.registry };
    // A prober that is gone before it has answered.
    let (answer, ()) = tokio::join!(api.bad(&probe, None), async move { drop(orders) });
    assert_eq!(answer.1, "busy");
}

//! Schemas of the document: what is taken, with the limits that hold, and what is shown.

use crate::checker::codes::CODES_MAX;
use crate::events::KINDS as KINDS_OF_EVENTS;
use crate::http::api::operation::reference;
use crate::http::api::problem::KINDS;
use crate::http::api::settings::{HEADER_NAME_MAX, HEADER_VALUE_MAX, HEADERS_MAX, KEY_LEN_MAX, VALUE_LEN_MAX};
use crate::model::{
    CLUSTER_LEN_MAX, GROUP_LEN_MAX, HOST_LEN_MAX, METADATA_BYTES_MAX, NAMESPACE_LEN_MAX, SERVICE_LEN_MAX,
    WEIGHT_DEFAULT, WEIGHT_MAX,
};
use crate::panel::VANTAGES_MAX;
use crate::selector::SELECTOR_CHARS_MAX;
use crate::selector::service::{LABEL_LEN_MAX, LABELS_MAX};
use ringspan_engine::check::{HttpSettings, MysqlCheck};
use ringspan_engine::policy::{INTERVAL_MAX, INTERVAL_MIN, TIMEOUT_MAX, TIMEOUT_MIN};
use serde_json::{Map, Value, json};

/// All of them, by name.
pub(super) fn schemas() -> Value {
    let all = [names(), checkers(), taken(), shown(), shown_lists()];
    all.into_iter().flatten().map(|(name, schema)| (name.to_owned(), schema)).collect::<Map<_, _>>().into()
}

/// Control characters and blanks as Rust knows them (Unicode's Cc and White_Space), in a regular expression's brackets.
const CONTROL: &str = "\\x00-\\x1f\\x7f-\\x9f";
const BLANK: &str = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";

type Schemas = Vec<(&'static str, Value)>;

fn word(more: &str, len_max: usize, example: &str) -> Value {
    json!({ "type": "string", "pattern": format!("^[A-Za-z0-9_{more}-]{{1,{len_max}}}$"), "minLength": 1, "maxLength": len_max, "examples": [example] })
}

fn names() -> Schemas {
    // Letters that Rust calls blank or control; and a group has a place of its own.
    let no_blank = format!("^(?!.*@@)[^{CONTROL}{BLANK}]{{1,{SERVICE_LEN_MAX}}}$");
    vec![
        ("Namespace", word("", NAMESPACE_LEN_MAX, "public")),
        ("Group", word(":.", GROUP_LEN_MAX, "DEFAULT_GROUP")),
        (
            "ServiceName",
            json!({ "type": "string", "pattern": no_blank, "minLength": 1, "maxLength": SERVICE_LEN_MAX, "examples": ["web"] }),
        ),
        ("ClusterName", word(".", CLUSTER_LEN_MAX, "DEFAULT")),
        (
            "Host",
            json!({
                "description": "An IP address, or, of what an agent exposes, a name.",
                "anyOf": [{ "type": "string", "format": "ipv6" }, word(".", HOST_LEN_MAX, "127.0.0.1")],
                "examples": ["127.0.0.1"],
            }),
        ),
        (
            "Address",
            json!({
                "description": "An IP address. It is stored in its canonical form.",
                "anyOf": [{ "type": "string", "format": "ipv4" }, { "type": "string", "format": "ipv6" }],
                "examples": ["127.0.0.1"],
            }),
        ),
        ("Tag", json!({ "type": "string", "pattern": "^\"[0-9a-f]{32}\"$" })),
        ("Port", json!({ "type": "integer", "minimum": 1, "maximum": 65535, "examples": [8080] })),
        (
            "Selector",
            json!({
                "type": "string",
                "description": "Terms separated by commas, all of which must hold: k=v, k!=v, k in (v,w), k notin (v,w), k, !k. Keys and values with blanks or any of ,()=!<>\" in them stand in double quotes.",
                "pattern": crate::selector::pattern(),
                "minLength": 1,
                "maxLength": SELECTOR_CHARS_MAX,
                "examples": ["zone=a,env!=dev"],
            }),
        ),
        (
            "NameList",
            json!({
                "type": "string",
                "description": "Names, separated by commas; web-* is every name that begins so.",
                "minLength": 1, "maxLength": 2048, "examples": ["web,pay-*"],
            }),
        ),
        (
            "KindList",
            json!({ "type": "string", "pattern": format!("^({0})(,({0}))*$", KINDS_OF_EVENTS.join("|")), "examples": ["health,removed"] }),
        ),
        (
            "HealthList",
            json!({ "type": "string", "pattern": "^(up|down|unknown)(,(up|down|unknown))*$", "examples": ["down,unknown"] }),
        ),
        (
            "SameLabels",
            json!({
                "type": "array",
                "description": "Nacos' label selector: what a consumer and an instance are to have alike. Labels are a CMDB's; without one all instances are shown.",
                "maxItems": LABELS_MAX,
                "items": { "type": "string", "pattern": format!("^[^=&{CONTROL}{BLANK}]{{1,{LABEL_LEN_MAX}}}$"), "minLength": 1, "maxLength": LABEL_LEN_MAX },
                "examples": [["zone"]],
            }),
        ),
        ("Health", json!({ "type": "string", "enum": ["up", "down", "unknown"] })),
        (
            "Metadata",
            json!({
                "type": "object",
                "description": format!("Free pairs, at most {METADATA_BYTES_MAX} bytes of keys and values together. `preserved.*` keys steer the registry; preserved.checker has a field of its own here."),
                "additionalProperties": { "type": "string", "maxLength": VALUE_LEN_MAX },
                "propertyNames": { "type": "string", "maxLength": KEY_LEN_MAX },
                "examples": [{ "zone": "a" }],
            }),
        ),
        (
            "MetadataPatch",
            json!({
                "type": "object",
                "description": "Pairs to set; null takes a key away; others stay.",
                "additionalProperties": { "type": ["string", "null"], "maxLength": VALUE_LEN_MAX },
                "propertyNames": { "type": "string", "maxLength": KEY_LEN_MAX },
                "examples": [{ "zone": "b", "canary": null }],
            }),
        ),
    ]
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn ms(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn checkers() -> Schemas {
    let count = |default: u8| json!({ "type": "integer", "minimum": 1, "maximum": 255, "default": default });
    let pace = json!({
        "interval_ms": { "type": "integer", "minimum": ms(INTERVAL_MIN), "maximum": ms(INTERVAL_MAX), "default": 5000 },
        "timeout_ms": { "type": "integer", "minimum": ms(TIMEOUT_MIN), "maximum": ms(TIMEOUT_MAX), "default": 1000 },
        "rise": count(2),
        "fall": count(3),
    });
    let of_type = |word: &str, more: Value, required: &[&str]| {
        let mut properties = Map::from_iter([("type".to_owned(), json!({ "const": word }))]);
        if word != "none" {
            let port = json!({ "type": "integer", "minimum": 1, "maximum": 65535, "description": "The port that is checked. Without it: each instance's own." });
            properties.extend([("port".to_owned(), port), ("manner".to_owned(), reference("Manner"))]);
        }
        if let Value::Object(more) = more {
            properties.extend(more);
        }
        object(properties.into(), &[&["type"], required].concat())
    };
    let header = format!("^[A-Za-z0-9!#$%&'*+.^_`~-]{{1,{HEADER_NAME_MAX}}}$");
    let http = json!({
        "path": { "type": "string", "pattern": "^/[\\x21\\x22\\x24-\\x7e]*$", "maxLength": HttpSettings::PATH_MAX, "default": "/", "description": "With its query. Visible ASCII, no #." },
        "headers": {
            "type": "object",
            "description": "Sent besides Host, User-Agent, Accept and Connection, or in their place. Content-Length and Transfer-Encoding are refused.",
            "maxProperties": HEADERS_MAX,
            "propertyNames": { "type": "string", "pattern": header, "not": { "pattern": "^([Cc][Oo][Nn][Tt][Ee][Nn][Tt]-[Ll][Ee][Nn][Gg][Tt][Hh]|[Tt][Rr][Aa][Nn][Ss][Ff][Ee][Rr]-[Ee][Nn][Cc][Oo][Dd][Ii][Nn][Gg])$" } },
            "additionalProperties": { "type": "string", "pattern": "^[\\t\\x20-\\x7b\\x7d\\x7e]*$", "maxLength": HEADER_VALUE_MAX },
        },
        "expected": {
            "type": "array", "minItems": 1, "maxItems": CODES_MAX, "default": ["200"],
            "items": { "type": "string", "pattern": "^[1-5]([0-9]{2}|xx)$" },
            "description": "Statuses that are well, and classes of them: 204, 3xx.",
        },
    });
    let mysql = json!({
        "user": { "type": "string", "maxLength": MysqlCheck::USER_BYTES_MAX, "pattern": "^[^\\x00]*$" },
        "password": { "type": "string", "maxLength": MysqlCheck::PASSWORD_BYTES_MAX, "pattern": "^(?!\\*\\*\\*$)[^\\x00]*$", "description": "Bytes, not characters. Shown as ***; *** sent back is the one that is stored." },
        "query": { "type": "string", "maxLength": MysqlCheck::SQL_BYTES_MAX, "pattern": format!("[^{BLANK}]"), "description": "What must not fail. Of `show global variables where variable_name='read_only'` the answer must be OFF." },
    });
    let mut shown_mysql = mysql.clone();
    shown_mysql["password"] = json!({ "type": "string" });
    vec![
        (
            "Manner",
            json!({
                "description": "How a check is repeated and believed: at the registry's own pace (5 s; 2 successes, 3 failures), in Nacos' manner (adaptive interval, 500 ms, three outcomes, refusals at once), or at a pace of its own.",
                "oneOf": [{ "enum": ["own", "nacos"] }, object(pace, &[])],
                "default": "own",
                "examples": ["nacos", { "interval_ms": 1000, "timeout_ms": 300, "rise": 2, "fall": 2 }],
            }),
        ),
        (
            "Checker",
            json!({
                "description": "What persistent instances of a cluster are asked. Without one: a TCP handshake with each instance's own port.",
                "oneOf": [
                    of_type("tcp", json!({}), &[]),
                    of_type("http", http.clone(), &[]),
                    of_type("mysql", mysql, &["user", "query"]),
                    of_type("none", json!({}), &[]),
                ],
                "examples": [{ "type": "http", "path": "/health", "expected": ["2xx"], "port": 8081 }],
            }),
        ),
        (
            "CheckerShown",
            json!({
                "oneOf": [
                    of_type("tcp", json!({}), &["manner"]),
                    of_type("http", http_shown(), &["manner", "path", "expected"]),
                    of_type("mysql", shown_mysql, &["manner", "user", "query"]),
                    of_type("none", json!({}), &[]),
                ],
            }),
        ),
        (
            "CheckedBy",
            json!({
                "description": "Who checks, and how many of them must find an instance well (default: more than half). Without it: the registry.",
                "type": "object",
                "properties": {
                    "vantages": {
                        "type": "array", "minItems": 1, "maxItems": VANTAGES_MAX, "uniqueItems": true,
                        "items": { "type": "string", "pattern": format!("^(registry|agent:[A-Za-z0-9_.-]{{1,{CLUSTER_LEN_MAX}}})$") },
                    },
                    "quorum": { "type": "integer", "minimum": 1, "maximum": VANTAGES_MAX },
                },
                "required": ["vantages"],
                "additionalProperties": false,
                "oneOf": quorums(),
                "examples": [{ "vantages": ["registry", "agent:edge-7"], "quorum": 2 }],
            }),
        ),
    ]
}

/// A quorum is of as many as there are.
fn quorums() -> Value {
    let of = |n: usize| {
        let vantages = json!({ "type": "array", "minItems": n, "maxItems": n });
        json!({ "properties": { "vantages": vantages, "quorum": { "type": "integer", "minimum": 1, "maximum": n } }, "required": ["vantages"] })
    };
    (1..=VANTAGES_MAX).map(of).collect()
}

/// Checkers that were set in Nacos' words may have what ours do not.
fn http_shown() -> Value {
    json!({
        "path": { "type": "string" },
        "headers": { "type": "object", "additionalProperties": { "type": "string" } },
        "expected": { "type": "array", "items": { "type": "string" } },
    })
}

fn taken() -> Schemas {
    let threshold = json!({ "type": "number", "minimum": 0, "maximum": 1, "default": 0, "description": "Below this share of healthy instances Nacos' view shows all of them. 0: never." });
    let weight = json!({ "type": "number", "minimum": 0, "maximum": WEIGHT_MAX, "default": WEIGHT_DEFAULT, "description": "Its share of the visitors." });
    let enabled = json!({ "type": "boolean", "default": true, "description": "Whether clients may see it." });
    let clusters = |schema: Value| json!({ "type": "object", "propertyNames": reference("ClusterName"), "additionalProperties": schema });
    let or_null = |schema: &str| json!({ "anyOf": [reference(schema), { "type": "null" }] });
    let with_example = |mut schema: Value, example: Value| {
        schema["examples"] = json!([example]);
        schema
    };
    let service = object(
        json!({
            "protect_threshold": threshold, "metadata": reference("Metadata"), "checked_by": reference("CheckedBy"),
            "same_labels": reference("SameLabels"),
            "clusters": clusters(reference("ClusterSettings")),
        }),
        &[],
    );
    let service_patch = object(
        json!({
            "protect_threshold": threshold, "metadata": reference("MetadataPatch"), "checked_by": or_null("CheckedBy"),
            "same_labels": or_null("SameLabels"),
            "clusters": clusters(or_null("ClusterPatch")),
        }),
        &[],
    );
    let instance = object(
        json!({
            "ephemeral": { "type": "boolean", "default": false, "description": "It lives by its beats, in memory." },
            "weight": weight, "enabled": enabled,
            "healthy": { "type": "boolean", "default": true, "description": "What it says of itself: an ephemeral one is that, of a persistent one Nacos' view shows it until the first verdict." },
            "metadata": reference("Metadata"), "checked_by": reference("CheckedBy"), "checker": reference("Checker"),
        }),
        &[],
    );
    let instance_patch = object(
        json!({ "weight": weight, "enabled": enabled, "metadata": reference("MetadataPatch"), "checked_by": or_null("CheckedBy") }),
        &[],
    );
    vec![
        (
            "ServiceSettings",
            with_example(
                service,
                json!({ "protect_threshold": 0.3, "metadata": { "team": "shop" }, "clusters": { "DEFAULT": { "checker": { "type": "http", "path": "/health" } } } }),
            ),
        ),
        ("ServicePatch", with_example(service_patch, json!({ "metadata": { "team": null } }))),
        (
            "ClusterSettings",
            object(
                json!({ "checker": reference("Checker"), "metadata": reference("Metadata"), "checked_by": reference("CheckedBy") }),
                &[],
            ),
        ),
        (
            "ClusterPatch",
            object(
                json!({ "checker": or_null("Checker"), "metadata": reference("MetadataPatch"), "checked_by": or_null("CheckedBy") }),
                &[],
            ),
        ),
        (
            "InstanceSettings",
            with_example(
                instance,
                json!({ "weight": 1, "metadata": { "zone": "a" }, "checker": { "type": "tcp", "manner": { "interval_ms": 1000 } } }),
            ),
        ),
        ("InstancePatch", with_example(instance_patch, json!({ "weight": 0 }))),
        (
            "ManualHealth",
            with_example(object(json!({ "healthy": { "type": "boolean" } }), &["healthy"]), json!({ "healthy": true })),
        ),
    ]
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn text() -> Value {
    json!({ "type": "string" })
}

/// All of its properties are there, but for the optional ones.
fn full(properties: Value, optional: &[&str]) -> Value {
    let names: Vec<&str> = properties.as_object().into_iter().flat_map(|p| p.keys().map(String::as_str)).collect();
    let required: Vec<&str> = names.into_iter().filter(|name| !optional.contains(name)).collect();
    object(properties.clone(), &required)
}

fn with(mut properties: Value, more: Value) -> Value {
    if let (Value::Object(properties), Value::Object(more)) = (&mut properties, more) {
        properties.extend(more);
    }
    properties
}

fn summary() -> Value {
    json!({
        "namespace": text(), "group": text(), "name": text(), "configured": { "type": "boolean" },
        "protect_threshold": { "type": "number" }, "metadata": reference("MetadataShown"),
        "instance_count": count(), "up": count(), "down": count(), "unknown": count(),
    })
}

fn verdict() -> Value {
    json!({
        "health": reference("Health"),
        "reason": { "type": "string", "description": "Why, in a word: L4OK, L4CON, L7STS, UNSEEN, BEAT, BEATLATE, MANUAL, AGENTGONE, ..." },
        "why": { "type": "string", "description": "Why, in a sentence." },
        "since_ms": { "type": "integer", "minimum": 0, "description": "Since when it is believed." },
        "rtt_us": { "type": "integer", "minimum": 0, "description": "Of the deciding probe; 0 if none decided." },
    })
}

fn agent() -> Value {
    json!({
        "name": text(), "connected": { "type": "boolean" }, "exposes": count(), "up": count(), "down": count(),
        "unknown": count(), "watches": count(), "services": { "type": "array", "items": text() },
        "link": reference("AgentLink"),
    })
}

fn shown() -> Schemas {
    let instances = json!({ "type": "array", "items": reference("Instance"), "maxItems": 1000 });
    let service = with(
        summary(),
        json!({
            "checked_by": reference("CheckedBy"),
            "same_labels": { "type": "array", "items": text() },
            "clusters": { "type": "object", "additionalProperties": full(
                json!({ "checker": reference("CheckerShown"), "metadata": reference("MetadataShown"), "checked_by": reference("CheckedBy") }),
                &["checked_by"],
            ) },
            "instances": instances,
        }),
    );
    let instance = with(
        verdict(),
        json!({
            "namespace": text(), "group": text(), "service": text(), "cluster": text(), "host": text(),
            "port": { "type": "integer", "minimum": 1, "maximum": 65535 },
            "weight": { "type": "number" }, "enabled": { "type": "boolean" }, "ephemeral": { "type": "boolean" },
            "vantage": { "type": "string", "description": "Whose instance it is: registry, or agent:NAME." },
            "vantages": { "type": "array", "items": full(with(verdict(), json!({ "vantage": text() })), &[]) },
            "quorum": { "type": "integer", "minimum": 1 },
            "probed": { "type": "string", "description": "Where it is probed from the registry, if it is." },
            "metadata": reference("MetadataShown"),
        }),
    );
    let mut found = with(verdict(), json!({ "vantage": text() }));
    if let Value::Object(found) = &mut found {
        found.remove("since_ms");
    }
    let kinds: Vec<String> = KINDS.iter().map(|(word, _)| format!("urn:ringspan:problem:{word}")).collect();
    let problem = json!({
        "type": { "type": "string", "enum": kinds },
        "title": text(),
        "status": { "type": "integer", "minimum": 400, "maximum": 599 },
        "detail": { "type": "string", "description": "What is wrong, and what would be right." },
        "param": { "type": "string", "description": "The parameter or field that is wrong." },
    });
    vec![
        ("MetadataShown", json!({ "type": "object", "additionalProperties": { "type": "string" } })),
        ("Service", full(service, &["checked_by", "same_labels"])),
        ("Instance", full(instance, &["probed"])),
        (
            "Probed",
            full(
                json!({
                    "done": { "type": "boolean", "description": "Whether all who check it have answered." },
                    "found": { "type": "array", "items": full(found, &[]) },
                    "instance": reference("Instance"),
                }),
                &[],
            ),
        ),
        (
            "AgentLink",
            full(
                json!({ "id": text(), "name": text(), "software": text(), "peer": text(), "since_ms": count(), "carriers": count() }),
                &["peer"],
            ),
        ),
        ("AgentDetail", full(with(agent(), json!({ "exposed": instances, "watched": instances })), &["link"])),
        ("Problem", full(problem, &["param"])),
        (
            "Server",
            full(
                json!({ "status": { "const": "up" }, "version": text(), "services": count(), "instances": count(), "agents_connected": count() }),
                &[],
            ),
        ),
        (
            "Credentials",
            json!({
                "type": "object",
                "properties": { "username": { "type": "string", "pattern": format!("[^{BLANK}]") }, "password": { "type": "string" } },
                "required": ["username"],
                "examples": [{ "username": "admin", "password": "a password" }],
            }),
        ),
        (
            "Session",
            full(
                json!({ "accessToken": text(), "tokenTtl": { "type": "integer", "minimum": 0, "description": "Seconds." }, "globalAdmin": { "type": "boolean" }, "username": text() }),
                &[],
            ),
        ),
        (
            "Me",
            full(
                json!({ "user": text(), "admin": { "type": "boolean" }, "grants": { "type": "array" }, "required": { "type": "boolean" } }),
                &[],
            ),
        ),
        ("Kind", full(json!({ "kind": { "enum": ["persistent", "ephemeral", "none"] }, "converted": count() }), &[])),
        ("Document", json!({ "type": "object", "required": ["openapi", "paths"] })),
        (
            "Cluster",
            full(
                json!({ "members": { "type": "array", "items": full(json!({ "name": text(), "address": text() }), &[]) } }),
                &[],
            ),
        ),
    ]
}

fn shown_lists() -> Schemas {
    let page = |of: &str, item: Value| {
        with(
            json!({ "count": count(), "page": { "type": "integer", "minimum": 1 }, "size": { "type": "integer", "minimum": 1 } }),
            json!({ of: { "type": "array", "items": item, "maxItems": 1000 } }),
        )
    };
    let tally = || json!({ "up": count(), "down": count(), "unknown": count() });
    let namespace = with(tally(), json!({ "name": text(), "services": count(), "instances": count() }));
    vec![
        ("ServicePage", full(page("services", full(summary(), &[])), &[])),
        ("InstancePage", full(with(page("instances", reference("Instance")), tally()), &[])),
        ("NamespacePage", full(page("namespaces", full(namespace, &[])), &[])),
        ("AgentPage", full(page("agents", full(agent(), &["link"])), &[])),
    ]
}

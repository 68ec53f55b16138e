//! `ringspan service | instance | agent list, show | namespace | health`: what is in a registry and how it is, asked and
//! changed through its own API (docs/api.md).
//! Promise: `--format json` is what the API answered, byte for byte; a refusal's sentence is the registry's own.

pub(crate) mod args;
mod client;
mod tables;

use crate::cli::ListFormat;
use crate::{Ending, Failure};
use args::{
    AgentQuery, CheckArgs, CheckKind, Health, HealthArg, Instance, InstanceList, InstanceRegister, InstanceSet,
    KindArg, MannerArg, Named, NamedInstance, Namespace, Paged, Pairs, PanelArgs, Service, ServiceSet,
};
use client::{Answer, Client, Trouble};
use hyper::{Method, StatusCode};
use serde_json::{Map, Value, json};
use tables::{Table, items, text, width};

/// `ringspan service ...`
pub(crate) fn service(command: &Service) -> Result<Ending, Failure> {
    match command {
        Service::List(args) => {
            let mut query = vec![("namespace", args.namespace.as_str())];
            let some = [("group", &args.group), ("name", &args.name), ("label", &args.label), ("health", &args.health)];
            query.extend(some.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?))));
            let answer = list(&args.ask, &["services"], query, &args.paged)?;
            show(args.ask.format, &answer, |v| page("services", v, tables::services(v)))
        }
        Service::Show(args) => {
            let name = Path::of(&args.of);
            let answer = Client::new(&args.ask)?.call(Method::GET, &name.service(), &[], None)?;
            show(args.ask.format, &answer, detail)
        }
        Service::Set(args) => set_service(args),
        Service::Convert(args) => {
            let name = Path::of(&args.of);
            let kind = if args.to == KindArg::Ephemeral { "ephemeral" } else { "persistent" };
            let path = [&name.service()[..], &["kind"]].concat();
            let answer = Client::new(&args.ask)?.call(Method::PUT, &path, &[("kind", kind)], None)?;
            show(args.ask.format, &answer, |v| {
                format!(
                    "{} instances were converted; those of {} are {kind} now\n",
                    text(&v["converted"]),
                    name.shown()
                )
            })
        }
        Service::Delete(args) => {
            let name = Path::of(&args.of);
            let answer = Client::new(&args.ask)?.call(Method::DELETE, &name.service(), &[], None)?;
            show(args.ask.format, &answer, |_| format!("service {} is gone\n", name.shown()))
        }
    }
}

/// `ringspan instance ...`
pub(crate) fn instance(command: &Instance) -> Result<Ending, Failure> {
    match command {
        Instance::List(args) => {
            let answer = list_instances(args)?;
            show(args.ask.format, &answer, |v| {
                page("instances", v, tables::instances(items(&v["instances"]), args.service.is_none()))
            })
        }
        Instance::Show(args) => {
            let which = Place::of(&args.which)?;
            let answer = Client::new(&args.ask)?.call(Method::GET, &which.path(), &[], None)?;
            show(args.ask.format, &answer, one)
        }
        Instance::Register(args) => register(args),
        Instance::Set(args) => set_instance(args),
        Instance::Deregister(args) => {
            let which = Place::of(&args.which)?;
            let answer = Client::new(&args.ask)?.call(Method::DELETE, &which.path(), &[], None)?;
            show(args.ask.format, &answer, |_| format!("{} is deregistered\n", args.which.address))
        }
        Instance::Health(args) => {
            let which = Place::of(&args.which)?;
            let path = [&which.path()[..], &["health"]].concat();
            let body = json!({ "healthy": args.health == HealthArg::Up });
            let answer = Client::new(&args.ask)?.call(Method::PUT, &path, &[], Some(body))?;
            show(args.ask.format, &answer, one)
        }
        Instance::Probe(args) => {
            let which = Place::of(&args.which)?;
            let path = [&which.path()[..], &["probe"]].concat();
            let answer = Client::new(&args.ask)?.call(Method::POST, &path, &[], None)?;
            show(args.ask.format, &answer, |v| {
                if v["done"] != true {
                    return format!("It takes a while; so far:\n\n{}", one(&v["instance"]));
                }
                let found = items(&v["found"]).iter().map(tables::finding).collect::<String>();
                format!("{found}\n{}", one(&v["instance"]))
            })?;
            let is_up = answer.value["instance"]["health"] == "up";
            Ok(if is_up { Ending::Good } else { Ending::Down })
        }
    }
}

/// `ringspan agent list` and `show`
pub(crate) fn agent(command: &AgentQuery) -> Result<Ending, Failure> {
    match command {
        AgentQuery::List(args) => {
            let answer = list(&args.ask, &["agents"], Vec::new(), &args.paged)?;
            show(args.ask.format, &answer, |v| page("agents", v, tables::agents(v)))
        }
        AgentQuery::Show(args) => {
            let answer = Client::new(&args.ask)?.call(Method::GET, &["agents", &args.agent], &[], None)?;
            show(args.ask.format, &answer, |v| {
                let mut out = tables::agents(&json!({ "agents": [v] })).draw(width());
                if v["link"].is_object() {
                    let link = &v["link"];
                    out += &format!(
                        "\nid {}, calls itself {}, {}\n",
                        text(&link["id"]),
                        text(&link["name"]),
                        text(&link["software"])
                    );
                }
                for (what, key) in [("exposes", "exposed"), ("was asked to look at", "watched")] {
                    if !items(&v[key]).is_empty() {
                        out += &format!("\nIt {what}:\n");
                        out += &tables::instances(items(&v[key]), true).draw(width());
                    }
                }
                out
            })
        }
    }
}

/// `ringspan namespace ...`
pub(crate) fn namespace(command: &Namespace) -> Result<Ending, Failure> {
    let Namespace::List(args) = command;
    let answer = list(&args.ask, &["namespaces"], Vec::new(), &args.paged)?;
    show(args.ask.format, &answer, |v| page("namespaces", v, tables::namespaces(v)))
}

/// `ringspan health`
pub(crate) fn health(args: &Health) -> Result<Ending, Failure> {
    let client = Client::new(&args.ask)?;
    let name = args.service.as_ref().map(|service| {
        Path::new(
            args.namespace.as_deref().unwrap_or("public"),
            args.group.as_deref().unwrap_or("DEFAULT_GROUP"),
            service,
        )
    });
    let path = match &name {
        Some(name) => [&name.service()[..], &["instances"]].concat(),
        None => vec!["instances"],
    };
    let mut query = vec![("enabled", "true")];
    if name.is_none() {
        query.push(("namespace", args.namespace.as_deref().unwrap_or("*")));
        query.extend(args.group.as_deref().map(|group| ("group", group)));
    }
    query.extend(args.label.as_deref().map(|label| ("label", label)));
    let all = client.call(Method::GET, &path, &[&query[..], &[("size", "1")]].concat(), None)?;
    let unwell = [&query[..], &[("health", "down,unknown"), ("size", "1000")]].concat();
    let unwell = client.call(Method::GET, &path, &unwell, None)?;
    let blind = |i: &Value| i["health"] == "unknown" && i["reason"] != "UNSEEN";
    let list = items(&unwell.value["instances"]);
    let is_down = unwell.value["down"] != 0 || list.iter().any(blind);
    show(args.ask.format, &unwell, |v| {
        let (total, count) = (text(&all.value["count"]), text(&v["count"]));
        match (total.as_str(), list.is_empty()) {
            ("0", _) => "There are no instances.\n".into(),
            (_, true) => format!("All {total} instances are well.\n"),
            (_, false) => {
                format!("{count} of {total} instances are not well.\n\n{}", page("instances", v, tables::unwell(list)))
            }
        }
    })?;
    Ok(if is_down { Ending::Down } else { Ending::Good })
}

/// A service's names as a path.
struct Path {
    namespace: String,
    group: String,
    name: String,
}

impl Path {
    fn of(named: &Named) -> Path {
        Path::new(&named.namespace, &named.group, &named.service)
    }

    fn new(namespace: &str, group: &str, service: &str) -> Path {
        let (group, name) = service.split_once("@@").unwrap_or((group, service));
        Path { namespace: namespace.into(), group: group.into(), name: name.into() }
    }

    fn service(&self) -> [&str; 4] {
        ["services", &self.namespace, &self.group, &self.name]
    }

    fn shown(&self) -> String {
        tables::service(&json!(self.namespace), &json!(self.group), &json!(self.name))
    }
}

/// An instance's names as a path.
struct Place {
    service: Path,
    cluster: String,
    host: String,
    port: String,
}

impl Place {
    fn of(named: &NamedInstance) -> Result<Place, Failure> {
        let (host, port) =
            args::address(&named.address).map_err(|e| Failure::Usage(format!("{:?}: {e}", named.address)))?;
        Ok(Place { service: Path::of(&named.of), cluster: named.cluster.clone(), host, port: port.to_string() })
    }

    fn path(&self) -> Vec<&str> {
        [&self.service.service()[..], &["instances", &self.cluster, &self.host, &self.port]].concat()
    }
}

fn list(ask: &args::Ask, path: &[&str], query: Vec<(&str, &str)>, paged: &Paged) -> Result<Answer, Failure> {
    let (page, size) = (paged.page.to_string(), paged.size.to_string());
    let query = [&query[..], &[("page", page.as_str()), ("size", size.as_str())]].concat();
    Ok(Client::new(ask)?.call(Method::GET, path, &query, None)?)
}

fn list_instances(args: &InstanceList) -> Result<Answer, Failure> {
    let mut query = Vec::new();
    let some = [("cluster", &args.cluster), ("label", &args.label), ("health", &args.health)];
    query.extend(some.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?))));
    let Some(service) = &args.service else {
        query.push(("namespace", &args.namespace));
        query.extend(args.group.as_deref().map(|group| ("group", group)));
        return list(&args.ask, &["instances"], query, &args.paged);
    };
    let name = Path::new(&args.namespace, args.group.as_deref().unwrap_or("DEFAULT_GROUP"), service);
    list(&args.ask, &[&name.service()[..], &["instances"]].concat(), query, &args.paged)
}

fn set_service(args: &ServiceSet) -> Result<Ending, Failure> {
    let name = Path::of(&args.of);
    let checker = checker(&args.check)?;
    let (metadata, checked_by) = (merge(&args.pairs), panel(&args.panel, true)?);
    let mut body = Map::new();
    let mut cluster = Map::new();
    body.extend(args.protect_threshold.map(|share| ("protect_threshold".to_owned(), share.into())));
    // What is for a cluster goes there, the rest to the service.
    let place = if args.cluster.is_some() { &mut cluster } else { &mut body };
    place.extend(metadata.map(|m| ("metadata".to_owned(), m)));
    place.extend(checked_by.map(|p| ("checked_by".to_owned(), p)));
    cluster.extend(checker.map(|c| ("checker".to_owned(), c)));
    if !cluster.is_empty() {
        let named = args.cluster.as_deref().unwrap_or("DEFAULT");
        body.insert("clusters".into(), json!({ named: cluster }));
    }
    let client = Client::new(&args.ask)?;
    let body = Value::from(body);
    let answer = match client.call(Method::PATCH, &name.service(), &[], Some(body.clone())) {
        // It comes to be by being configured.
        Err(Trouble::Refused(refused)) if refused.status == StatusCode::NOT_FOUND => {
            client.call(Method::PUT, &name.service(), &[], Some(without_nulls(body)))?
        }
        answer => answer?,
    };
    show(args.ask.format, &answer, detail)
}

/// The same for a service that has nothing to take away from.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, v)| !v.is_null());
            kept.map(|(key, v)| (key, without_nulls(v))).collect::<Map<_, _>>().into()
        }
        other => other,
    }
}

fn register(args: &InstanceRegister) -> Result<Ending, Failure> {
    let which = Place::of(&args.which)?;
    let mut body = json!({ "ephemeral": args.ephemeral, "weight": args.weight, "enabled": !args.disabled });
    body["metadata"] = args.metadata.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect::<Map<_, _>>().into();
    if let Some(checker) = checker(&args.check)? {
        body["checker"] = checker;
    }
    if let Some(panel) = panel(&args.panel, false)? {
        body["checked_by"] = panel;
    }
    let answer = Client::new(&args.ask)?.call(Method::PUT, &which.path(), &[], Some(body))?;
    show(args.ask.format, &answer, one)
}

fn set_instance(args: &InstanceSet) -> Result<Ending, Failure> {
    let which = Place::of(&args.which)?;
    let mut body = Map::new();
    body.extend(args.weight.map(|weight| ("weight".to_owned(), weight.into())));
    body.extend(args.enabled.map(|enabled| ("enabled".to_owned(), enabled.into())));
    body.extend(merge(&args.pairs).map(|m| ("metadata".to_owned(), m)));
    body.extend(panel(&args.panel, true)?.map(|p| ("checked_by".to_owned(), p)));
    if body.is_empty() {
        return Err(Failure::Usage("set what? Try: --weight, --enabled, --metadata, --unset or --checked-by".into()));
    }
    let answer = Client::new(&args.ask)?.call(Method::PATCH, &which.path(), &[], Some(body.into()))?;
    show(args.ask.format, &answer, one)
}

fn merge(pairs: &Pairs) -> Option<Value> {
    let set = pairs.metadata.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str())));
    let unset = pairs.unset.iter().map(|k| (k.clone(), Value::Null));
    let all: Map<_, _> = unset.chain(set).collect();
    (!all.is_empty()).then(|| all.into())
}

/// `away`: whether "default" can be said.
fn panel(args: &PanelArgs, away: bool) -> Result<Option<Value>, Failure> {
    let Some(list) = &args.checked_by else { return Ok(None) };
    if list == "default" {
        return match away {
            true => Ok(Some(Value::Null)),
            false => Ok(None),
        };
    }
    let vantages: Vec<&str> = list.split(',').map(str::trim).collect();
    let mut panel = json!({ "vantages": vantages });
    if let Some(quorum) = args.quorum {
        panel["quorum"] = quorum.get().into();
    }
    Ok(Some(panel))
}

/// What a checker's flags say, if one is named.
fn checker(args: &CheckArgs) -> Result<Option<Value>, Failure> {
    let Some(kind) = args.check else { return Ok(None) };
    let of_http = args.check_path.is_some() || !args.check_header.is_empty() || !args.check_expect.is_empty();
    let of_mysql = args.check_user.is_some() || args.check_password.is_some() || args.check_query.is_some();
    let paced = args.interval.is_some() || args.timeout.is_some() || args.rise.is_some() || args.fall.is_some();
    let stray = [
        (of_http && kind != CheckKind::Http, "--check-path, --check-header and --check-expect are for --check http"),
        (
            of_mysql && kind != CheckKind::Mysql,
            "--check-user, --check-password and --check-query are for --check mysql",
        ),
        (
            (paced || args.manner.is_some() || args.check_port.is_some()) && kind == CheckKind::None,
            "--check none has no port and no pace",
        ),
    ];
    if let Some((_, says)) = stray.into_iter().find(|(is, _)| *is) {
        return Err(Failure::Usage(says.into()));
    }
    let mut checker = match kind {
        CheckKind::Tcp => json!({ "type": "tcp" }),
        CheckKind::None => json!({ "type": "none" }),
        CheckKind::Http => {
            let headers: Map<_, _> = args.check_header.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
            let mut http =
                json!({ "type": "http", "path": args.check_path.as_deref().unwrap_or("/"), "headers": headers });
            if !args.check_expect.is_empty() {
                http["expected"] = json!(args.check_expect);
            }
            http
        }
        CheckKind::Mysql => {
            let needs = |flag: &str| Failure::Usage(format!("--check mysql needs {flag}"));
            let user = args.check_user.as_deref().ok_or_else(|| needs("--check-user"))?;
            let query = args.check_query.as_deref().ok_or_else(|| needs("--check-query"))?;
            let password = args.check_password.clone().or_else(|| std::env::var("RINGSPAN_CHECK_PASSWORD").ok());
            json!({ "type": "mysql", "user": user, "query": query, "password": password.unwrap_or_default() })
        }
    };
    if let Some(port) = args.check_port {
        checker["port"] = port.get().into();
    }
    if paced {
        let mut pace = Map::new();
        pace.extend(args.interval.map(|t| ("interval_ms".to_owned(), args::ms(t).into())));
        pace.extend(args.timeout.map(|t| ("timeout_ms".to_owned(), args::ms(t).into())));
        pace.extend(args.rise.map(|n| ("rise".to_owned(), n.get().into())));
        pace.extend(args.fall.map(|n| ("fall".to_owned(), n.get().into())));
        checker["manner"] = pace.into();
    } else if let Some(manner) = args.manner {
        checker["manner"] = if manner == MannerArg::Nacos { "nacos".into() } else { "own".into() };
    }
    Ok(Some(checker))
}

/// Prints an answer.
fn show(format: ListFormat, answer: &Answer, draw: impl FnOnce(&Value) -> String) -> Result<Ending, Failure> {
    match format {
        ListFormat::Text => crate::say(&draw(&answer.value)),
        ListFormat::Json if answer.text.is_empty() => {}
        ListFormat::Json => crate::say(&format!("{}\n", answer.text)),
    }
    Ok(Ending::Good)
}

/// A page, and how to see the rest.
fn page(key: &str, value: &Value, table: Table) -> String {
    let (shown, count) = (items(&value[key]).len(), value["count"].as_u64().unwrap_or_default());
    let number = value["page"].as_u64().unwrap_or(1);
    if count == 0 {
        return format!("There are no such {key}.\n");
    }
    let mut out = table.draw(width());
    if (shown as u64) < count {
        out += &format!("\nPage {number}: {shown} of {count} {key}. More: --page {}\n", number + 1);
    }
    out
}

/// A service for people.
fn detail(v: &Value) -> String {
    let mut out = tables::services(&json!({ "services": [v] })).draw(width());
    if v["checked_by"].is_object() {
        out += &format!("\nChecked by {}\n", panel_words(&v["checked_by"]));
    }
    let mut clusters = Table::new(&["CLUSTER", "CHECK", "PORT", "MANNER", "CHECKED BY", "METADATA"]);
    for (name, cluster) in v["clusters"].as_object().into_iter().flatten() {
        let c = &cluster["checker"];
        clusters.row([
            name.clone(),
            check_words(c),
            if c["port"].is_null() { "own".into() } else { text(&c["port"]) },
            manner_words(&c["manner"]),
            if cluster["checked_by"].is_object() { panel_words(&cluster["checked_by"]) } else { "-".into() },
            tables::pairs(&cluster["metadata"]),
        ]);
    }
    if v["clusters"].as_object().is_some_and(|c| !c.is_empty()) {
        out += &format!("\n{}", clusters.draw(width()));
    }
    let instances = items(&v["instances"]);
    if !instances.is_empty() {
        out += &format!("\n{}", tables::instances(instances, false).draw(width()));
        let count = v["instance_count"].as_u64().unwrap_or_default();
        if (instances.len() as u64) < count {
            out += &format!("\nThe first {} of {count}. More: ringspan instance list\n", instances.len());
        }
    }
    out
}

fn check_words(c: &Value) -> String {
    let expected = || items(&c["expected"]).iter().map(text).collect::<Vec<_>>().join(",");
    match c["type"].as_str() {
        Some("http") => format!("http {} expects {}", text(&c["path"]), expected()),
        Some("mysql") => format!("mysql {}: {}", text(&c["user"]), text(&c["query"])),
        _ => text(&c["type"]),
    }
}

fn manner_words(manner: &Value) -> String {
    if !manner.is_object() {
        return text(manner);
    }
    let time = |key: &str| args::shown(std::time::Duration::from_millis(manner[key].as_u64().unwrap_or_default()));
    format!(
        "every {}, within {}, rise {}, fall {}",
        time("interval_ms"),
        time("timeout_ms"),
        manner["rise"],
        manner["fall"]
    )
}

fn panel_words(panel: &Value) -> String {
    let all = items(&panel["vantages"]).iter().map(text).collect::<Vec<_>>().join(",");
    format!("{all} ({} must agree)", text(&panel["quorum"]))
}

/// An instance for people.
fn one(v: &Value) -> String {
    let table = tables::instances(std::slice::from_ref(v), true).draw(width());
    format!("{table}\n{}", tables::voices(v).draw(width()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn set(args: &[&str]) -> Result<Option<Value>, String> {
        let all = ["ringspan", "service", "set", "web"].iter().chain(args);
        match Cli::try_parse_from(all).map_err(|e| e.to_string())?.command {
            Command::Service(Service::Set(args)) => checker(&args.check).map_err(|e| e.to_string()),
            _ => unreachable!("a service is set"),
        }
    }

    /// A checker's flags make the API's object, and flags of another checker are refused: table.
    #[test]
    fn checkers() {
        let good: &[(&[&str], Value)] = &[
            (&["--check", "tcp", "--check-port", "81"], json!({ "type": "tcp", "port": 81 })),
            (
                &[
                    "--check",
                    "http",
                    "--check-path",
                    "/up",
                    "--check-header",
                    "X: y",
                    "--check-expect",
                    "2xx,301",
                    "--interval",
                    "1s",
                    "--fall",
                    "1",
                ],
                json!({ "type": "http", "path": "/up", "headers": { "X": "y" }, "expected": ["2xx", "301"], "manner": { "interval_ms": 1000, "fall": 1 } }),
            ),
            (
                &[
                    "--check",
                    "mysql",
                    "--check-user",
                    "u",
                    "--check-query",
                    "select 1",
                    "--check-password",
                    "p",
                    "--manner",
                    "nacos",
                ],
                json!({ "type": "mysql", "user": "u", "query": "select 1", "password": "p", "manner": "nacos" }),
            ),
            (&["--check", "none"], json!({ "type": "none" })),
        ];
        for (args, want) in good {
            assert_eq!(set(args).as_ref(), Ok(&Some(want.clone())), "{args:?}");
        }
        assert_eq!(set(&[]), Ok(None));
        let bad: &[(&[&str], &str)] = &[
            (&["--check-port", "81"], "--check"),
            (&["--check", "tcp", "--check-path", "/"], "--check http"),
            (&["--check", "http", "--check-user", "u"], "--check mysql"),
            (&["--check", "mysql", "--check-user", "u"], "--check-query"),
            (&["--check", "none", "--interval", "1s"], "no pace"),
            (&["--check", "tcp", "--manner", "nacos", "--rise", "2"], "cannot be used with"),
            (&["--quorum", "2"], "--checked-by"),
        ];
        for (args, says) in bad {
            let error = set(args).expect_err(says);
            assert!(error.contains(says), "{args:?}: {error}");
        }
    }
}

//! What there is as a whole: the server, namespaces, agents, the members of a cluster, and what happens.

use super::asked::{OfAgent, Query};
use super::operation::{Operation, param};
use super::problem::Problem;
use super::seen::{Seen, Tally};
use super::{INSTANCES_SHOWN, document, scan};
use crate::events::Filter;
use crate::http::{App, nacos_auth};
use crate::model::Vantage;
use crate::panel::answers_to;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation::new("get", "/api/v1/health", get(health))
            .says("getHealth", "server", "That the server is up, and how much it holds. How instances are: see listAllInstances.")
            .open()
            .answers(200, "It is up.", "Server"),
        Operation::new("post", "/api/v1/login", post(nacos_auth::login))
            .says("login", "accounts", "A session's token for a name and a password, which stand in a form. Nacos' answer.")
            .form("Credentials")
            .open()
            .answers(200, "The token. Send it as `Authorization: Bearer TOKEN`.", "Session"),
        Operation::new("get", "/api/v1/me", get(nacos_auth::me))
            .says("getMe", "accounts", "Who the caller is taken for.")
            .answers(200, "The account; no name where there are no accounts.", "Me"),
        Operation::new("get", "/api/v1/openapi.json", get(openapi))
            .says("getDocument", "server", "This document.")
            .answers(200, "OpenAPI 3.1.", "Document")
            .tagged(),
        Operation::new("get", "/api/v1/cluster", get(cluster))
            .says("getCluster", "server", "The members of the cluster that live, with the addresses of their HTTP APIs.")
            .answers(200, "None, if there is no cluster.", "Cluster"),
        Operation::new("get", "/api/v1/namespaces", get(namespaces))
            .says("listNamespaces", "services", "Namespaces that services are in, a page at a time. A namespace exists by being named.")
            .takes(&param::PAGE)
            .answers(200, "The page, and how many there are in all.", "NamespacePage")
            .tagged(),
        Operation::new("get", "/api/v1/agents", get(agents))
            .says("listAgents", "agents", "Agents that have connected or have instances, a page at a time.")
            .takes(&param::PAGE)
            .answers(200, "The page, and how many there are in all.", "AgentPage")
            .tagged(),
        Operation::new("get", "/api/v1/agents/{agent}", get(agent))
            .says("getAgent", "agents", "An agent, what it exposes, and what it was asked to look at: of each the first 1000.")
            .answers(200, "The agent.", "AgentDetail")
            .tagged()
            .refuses(&["no-agent"]),
        Operation::new("get", "/api/v1/events", get(events))
            .says(
                "streamEvents",
                "events",
                "What happens, as it happens: server-sent events without an end. After a break send the last id as Last-Event-ID; `missed` says how many events are missing.",
            )
            .takes(&param::OF_EVENTS)
            .takes(&[param::LAST_EVENT_ID])
            .streams(),
    ]
}

#[derive(Serialize)]
struct Server {
    status: &'static str,
    version: &'static str,
    services: usize,
    instances: usize,
    agents_connected: usize,
}

async fn health(State(app): State<App>, query: Query) -> Result<Json<Server>, Problem> {
    query.only(&[])?;
    let (services, instances) = app.registry.snapshot().counts();
    let agents_connected = app.registry.snapshot().agents().iter().filter(|a| a.connected).count();
    Ok(Json(Server { status: "up", version: env!("CARGO_PKG_VERSION"), services, instances, agents_connected }))
}

async fn openapi(query: Query) -> Result<impl IntoResponse, Problem> {
    query.only(&[])?;
    Ok(([(header::CONTENT_TYPE, "application/json")], document::text()))
}

#[derive(Serialize)]
struct Cluster {
    members: Vec<Member>,
}

#[derive(Serialize)]
struct Member {
    name: String,
    address: String,
}

async fn cluster(State(app): State<App>, query: Query) -> Result<Json<Cluster>, Problem> {
    query.only(&[])?;
    let member = |(name, address)| Member { name, address };
    Ok(Json(Cluster { members: app.registry.members().into_iter().map(member).collect() }))
}

#[derive(Serialize)]
struct NamespacePage {
    count: usize,
    page: usize,
    size: usize,
    namespaces: Vec<Namespace>,
}

#[derive(Default, Serialize)]
struct Namespace {
    name: String,
    services: usize,
    instances: usize,
    #[serde(flatten)]
    tally: Tally,
}

async fn namespaces(State(app): State<App>, query: Query) -> Result<Json<NamespacePage>, Problem> {
    query.only(&["page", "size"])?;
    let page = query.page()?;
    let actor = crate::access::Actor::current();
    let may = move |name: &str| actor.as_ref().is_none_or(|a| a.principal.may(name, crate::access::Action::Read));
    scan(move || {
        let mut all = BTreeMap::<String, Namespace>::new();
        for view in app.registry.snapshot().services().into_iter().filter(|v| may(v.key.namespace())) {
            let name = view.key.namespace();
            if !all.contains_key(&**name) {
                all.insert(name.to_string(), Namespace { name: name.to_string(), ..Namespace::default() });
            }
            let Some(namespace) = all.get_mut(&**name) else { continue };
            namespace.services += 1;
            namespace.instances += view.instances.len();
            view.instances.iter().for_each(|i| namespace.tally.add(i.health().health));
        }
        let count = all.len();
        let namespaces = all.into_values().skip(page.skip()).take(page.size).collect();
        Json(NamespacePage { count, page: page.page, size: page.size, namespaces })
    })
    .await
}

#[derive(Serialize)]
struct AgentPage {
    count: usize,
    page: usize,
    size: usize,
    agents: Vec<Agent>,
}

/// An agent as the registry knows it, and its link, if the process has one.
#[derive(Serialize)]
struct Agent {
    name: String,
    connected: bool,
    /// How many it exposes, and how those are.
    exposes: usize,
    #[serde(flatten)]
    tally: Tally,
    /// How many it was asked to look at besides.
    watches: usize,
    services: BTreeSet<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<AgentLink>,
}

/// What is known of a connected agent's link. The process that has the links fills it in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AgentLink {
    /// The agent's id.
    pub id: String,
    /// What it calls itself.
    pub name: String,
    /// Its software and version, as it says; empty if it does not.
    pub software: String,
    /// From where it is connected; `None` if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Since when, milliseconds since 1970.
    pub since_ms: u64,
    /// Connections that carry it.
    pub carriers: u32,
}

/// Links of the agents that are connected, by the names the registry knows them by.
pub type AgentLinks = std::sync::Arc<dyn Fn() -> BTreeMap<String, AgentLink> + Send + Sync>;

#[derive(Serialize)]
struct AgentDetail {
    #[serde(flatten)]
    agent: Agent,
    exposed: Vec<Seen>,
    watched: Vec<Seen>,
}

/// Goes through everything once.
fn look(app: &App, wanted: Option<&str>) -> Vec<AgentDetail> {
    let mut links = app.agents.as_ref().map(|links| links()).unwrap_or_default();
    let mut all: BTreeMap<String, AgentDetail> = BTreeMap::new();
    for known in app.registry.snapshot().agents() {
        if wanted.is_some_and(|w| w != &*known.name) {
            continue;
        }
        let agent = Agent {
            name: known.name.to_string(),
            connected: known.connected,
            exposes: 0,
            tally: Tally::default(),
            watches: 0,
            services: BTreeSet::new(),
            link: links.remove(&*known.name),
        };
        all.insert(known.name.to_string(), AgentDetail { agent, exposed: Vec::new(), watched: Vec::new() });
    }
    for view in app.registry.snapshot().services() {
        for i in &view.instances {
            let seen = || Seen::of(&app.registry, &view, i);
            if let Vantage::Agent(owner) = &i.record.vantage {
                let Some(detail) = all.get_mut(&**owner) else { continue };
                detail.agent.exposes += 1;
                detail.agent.tally.add(i.health().health);
                if detail.agent.services.len() < INSTANCES_SHOWN {
                    detail.agent.services.insert(view.key.name().to_string());
                }
                if wanted.is_some() && detail.exposed.len() < INSTANCES_SHOWN {
                    detail.exposed.push(seen());
                }
            }
            let Some(ballot) = i.ballot() else { continue };
            for name in ballot.agents() {
                // Agents that begin with the name stand in a row.
                let row = all.range_mut(name.to_string()..).take_while(|(agent, _)| agent.starts_with(&**name));
                for (_, detail) in row.filter(|(agent, _)| answers_to(agent, name)) {
                    detail.agent.watches += 1;
                    if wanted.is_some() && detail.watched.len() < INSTANCES_SHOWN {
                        detail.watched.push(seen());
                    }
                }
            }
        }
    }
    all.into_values().collect()
}

async fn agents(State(app): State<App>, query: Query) -> Result<Json<AgentPage>, Problem> {
    query.only(&["page", "size"])?;
    let page = query.page()?;
    scan(move || {
        let all = look(&app, None);
        let count = all.len();
        let agents = all.into_iter().map(|d| d.agent).skip(page.skip()).take(page.size).collect();
        Json(AgentPage { count, page: page.page, size: page.size, agents })
    })
    .await
}

async fn agent(State(app): State<App>, OfAgent(name): OfAgent, query: Query) -> Result<Json<AgentDetail>, Problem> {
    query.only(&[])?;
    let found = scan(move || look(&app, Some(&name)).pop().ok_or(name)).await?;
    found.map(Json).map_err(|name| {
        Problem::new("no-agent", format!("there is no agent {name:?}; GET /api/v1/agents lists those there are"))
    })
}

/// `?kinds=&namespace=&group=&service=`: lists with commas, but for the namespace, by which access is decided; `web-*` is
/// every name that begins so.
async fn events(State(app): State<App>, headers: HeaderMap, query: Query) -> Result<impl IntoResponse, Problem> {
    query.only(&["kinds", "namespace", "group", "service", "last_event_id"])?;
    let list = |name| {
        let words = query.text(name).unwrap_or_default().split(',').map(str::trim);
        words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let (namespaces, groups) = (query.text("namespace").map(str::to_owned).into_iter().collect(), list("group"));
    let filter = Filter { kinds: list("kinds"), namespaces, groups, services: list("service") };
    filter.check().map_err(|problem| Problem::param("kinds", format!("kinds: {problem}")))?;
    // Browsers say it in the header when they come back; who cannot set one may say it in the query.
    let header = headers.get("last-event-id").and_then(|v| v.to_str().ok());
    Ok(crate::events::stream(&app.events, filter, header.or(query.text("last_event_id"))))
}

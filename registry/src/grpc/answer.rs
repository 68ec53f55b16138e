//! A client's question, and the answer.
//! Promise: every payload gets one, whatever is in it; what is not served says so with the code on which clients go on.

use super::client::Client;
use super::payload::Payload;
use super::words::{Asked, Sorry, bad, code, good};
use crate::access::{Action, Actor, Principal};
use crate::model::{GROUP_DEFAULT, NAMESPACE_DEFAULT};
use crate::push::Update;
use crate::table::Command;
use crate::wire;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Nacos' longest page.
const PAGE_LEN_MAX: usize = 500;
/// The registry's own answer comes first: it refuses after 5 s.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
const _: () = assert!(ANSWER_TIME_MAX.as_millis() > crate::service::SUBMIT_WAIT_MAX.as_millis());

/// The kind of a good answer, and its members beyond those that all have.
type Good = (&'static str, String);

pub(super) async fn answer(client: &Arc<Client>, payload: &Payload) -> Payload {
    client.on_heard(Instant::now());
    let kind = payload.kind();
    let (request_id, answered) = match Asked::read(payload.json()) {
        Err(sorry) => (None, Err(sorry)),
        Ok(mut asked) => {
            let id = asked.request_id.take();
            let timeout = || Sorry::new(code::SERVER, "no answer in time; whether it was done is not known");
            let answered = tokio::time::timeout(ANSWER_TIME_MAX, admit(client, kind, payload, &asked)).await;
            (id, answered.unwrap_or_else(|_elapsed| Err(timeout())))
        }
    };
    client.stats().on_request(kind, answered.is_ok());
    match answered {
        Ok((kind, more)) => Payload::new(kind, good(request_id.as_ref(), &more)),
        Err(sorry) => {
            tracing::debug!(connection = client.name, kind, code = sorry.code, sorry.text, "grpc: refused");
            Payload::new("ErrorResponse", bad(request_id.as_ref(), &sorry))
        }
    }
}

/// Asks who asks, and whether he may look where he wants to; whether he may change something, the registry itself asks.
/// What is not named here takes the right to read everything.
async fn admit(client: &Arc<Client>, kind: &str, payload: &Payload, asked: &Asked) -> Result<Good, Sorry> {
    let (access, peer, via) = (&client.house.access, Some(client.peer), "grpc");
    let limited = |wait: Duration| {
        let text = format!("too many requests; try again in {} s", wait.as_secs() + 1);
        Sorry::new(code::OVER_THRESHOLD, text)
    };
    access.admit_address(client.peer.ip()).map_err(limited)?;
    // Whether we are there, and whether the connection is: no client brings a token to these.
    if matches!(kind, "ServerCheckRequest" | "HealthCheckRequest") {
        return decide(client, kind, asked).await;
    }
    let denied = |principal: Option<&Principal>, text: String, why: &str| {
        access.note_denied(principal, peer, via, kind, why);
        Err(Sorry::new(code::NO_RIGHT, text))
    };
    let principal = match access.principal(payload.token()) {
        Ok(principal) => principal,
        Err(unknown) => return denied(None, unknown.to_string(), unknown.as_str()),
    };
    access.admit_principal(&principal).map_err(limited)?;
    if access.is_required() {
        let namespace = Some(asked.namespace()).filter(|n| !n.is_empty()).unwrap_or(NAMESPACE_DEFAULT);
        let may = match kind {
            "ServiceQueryRequest" | "ServiceListRequest" | "SubscribeServiceRequest" => {
                principal.may(namespace, Action::Read)
            }
            "InstanceRequest" | "PersistentInstanceRequest" | "BatchInstanceRequest" => {
                principal.may(namespace, Action::Write)
            }
            _ => principal.may_everywhere(Action::Read),
        };
        if !may {
            let text = format!("authorization failed! No permission for {kind:.100} in namespace {namespace:?}");
            return denied(Some(&principal), text, "no permission");
        }
        client.on_principal(&principal);
    } else if access.audit().is_none() {
        return decide(client, kind, asked).await;
    }
    let actor = Actor { access: access.clone(), principal, peer, via };
    actor.scope(decide(client, kind, asked)).await
}

async fn decide(client: &Arc<Client>, kind: &str, asked: &Asked) -> Result<Good, Sorry> {
    if kind == "ServerCheckRequest" {
        let id = Value::from(&*client.name);
        return Ok(("ServerCheckResponse", format!(r#","connectionId":{id},"supportAbilityNegotiation":true"#)));
    }
    if !client.is_introduced() {
        // A library that reconnects by itself asks this on a connection that its client has never introduced: its
        // instances and subscriptions went with the one before. Python's and Go's clients take any 3xx to this question
        // for "healthy, I am only starting" and would never come back.
        let code = if kind == "HealthCheckRequest" { code::SERVER } else { code::UNREGISTERED };
        return Err(Sorry::new(code, "Connection is unregistered."));
    }
    match kind {
        "HealthCheckRequest" => Ok(("HealthCheckResponse", String::new())),
        "InstanceRequest" => instance(client, asked).await,
        "PersistentInstanceRequest" => persistent(client, asked).await,
        "BatchInstanceRequest" => batch(client, asked).await,
        "ServiceQueryRequest" => query(client, asked),
        "ServiceListRequest" => list(client, asked),
        "SubscribeServiceRequest" => subscribe(client, asked),
        _ => Err(Sorry::new(code::NO_HANDLER, not_served(kind))),
    }
}

fn not_served(kind: &str) -> String {
    let what = if kind.starts_with("Config") || kind.contains("ConfigChange") {
        "configuration management is not served here; ringspan speaks Nacos' naming API".to_owned()
    } else {
        let kind: String = kind.chars().take(100).collect();
        format!("{kind:?} is no request that is served here")
    };
    format!("RequestHandler Not Found: {what}")
}

fn of_type(kind: &'static str, said: &str) -> Good {
    (kind, format!(r#","type":{}"#, Value::from(said)))
}

const REGISTER: &str = "registerInstance";
const DEREGISTER: &str = "deregisterInstance";
const BATCH_REGISTER: &str = "batchRegisterInstance";

fn unknown_type(said: &str) -> Sorry {
    let said: String = said.chars().take(100).collect();
    Sorry::new(code::INVALID_PARAM, format!("Unsupported request type {said}"))
}

async fn instance(client: &Arc<Client>, asked: &Asked) -> Result<Good, Sorry> {
    let (service, instance) = (asked.service()?, asked.instance(true)?);
    let said = asked.r#type.as_deref().unwrap_or(REGISTER);
    let command = match said {
        REGISTER => Command::ClientPublish { client: client.id, service, instances: vec![instance], only: false },
        DEREGISTER => Command::ClientWithdraw { client: client.id, service, id: instance.id },
        _ => return Err(unknown_type(said)),
    };
    client.submit(command).await?;
    Ok(of_type("InstanceResponse", said))
}

async fn persistent(client: &Arc<Client>, asked: &Asked) -> Result<Good, Sorry> {
    let (service, instance) = (asked.service()?, asked.instance(false)?);
    let said = asked.r#type.as_deref().unwrap_or(REGISTER);
    let command = match said {
        REGISTER => Command::Register { service, instance },
        DEREGISTER => Command::Deregister { service, id: instance.id, ephemeral: Some(false) },
        _ => return Err(unknown_type(said)),
    };
    client.submit(command).await?;
    Ok(of_type("InstanceResponse", said))
}

/// These instances are all that the connection has in the service.
async fn batch(client: &Arc<Client>, asked: &Asked) -> Result<Good, Sorry> {
    let (service, instances) = (asked.service()?, asked.instances()?);
    let said = asked.r#type.as_deref().unwrap_or(BATCH_REGISTER);
    if said != BATCH_REGISTER {
        return Err(unknown_type(said));
    }
    client.submit(Command::ClientPublish { client: client.id, service, instances, only: true }).await?;
    Ok(of_type("BatchInstanceResponse", said))
}

fn query(client: &Arc<Client>, asked: &Asked) -> Result<Good, Sorry> {
    let (service, registry) = (asked.service()?, &client.house.registry);
    let view = registry.snapshot().service(&service);
    let now = registry.unix_ms(registry.now());
    let mut info = wire::service_info(&service, view.as_deref(), asked.clusters(), asked.healthy_only(), now);
    info.name = service.name().to_string();
    let info = serde_json::to_string(&info).expect("strings, numbers and maps are JSON");
    Ok(("QueryServiceResponse", format!(r#","serviceInfo":{info}"#)))
}

fn list(client: &Arc<Client>, asked: &Asked) -> Result<Good, Sorry> {
    let or = |said, default| if str::is_empty(said) { default } else { said };
    let (namespace, group) = (or(asked.namespace(), NAMESPACE_DEFAULT), or(asked.group(), GROUP_DEFAULT));
    let len = asked.page_size.unwrap_or(10).min(PAGE_LEN_MAX);
    let skip = asked.page_no.unwrap_or(1).saturating_sub(1).saturating_mul(len);
    let (count, page) = client.house.registry.snapshot().page(namespace, group, skip, len);
    let names = Value::from(page.iter().map(|v| v.key.name().to_string()).collect::<Vec<_>>());
    Ok(("ServiceListResponse", format!(r#","count":{count},"serviceNames":{names}"#)))
}

/// The answer says how the service is now, and so does a first push, as Nacos has it: Java's and Go's clients, when they
/// subscribe anew on another connection, throw the answer away and wait for pushes.
fn subscribe(client: &Arc<Client>, asked: &Asked) -> Result<Good, Sorry> {
    let (service, clusters) = (asked.service()?, asked.clusters());
    let topic = if asked.subscribe() {
        Some(client.subscribe(&service, clusters)?)
    } else {
        client.unsubscribe(&service, clusters);
        None
    };
    let update = Update::read(&client.house.registry, &service, &clusters.into());
    if let Some(topic) = topic {
        client.push(&topic, &update);
    }
    Ok(("SubscribeServiceResponse", format!(r#","serviceInfo":{}"#, update.bare())))
}

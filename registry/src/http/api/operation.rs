//! One operation of our own API: where it is, who answers, and what the document says of it. The router and the document
//! are made of the same list, so that neither has what the other has not.

use super::problem::{KINDS, PROBLEM_JSON};
use super::tag::tagged;
use crate::http::App;
use axum::middleware;
use axum::routing::MethodRouter;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
pub(crate) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) handler: MethodRouter<App>,
    id: &'static str,
    tag: &'static str,
    summary: &'static str,
    params: Vec<Param>,
    body: Option<(&'static str, &'static str)>,
    /// Nobody need say who he is.
    is_open: bool,
    answers: BTreeMap<u16, (&'static str, Answer)>,
    refusals: BTreeSet<&'static str>,
    /// Whether the host in the path must be an IP address.
    addresses: bool,
    /// Whether its answer has a tag.
    is_tagged: bool,
}

/// What an answer holds.
enum Answer {
    Schema(&'static str),
    Nothing,
    Events,
}

impl Operation {
    /// `handler` must answer this method alone; `path` as both axum and OpenAPI write it.
    pub(super) fn new(method: &'static str, path: &'static str, handler: MethodRouter<App>) -> Operation {
        Operation {
            method,
            path,
            handler,
            id: "",
            tag: "",
            summary: "",
            params: Vec::new(),
            body: None,
            is_open: false,
            answers: BTreeMap::new(),
            refusals: BTreeSet::from(["invalid", "unauthorized", "forbidden", "too-many-requests", "busy"]),
            addresses: false,
            is_tagged: false,
        }
    }

    pub(super) fn says(self, id: &'static str, tag: &'static str, summary: &'static str) -> Operation {
        Operation { id, tag, summary, ..self }
    }

    pub(super) fn takes(mut self, params: &[Param]) -> Operation {
        self.params.extend_from_slice(params);
        self
    }

    pub(super) fn addresses(self) -> Operation {
        Operation { addresses: true, ..self }
    }

    /// Its answer has an entity tag, and is left out where the asker has it already.
    pub(super) fn tagged(mut self) -> Operation {
        self.handler = self.handler.route_layer(middleware::from_fn(tagged));
        Operation { is_tagged: true, ..self }.takes(&[param::IF_NONE_MATCH])
    }

    pub(super) fn body(self, schema: &'static str) -> Operation {
        Operation { body: Some(("application/json", schema)), ..self }.refuses(&["too-large", "unsupported-media-type"])
    }

    /// The body is a form; the same may stand in the query.
    pub(super) fn form(self, schema: &'static str) -> Operation {
        Operation { body: Some(("application/x-www-form-urlencoded", schema)), ..self }.refuses(&["too-large"])
    }

    /// Nobody need say who he is.
    pub(super) fn open(self) -> Operation {
        Operation { is_open: true, ..self }
    }

    pub(super) fn answers(mut self, status: u16, says: &'static str, schema: &'static str) -> Operation {
        self.answers.insert(status, (says, Answer::Schema(schema)));
        self
    }

    pub(super) fn done(mut self, status: u16, says: &'static str) -> Operation {
        self.answers.insert(status, (says, Answer::Nothing));
        self
    }

    pub(super) fn streams(mut self) -> Operation {
        self.answers.insert(200, ("Events, each with an id, a kind and JSON.", Answer::Events));
        self
    }

    /// It changes something: the disk may be full, and the registry, too.
    pub(super) fn writes(self) -> Operation {
        self.refuses(&["not-stored", "full"])
    }

    /// Refuses so, besides what every operation may refuse.
    pub(super) fn refuses(mut self, kinds: &[&'static str]) -> Operation {
        self.refusals.extend(kinds);
        self
    }

    /// Its place in the document.
    pub(super) fn document(&self) -> Value {
        let in_path = self.path.split(['{', '}']).skip(1).step_by(2).map(|name| path_param(name, self.addresses));
        let params: Vec<Value> = in_path.chain(self.params.iter().map(Param::document)).collect();
        let mut document = json!({
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "parameters": params,
            "responses": self.responses(),
        });
        if self.is_open {
            document["security"] = json!([]);
        }
        if let Some((kind, schema)) = self.body {
            let content = json!({ "schema": reference(schema) });
            let mut contents = Map::from_iter([(kind.to_owned(), content.clone())]);
            if self.method == "patch" {
                contents.insert("application/merge-patch+json".into(), content);
            }
            document["requestBody"] = json!({ "required": true, "content": contents });
        }
        document
    }

    fn responses(&self) -> Value {
        let mut responses = Map::new();
        for (status, (says, answer)) in &self.answers {
            let mut response = json!({ "description": says });
            match answer {
                Answer::Schema(name) => {
                    response["content"] = json!({ "application/json": { "schema": reference(name) } });
                }
                Answer::Events => {
                    response["content"] = json!({ "text/event-stream": { "schema": { "type": "string" } } });
                }
                Answer::Nothing => {}
            }
            if self.is_tagged {
                response["headers"] = json!({ "ETag": { "description": "Of these bytes.", "required": true, "schema": reference("Tag") } });
            }
            responses.insert(status.to_string(), response);
        }
        if self.is_tagged {
            let headers = json!({ "ETag": { "description": "As it was sent before.", "required": true, "schema": reference("Tag") } });
            let says = "It is what If-None-Match says: nothing is sent.";
            responses.insert("304".into(), json!({ "description": says, "headers": headers }));
        }
        // Where a name of the path is none, there is no such path.
        let lost = self.path.contains('{').then_some("not-found");
        let mut by_status = BTreeMap::<u16, Vec<&str>>::new();
        for (word, status) in KINDS.iter().filter(|(word, _)| self.refusals.contains(word) || lost == Some(*word)) {
            by_status.entry(*status).or_default().push(word);
        }
        for (status, words) in by_status {
            let content = json!({ PROBLEM_JSON: { "schema": reference("Problem") } });
            responses.insert(status.to_string(), json!({ "description": words.join(", "), "content": content }));
        }
        responses.into()
    }
}

/// A schema by its name.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn path_param(name: &str, addresses: bool) -> Value {
    let schema = match (name, addresses) {
        ("host", true) => "Address",
        ("namespace", _) => "Namespace",
        ("group", _) => "Group",
        ("name", _) => "ServiceName",
        ("cluster" | "agent", _) => "ClusterName",
        ("host", false) => "Host",
        _ => "Port",
    };
    json!({ "name": name, "in": "path", "required": true, "schema": reference(schema) })
}

/// A parameter of the query or a header.
#[derive(Clone, Copy)]
pub(super) struct Param {
    name: &'static str,
    place: &'static str,
    says: &'static str,
    is_required: bool,
    schema: fn() -> Value,
}

impl Param {
    fn document(&self) -> Value {
        json!({ "name": self.name, "in": self.place, "required": self.is_required, "description": self.says, "schema": (self.schema)() })
    }
}

/// Those there are.
pub(super) mod param {
    use super::{Param, reference};
    use crate::http::api::asked::{PAGE_MAX, SIZE_DEFAULT, SIZE_MAX};
    use serde_json::json;

    const fn query(name: &'static str, says: &'static str, schema: fn() -> serde_json::Value) -> Param {
        Param { name, place: "query", says, is_required: false, schema }
    }

    pub(in super::super) const NAMESPACE_OR_ALL: Param = query(
        "namespace",
        "A namespace, or * for all. Default: public.",
        || json!({ "anyOf": [{ "const": "*" }, reference("Namespace")], "default": "public" }),
    );
    pub(in super::super) const OF_EVENTS: [Param; 5] = [
        query("kinds", "Events of these kinds alone.", || reference("KindList")),
        query("namespace", "Events of this namespace alone; no list.", || reference("NameList")),
        query("group", "Events of these groups alone.", || reference("NameList")),
        query("service", "Events of these services alone.", || reference("NameList")),
        query(
            "last_event_id",
            "The same as the header, for those who cannot set one.",
            || json!({ "type": "string", "minLength": 1 }),
        ),
    ];
    pub(in super::super) const KIND: Param = Param {
        name: "kind",
        place: "query",
        says: "What they are to be.",
        is_required: true,
        schema: || json!({ "enum": ["persistent", "ephemeral"] }),
    };
    pub(in super::super) const GROUP_OF_LIST: Param =
        query("group", "This group alone. Default: all.", || reference("Group"));
    pub(in super::super) const SERVICE_OF_LIST: Param =
        query("service", "The service of this name alone. Default: all.", || reference("ServiceName"));
    pub(in super::super) const NAME_PART: Param =
        query("name", "A part of the name, in any case of letters.", || reference("ServiceName"));
    pub(in super::super) const LABEL: Param = query(
        "label",
        "A selector over the metadata: zone=a,env!=dev,tier in (x,y),!canary. At most 1024 bytes.",
        || reference("Selector"),
    );
    pub(in super::super) const HEALTH: Param = query("health", "Those that are so alone.", || reference("HealthList"));
    pub(in super::super) const HEALTH_ANY: Param =
        query("health", "Those that have an instance that is so alone.", || reference("HealthList"));
    pub(in super::super) const CLUSTER: Param = query("cluster", "This cluster alone.", || reference("ClusterName"));
    pub(in super::super) const ENABLED: Param =
        query("enabled", "Those that are, or are not.", || json!({ "type": "boolean" }));
    pub(in super::super) const EPHEMERAL: Param =
        query("ephemeral", "Those that are, or are not.", || json!({ "type": "boolean" }));
    pub(in super::super) const FRESH: Param = query(
        "fresh",
        "In a cluster: with all that any member had acknowledged before.",
        || json!({ "type": "boolean", "default": false }),
    );
    pub(in super::super) const PAGE: [Param; 2] = [
        query(
            "page",
            "Which page, from 1.",
            || json!({ "type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": 1 }),
        ),
        query(
            "size",
            "How many on a page.",
            || json!({ "type": "integer", "minimum": 1, "maximum": SIZE_MAX, "default": SIZE_DEFAULT }),
        ),
    ];
    pub(in super::super) const IF_NONE_MATCH: Param = Param {
        name: "If-None-Match",
        place: "header",
        says: "Tags of answers that the asker has, separated by commas; or *.",
        is_required: false,
        schema: || json!({ "type": "string", "examples": ["\"6d0c1f7a90be42f3a1c55e8b7d42c9f0\""] }),
    };
    pub(in super::super) const LAST_EVENT_ID: Param = Param {
        name: "Last-Event-ID",
        place: "header",
        says: "The id of the last event that the reader has.",
        is_required: false,
        schema: || json!({ "type": "string" }),
    };
}

//! The OpenAPI 3.1 document of our own API, made of the operations and of the schemas here; limits are the model's own.

mod schemas;

use super::operation::Operation;
use super::operations;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

static TEXT: LazyLock<String> = LazyLock::new(|| document(&operations()).to_string());

/// As it is served.
pub(super) fn text() -> &'static str {
    &TEXT
}

pub(super) fn document(operations: &[Operation]) -> Value {
    let mut paths = Map::new();
    for operation in operations {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.document();
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ringspan",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The registry's own API: services, instances, checks, health, agents. Nothing here is made up for anybody's sake: what Nacos' view forges below a protection threshold is shown as it is. Times are milliseconds since 1970, round trips microseconds. Refusals are problem details (RFC 9457); `type` names the kind, `detail` says what would be right. Unknown parameters and fields are refused. Lists come in pages of at most 1000.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": [
            { "name": "server", "description": "The server and its cluster." },
            { "name": "services", "description": "Services, their clusters' checkers, and namespaces." },
            { "name": "instances", "description": "Instances, and how each is, seen from where, since when and why." },
            { "name": "accounts", "description": "Who asks, where there are accounts." },
            { "name": "agents", "description": "The other sides of the tunnel." },
            { "name": "events", "description": "What happens, as it happens." },
        ],
        // A registry without accounts asks for none.
        "security": [{ "bearerAuth": [] }, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearerAuth": { "type": "http", "scheme": "bearer", "description": "A token of an account, where there are accounts." }
            },
            "schemas": schemas::schemas(),
        },
    })
}

//! Parameters that no client sends, to every path of Nacos': each is answered, with a status that says whose trouble it is,
//! and nobody panics. Method: seeded, in process. See [`crate::hostile`].

use super::*;
use crate::hostile::{Dice, Replay, seeds};

const PATHS: [&str; 42] = [
    "v1/ns/instance",
    "v1/ns/instance/list",
    "v1/ns/instance/beat",
    "v1/ns/instance/statuses",
    "v1/ns/instance/metadata/batch",
    "v1/ns/service",
    "v1/ns/service/list",
    "v1/ns/service/names",
    "v1/ns/service/subscribers",
    "v1/ns/service/selector/types",
    "v1/ns/cluster",
    "v1/ns/health/instance",
    "v1/ns/health/checkers",
    "v1/ns/operator/switches",
    "v1/ns/operator/metrics",
    "v1/ns/operator/distro/client",
    "v1/ns/catalog/services",
    "v1/ns/catalog/service",
    "v1/ns/catalog/instances",
    "v1/console/namespaces",
    "v1/core/cluster/nodes",
    "v2/ns/instance",
    "v2/ns/instance/list",
    "v2/ns/instance/beat",
    "v2/ns/instance/metadata/batch",
    "v2/ns/instance/statuses/public%23%23web",
    "v2/ns/service",
    "v2/ns/service/list",
    "v2/ns/health/instance",
    "v2/ns/catalog/instances",
    "v2/ns/client",
    "v2/ns/client/list",
    "v2/ns/client/publish/list",
    "v2/ns/client/subscribe/list",
    "v2/ns/client/service/publisher/list",
    "v2/ns/client/service/subscriber/list",
    "v3/client/ns/instance",
    "v3/client/ns/instance/list",
    "v3/admin/ns/instance",
    "v3/admin/ns/service",
    "v3/admin/ns/cluster",
    "v3/admin/ns/ops/switches",
];
const NAMES: [&str; 34] = [
    "serviceName",
    "groupName",
    "namespaceId",
    "clusterName",
    "cluster",
    "clusters",
    "ip",
    "port",
    "weight",
    "enabled",
    "healthy",
    "ephemeral",
    "metadata",
    "beat",
    "udpPort",
    "clientIP",
    "healthyOnly",
    "pageNo",
    "pageSize",
    "protectThreshold",
    "selector",
    "checkPort",
    "useInstancePort4Check",
    "healthChecker",
    "entry",
    "value",
    "instances",
    "consistencyType",
    "key",
    "hasIpCount",
    "withInstances",
    "clientId",
    "heartBeat",
    "username",
];

fn parameters(dice: &mut Dice) -> String {
    let mut pairs = vec![("serviceName", "web".to_owned()), ("ip", "10.0.0.1".to_owned()), ("port", "80".to_owned())];
    pairs.retain(|_| !dice.one_in(6));
    for name in NAMES {
        if dice.one_in(6) {
            pairs.push((name, dice.text()));
        }
    }
    serde_urlencoded::to_string(pairs).unwrap()
}

#[tokio::test]
async fn parameters_are_answered() {
    for seed in seeds() {
        let (_replay, mut dice) = (Replay(seed), Dice::new(seed));
        let api = Api::new();
        for _ in 0..200 {
            let path = dice.one_of(&PATHS);
            let method = dice.one_of(&["GET", "POST", "PUT", "DELETE", "PATCH"]);
            let query = parameters(&mut dice);
            let body = match dice.below(4) {
                0 => parameters(&mut dice).into_bytes(),
                1 => dice.bytes(300),
                _ => Vec::new(),
            };
            let mut request = axum::http::Request::builder().method(method).uri(format!("/nacos/{path}?{query}"));
            if dice.one_in(2) {
                let types = ["application/x-www-form-urlencoded", "application/json", "text/plain; charset=x"];
                request = request.header("content-type", dice.one_of(&types));
            }
            let (status, text) = api.send(request.body(Body::from(body)).unwrap()).await;
            assert!(status < 500 || status == 501, "{method} {path}?{query}: {status} {text}");
            let is_enveloped = !path.starts_with("v1/") && status != 405;
            if is_enveloped {
                let said: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{method} {path}: {text}"));
                assert_eq!(said["code"] == 0, status == 200, "{method} {path}?{query}: {text}");
            }
        }
        api.ok("POST /nacos/v1/ns/instance?serviceName=still&ip=10.0.0.1&port=80").await;
    }
}

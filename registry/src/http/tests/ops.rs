//! What clients and operators ask beside naming.

use super::*;

/// Until there are accounts a login is told what Nacos says with its authentication off, in every version's words.
#[tokio::test]
async fn a_login_is_welcome() {
    let api = Api::new();
    for path in ["v1/auth/login", "v1/auth/users/login", "v3/auth/user/login"] {
        let said = api.json(&format!("POST /nacos/{path}?username=nacos&password=secret")).await;
        assert_eq!((&said["accessToken"], &said["tokenTtl"]), (&"AUTH_DISABLED".into(), &18_000.into()));
        assert!(!said.to_string().contains("secret"));
    }
    for path in ["v2/auth/roles", "v3/auth/user/list"] {
        let (status, body) = api.call(&format!("GET /nacos/{path}")).await;
        let said: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &said["code"]), (501, &30_000.into()), "in an envelope: {body}");
    }
}

/// The one node of the cluster is this one, at the address by which it was asked.
#[tokio::test]
async fn the_cluster_is_this_node() {
    let api = Api::new();
    for path in ["v1/core/cluster/nodes", "v2/core/cluster/node/list", "v3/admin/core/cluster/node/list"] {
        let said = api.json(&format!("GET /nacos/{path}")).await;
        assert_eq!((&said["data"][0]["state"], said["data"].as_array().unwrap().len()), (&"UP".into(), 1), "{path}");
    }
    assert_eq!(api.json("GET /nacos/v2/core/cluster/node/self/health").await["data"], "UP");
    assert_eq!(api.json("GET /nacos/v1/ns/operator/servers").await["servers"][0]["state"], "UP");
    assert_eq!(api.json("GET /nacos/v2/console/health/readiness").await["data"], "ok");
}

/// Pushes can be switched; what has no effect is listed as such; what is no switch is refused.
#[tokio::test]
async fn switches() {
    let api = Api::new();
    for (path, at) in [("v1/ns/operator", ""), ("v2/ns/ops", "data"), ("v3/admin/ns/ops", "data")] {
        for on in [false, true] {
            api.call(&format!("PUT /nacos/{path}/switches?entry=pushEnabled&value={on}")).await;
            let said = api.json(&format!("GET /nacos/{path}/switches")).await;
            let said = if at.is_empty() { &said } else { &said[at] };
            assert_eq!(said["pushEnabled"], on);
            assert!(said["withoutEffect"].as_array().unwrap().contains(&"distroThreshold".into()));
        }
    }
    let put = |entry, value| format!("PUT /nacos/v1/ns/operator/switches?entry={entry}&value={value}");
    api.ok(&put("distroThreshold", "0.5")).await;
    assert_eq!(api.call(&put("pushEnabled", "perhaps")).await.0, 400);
    assert_eq!(api.call(&put("nonsense", "1")).await.0, 400);
    assert_eq!(api.call(&put("check", "false")).await.0, 501);
}

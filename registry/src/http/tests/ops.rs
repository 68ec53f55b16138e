//! What clients and operators ask beside naming.

use super::*;

/// Where access is open a login is told what Nacos says with its authentication off, in every version's words.
#[tokio::test]
async fn a_login_is_welcome() {
    let api = Api::new();
    for path in ["v1/auth/login", "v1/auth/users/login", "v3/auth/user/login"] {
        let said = api.json(&format!("POST /nacos/{path}?username=nacos&password=secret")).await;
        assert_eq!((&said["accessToken"], &said["tokenTtl"]), (&"AUTH_DISABLED".into(), &18_000.into()));
        assert!(!said.to_string().contains("secret"));
    }
    for path in ["v2/auth/nothing", "v3/auth/nothing"] {
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
    assert_eq!(api.call(&put("check", "perhaps")).await.0, 400);
}

/// Checks can be switched for all, for a service, and for a cluster of it, which goes before; and so can a service's manner.
/// While they are off, health is what somebody says it is.
#[tokio::test]
async fn checks_are_switched() {
    let api = Api::new();
    let switches = "/nacos/v1/ns/operator/switches";
    let put = |entry: &str, value: &str, of: &str| format!("PUT {switches}?entry={entry}&value={value}{of}");
    let is = async |of: &str, key: &str| api.json(&format!("GET {switches}?{of}")).await[key].clone();
    assert_eq!(is("", "healthCheckEnabled").await, true);
    api.ok(&put("check", "false", "")).await;
    assert_eq!(is("", "healthCheckEnabled").await, false);
    assert!(!*api.registry.checks().borrow());
    api.ok(&put("check", "true", "")).await;

    assert_eq!(api.call(&put("check", "false", "&serviceName=web")).await.0, 400, "there is no such service");
    api.ok("POST /nacos/v1/ns/instance?serviceName=web&ip=10.0.0.1&port=80&ephemeral=false").await;
    let health = "PUT /nacos/v1/ns/health/instance?serviceName=web&ip=10.0.0.1&port=80&healthy=false";
    assert_eq!(api.call(health).await.0, 400, "it is checked");
    api.ok(&put("check", "false", "&serviceName=web")).await;
    assert_eq!(is("serviceName=web", "healthCheckEnabled").await, false);
    assert_eq!(is("", "healthCheckEnabled").await, true);
    api.ok(health).await;
    let detail = api.json("GET /nacos/v1/ns/instance?serviceName=web&ip=10.0.0.1&port=80").await;
    assert_eq!(detail["healthy"], false);
    api.ok(&put("check", "true", "&serviceName=web&clusterName=DEFAULT")).await;
    assert_eq!(is("serviceName=web", "healthCheckEnabled").await, true, "the cluster goes before");
    assert_eq!(is("serviceName=web&clusterName=other", "healthCheckEnabled").await, false);

    assert_eq!(is("serviceName=web", "manner").await, "own");
    api.ok(&put("manner", "nacos", "&serviceName=web")).await;
    assert_eq!(is("serviceName=web", "manner").await, "nacos");
    for wrong in
        [put("manner", "consul", "&serviceName=web"), put("manner", "nacos", ""), put("check", "off", "&serviceName=x")]
    {
        assert_eq!(api.call(&wrong).await.0, 400, "{wrong}");
    }
}

/// A service's instances change their kind without being deregistered.
#[tokio::test]
async fn kinds_are_converted() {
    let api = Api::new();
    api.ok("POST /nacos/v1/ns/instance?serviceName=web&ip=10.0.0.1&port=80").await;
    let persistent = "POST /nacos/v1/ns/instance?serviceName=web&ip=10.0.0.2&port=80&ephemeral=false";
    let (status, text) = api.call(persistent).await;
    assert_eq!(status, 400);
    assert!(text.contains("is ephemeral service, can't register persistent instance"), "{text}");
    api.ok("PUT /nacos/v1/ns/service?serviceName=web&ephemeral=false").await;
    api.ok(persistent).await;
    let listed = api.json("GET /nacos/v1/ns/instance/list?serviceName=web").await;
    let kinds: Vec<_> = listed["hosts"].as_array().unwrap().iter().map(|h| h["ephemeral"].clone()).collect();
    assert_eq!(kinds, [false, false]);
    assert_eq!(api.call("PUT /nacos/v2/ns/service?serviceName=lost&ephemeral=false").await.0, 400);
}

/// A checker that comes with a registration is there before the first probe, or the registration is not.
#[tokio::test]
async fn a_checker_comes_with_a_registration() {
    let api = Api::new();
    let post = |checker: &str, more: &str| {
        format!(
            "POST /nacos/v1/ns/instance?serviceName=web&ip=10.0.0.1&port=80&ephemeral=false&healthChecker={checker}{more}"
        )
    };
    assert_eq!(api.call(&post("%7B%22type%22:%22FTP%22%7D", "")).await.0, 400);
    assert_eq!(api.call("GET /nacos/v1/ns/instance?serviceName=web&ip=10.0.0.1&port=80").await.0, 404);
    api.ok(&post("%7B%22type%22:%22HTTP%22,%22path%22:%22/up%22%7D", "&useInstancePort4Check=false&checkPort=81"))
        .await;
    let service = api.json("GET /nacos/v1/ns/service?serviceName=web").await;
    assert_eq!(service["clusters"][0]["healthChecker"]["path"], "/up");
    let view = api.registry.snapshot().service(&crate::model::ServiceKey::public("web").unwrap()).unwrap();
    let asked = view.asked(&view.instances[0].record).unwrap();
    assert_eq!((asked.address.port(), view.instances[0].record.metadata.len()), (81, 0));
}

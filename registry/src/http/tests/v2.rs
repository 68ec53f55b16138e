//! Nacos v2 and v3, and the lookups of v1 that consoles use.

use super::*;
use serde_json::json;

impl Api {
    /// The `data` of an envelope that says success.
    async fn data(&self, line: &str) -> Value {
        let mut answer = self.json(line).await;
        assert_eq!((&answer["code"], &answer["message"]), (&0.into(), &"success".into()), "{line}");
        answer["data"].take()
    }

    /// Status and code of an envelope that says no.
    async fn code(&self, line: &str) -> (u16, u64) {
        let (status, body) = self.call(line).await;
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{line}: {e}: {body}"));
        assert!(answer["data"].is_string() && answer["message"].is_string(), "{line}: {body}");
        (status, answer["code"].as_u64().unwrap())
    }
}

/// v2: the whole life of an instance and its service, in envelopes.
#[tokio::test]
async fn v2_through_its_life() {
    let api = Api::new();
    const V2: &str = "/nacos/v2/ns";
    let one = "serviceName=web&groupName=g&ip=10.0.0.1&port=80";
    assert_eq!(api.data(&format!("POST {V2}/instance?{one}&ephemeral=false&metadata=a=b")).await, "ok");
    let seen = api.data(&format!("GET {V2}/instance?{one}")).await;
    assert_eq!((&seen["ip"], &seen["metadata"]), (&"10.0.0.1".into(), &json!({"a": "b"})));
    let list = api.data(&format!("GET {V2}/instance/list?serviceName=web&groupName=g&clusterName=DEFAULT")).await;
    assert_eq!((&list["clusters"], &list["hosts"][0]["port"]), (&"DEFAULT".into(), &80.into()));
    let other = api.data(&format!("GET {V2}/instance/list?serviceName=web&groupName=g&clusterName=other")).await;
    assert_eq!(other["hosts"], json!([]));
    assert_eq!(api.data(&format!("PATCH {V2}/instance?{one}&weight=3")).await, "ok");
    let batch = "metadata=%7B%22c%22%3A%22d%22%7D&consistencyType=persist";
    let updated = api.data(&format!("PUT {V2}/instance/metadata/batch?serviceName=web&groupName=g&{batch}")).await;
    assert_eq!(updated["updated"], json!(["10.0.0.1:80:unknown:DEFAULT:persist"]));
    let shown = api.data(&format!("GET {V2}/catalog/instances?serviceName=web&groupName=g")).await;
    let first = &shown["list"][0];
    assert_eq!((&first["weight"], &first["metadata"]), (&json!(3.0), &json!({"a": "b", "c": "d"})));
    api.data(&format!("DELETE {V2}/instance/metadata/batch?serviceName=web&groupName=g&metadata=a=b")).await;
    assert_eq!(api.data(&format!("GET {V2}/instance?{one}")).await["metadata"], json!({"c": "d"}));
    let service = api.data(&format!("GET {V2}/service?serviceName=web&groupName=g")).await;
    assert_eq!((&service["serviceName"], &service["ephemeral"]), (&"web".into(), &false.into()));
    assert_eq!(service["clusterMap"]["DEFAULT"]["useInstancePortForCheck"], true);
    let names = api.data(&format!("GET {V2}/service/list?groupName=g")).await;
    assert_eq!(names, json!({"count": 1, "services": ["web"]}));
    assert_eq!(api.data(&format!("GET {V2}/client/list")).await, json!(["10.0.0.1:80#false"]));
    let published = api.data(&format!("GET {V2}/client/publish/list?clientId=10.0.0.1:80%23false")).await;
    assert_eq!(published[0]["registeredInstance"], json!({"ip": "10.0.0.1", "port": 80, "cluster": "DEFAULT"}));
    assert_eq!(api.data(&format!("DELETE {V2}/instance?{one}&ephemeral=false")).await, "ok");
}

/// What cannot be done has Nacos' code in its envelope: table.
#[tokio::test]
async fn v2_says_no_in_codes() {
    let api = Api::new();
    api.ok("POST /nacos/v1/ns/service?serviceName=there").await;
    api.ok(&format!("POST {INSTANCE}?serviceName=web&ip=10.0.0.1&port=80&ephemeral=false")).await;
    for (line, want) in [
        ("POST /nacos/v2/ns/instance?ip=10.0.0.1&port=80", (400, 10_000)),
        ("POST /nacos/v2/ns/instance?serviceName=w%20b&ip=10.0.0.1&port=80", (400, 21_000)),
        ("POST /nacos/v2/ns/instance?serviceName=web&ip=10.0.0.1&port=80&weight=-1", (400, 21_001)),
        ("POST /nacos/v2/ns/instance?serviceName=web&ip=10.0.0.1&port=81&ephemeral=true", (400, 21_004)),
        ("GET /nacos/v2/ns/instance?serviceName=web&ip=10.0.0.1&port=1", (404, 21_003)),
        ("POST /nacos/v2/ns/service?serviceName=there", (400, 21_007)),
        ("GET /nacos/v2/ns/service?serviceName=nobody", (404, 21_008)),
        ("DELETE /nacos/v2/ns/service?serviceName=web", (400, 21_009)),
        ("PUT /nacos/v2/ns/health?serviceName=web&ip=10.0.0.1&port=80", (400, 21_010)),
        ("PUT /nacos/v2/ns/health?serviceName=web&ip=10.0.0.1&port=80&healthy=true", (400, 21_011)),
        ("POST /nacos/v3/client/ns/instance?serviceName=e&ip=10.0.0.1&port=1&heartBeat=true", (404, 21_003)),
        ("GET /nacos/v2/ns/client?clientId=nobody", (404, 20_004)),
        ("PUT /nacos/v2/ns/instance/metadata/batch?serviceName=web", (400, 10_000)),
    ] {
        assert_eq!(api.code(line).await, want, "{line}");
    }
    assert_eq!(api.call("GET /nacos/v2/cs/config").await.0, 501);
}

/// v3: a client's registration, its beats and its list; a page of services.
#[tokio::test]
async fn v3_paths() {
    let api = Api::new();
    let one = "serviceName=web&ip=10.0.0.1&port=80";
    assert_eq!(api.data(&format!("POST /nacos/v3/client/ns/instance?{one}")).await, "ok");
    assert_eq!(api.data(&format!("POST /nacos/v3/client/ns/instance?{one}&heartBeat=true")).await, "ok");
    let hosts = api.data("GET /nacos/v3/client/ns/instance/list?serviceName=web").await;
    assert_eq!((hosts.as_array().unwrap().len(), &hosts[0]["ephemeral"]), (1, &true.into()));
    let page = api.data("GET /nacos/v3/admin/ns/service/list?pageNo=1&pageSize=10").await;
    assert_eq!((&page["totalCount"], &page["pagesAvailable"]), (&1.into(), &1.into()));
    assert_eq!(page["pageItems"][0]["ipCount"], 1);
    let cluster = "serviceName=web&clusterName=c1&checkPort=81&useInstancePort4Check=false\
                   &healthChecker=%7B%22type%22%3A%22HTTP%22%2C%22path%22%3A%22%2Fh%22%7D";
    assert_eq!(api.data(&format!("PUT /nacos/v3/admin/ns/cluster?{cluster}")).await, "ok");
    let service = api.data("GET /nacos/v3/admin/ns/service?serviceName=web").await;
    let shown = &service["clusterMap"]["c1"];
    assert_eq!((&shown["healthyCheckPort"], &shown["healthChecker"]["path"]), (&81.into(), &"/h".into()));
    for path in ["state/liveness", "state/readiness"] {
        assert_eq!(api.data(&format!("GET /nacos/v3/admin/core/{path}")).await, "ok");
    }
    assert_eq!(api.data("DELETE /nacos/v3/client/ns/instance?serviceName=web&ip=10.0.0.1&port=80").await, "ok");
}

/// Who subscribes to what, in the words of v2 and v3; statuses and namespaces, as v1 has them.
#[tokio::test]
async fn who_is_told() {
    struct Nobody;
    impl crate::push::Subscriber for Nobody {
        fn on_update(&self, _: &crate::push::Update) -> bool {
            true
        }
    }
    let registry = Registry::open(&RegistryOptions::default()).unwrap();
    let hub = crate::push::Hub::default();
    let router = router(registry.clone(), Options { hub: hub.clone(), ..Options::default() });
    let api = Api { registry, router };
    let service = ServiceKey::public("web").unwrap();
    hub.subscribe(&service, "", "10.0.0.9:5000 Nacos-Java-Client:v1.0.0".into(), Arc::new(Nobody)).unwrap();
    let told = json!([{ "clientId": "10.0.0.9:5000#true", "ip": "10.0.0.9", "port": 5000 }]);
    assert_eq!(api.data("GET /nacos/v2/ns/client/service/subscriber/list?serviceName=web").await, told);
    let page = api.data("GET /nacos/v3/admin/ns/service/subscribers?serviceName=web").await;
    assert_eq!((&page["totalCount"], &page["pageItems"][0]["agent"]), (&1.into(), &"Nacos-Java-Client:v1.0.0".into()));
    let of = "GET /nacos/v2/ns/client/subscribe/list?clientId=10.0.0.9:5000%23true";
    assert_eq!(api.data(of).await[0]["serviceName"], "web");
    assert_eq!(api.data(&of.replace("5000", "5001")).await, json!([]));

    api.web(&[(80, Health::Up)]).await;
    let statuses = "GET /nacos/v2/ns/instance/statuses/public%23%23DEFAULT_GROUP@@web";
    assert_eq!(api.data(statuses).await["ips"], json!(["10.0.0.1:80_true"]));
    assert_eq!(api.code("GET /nacos/v2/ns/instance/statuses/public%23%23nobody").await, (404, 21_008));
    for path in ["v2/console/namespace/list", "v3/admin/core/namespace/list"] {
        assert_eq!(api.data(&format!("GET /nacos/{path}")).await[0]["namespace"], "public");
    }
}

/// What consoles look up by v1.
#[tokio::test]
async fn the_catalog() {
    let api = Api::new();
    api.web(&[(80, Health::Up), (81, Health::Down)]).await;
    let services = api.json("GET /nacos/v1/ns/catalog/services?serviceNameParam=we&hasIpCount=true").await;
    let want = json!({"count": 1, "serviceList": [{"name": "web", "groupName": "DEFAULT_GROUP", "clusterCount": 1,
        "ipCount": 2, "healthyInstanceCount": 1, "triggerFlag": "false"}]});
    assert_eq!(services, want);
    assert_eq!(api.json("GET /nacos/v1/ns/catalog/services?serviceNameParam=x").await["count"], 0);
    let service = api.json("GET /nacos/v1/ns/catalog/service?serviceName=web").await;
    assert_eq!(
        (&service["service"]["name"], &service["clusters"][0]["useIpPort4Check"]),
        (&"web".into(), &true.into())
    );
    let page = api.json("GET /nacos/v1/ns/catalog/instances?serviceName=web&pageNo=2&pageSize=1").await;
    assert_eq!(
        (&page["count"], &page["list"][0]["port"], &page["list"][0]["healthy"]),
        (&2.into(), &81.into(), &false.into())
    );
    let statuses = api.json("GET /nacos/v1/ns/instance/statuses?key=public%23%23DEFAULT_GROUP@@web").await;
    assert_eq!(statuses["ips"], json!(["10.0.0.1:80_true", "10.0.0.1:81_false"]));
    let names = api.json("GET /nacos/v1/ns/service/names").await;
    assert_eq!(names["META-INF/services"]["public"], json!(["DEFAULT_GROUP@@web"]));
    assert_eq!(api.json("GET /nacos/v1/console/namespaces").await["data"][0]["namespace"], "public");
}

/// A label selector is stored and shown by every version, by our own API too, and changes what nobody sees: there is no CMDB.
/// What Nacos does not read is refused, and nothing has changed.
#[tokio::test]
async fn selectors() {
    let api = Api::new();
    let expression = "CONSUMER.label.zone = PROVIDER.label.zone";
    let label = json!({ "type": "label", "expression": expression });
    let encoded = |selector: &Value| serde_urlencoded::to_string([("selector", selector.to_string())]).unwrap();
    api.ok(&format!("POST /nacos/v1/ns/service?serviceName=a&{}", encoded(&label))).await;
    api.ok(&format!("POST {INSTANCE}?serviceName=a&ip=10.0.0.1&port=80")).await;
    let want = json!({ "type": "label", "expression": expression, "labels": ["zone"], "contextType": "CMDB" });
    let none = json!({ "type": "none", "contextType": "NONE" });
    let everywhere = async |want: &Value| {
        let v1 = api.json("GET /nacos/v1/ns/service?serviceName=a").await;
        let catalog = api.json("GET /nacos/v1/ns/catalog/service?serviceName=a").await;
        let v2 = api.data("GET /nacos/v2/ns/service?serviceName=a").await;
        let v3 = api.data("GET /nacos/v3/admin/ns/service?serviceName=a").await;
        for said in [&v1["selector"], &catalog["service"]["selector"], &v2["selector"], &v3["selector"]] {
            assert_eq!(said, want);
        }
        api.json("GET /api/v1/services/public/DEFAULT_GROUP/a").await["same_labels"].clone()
    };
    assert_eq!(everywhere(&want).await, json!(["zone"]));
    assert_eq!(api.list("serviceName=a").await, [(80, true)], "no address has labels: all are shown");
    // What is not named stays.
    api.ok("PUT /nacos/v1/ns/service?serviceName=a&protectThreshold=0.5").await;
    assert_eq!(everywhere(&want).await, json!(["zone"]));
    for bad in [json!({ "type": "label", "expression": "zone=a" }), json!({ "type": "cmdb" }), json!("label")] {
        let (status, text) = api.call(&format!("PUT /nacos/v1/ns/service?serviceName=a&{}", encoded(&bad))).await;
        assert_eq!((status, text.contains("'selector'") && text.contains("Right is")), (400, true), "{text}");
    }
    let refused = format!("PUT /nacos/v2/ns/service?serviceName=a&{}", encoded(&json!({ "type": "cmdb" })));
    assert_eq!(api.call(&refused).await.0, 400);
    assert_eq!(everywhere(&want).await, json!(["zone"]));
    api.data(&format!("PUT /nacos/v2/ns/service?serviceName=a&{}", encoded(&json!({ "type": "none" })))).await;
    assert_eq!(everywhere(&none).await, Value::Null);
    api.data(&format!("PUT /nacos/v3/admin/ns/service?serviceName=a&{}", encoded(&label))).await;
    assert_eq!(everywhere(&want).await, json!(["zone"]));
    assert_eq!(api.json("GET /nacos/v1/ns/service/selector/types").await["data"], json!(["none", "label"]));
}

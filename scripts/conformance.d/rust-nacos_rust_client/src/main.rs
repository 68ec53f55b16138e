//! The nacos_rust_client crate, unmodified: gRPC, or HTTP v1 with pushes by UDP. See scripts/conformance.py.
//!
//! ```text
//! client grpc|http ADDRESS
//! ```

use nacos_rust_client::client::ClientBuilder;
use nacos_rust_client::client::naming_client::{
    Instance, InstanceDefaultListener, NamingClient, QueryInstanceListParams, ServiceInstanceKey,
};
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const GROUP: &str = "DEFAULT_GROUP";

type Outcome<T> = Result<T, Box<dyn Error>>;

fn ok(step: &str) {
    println!("OK {step}");
}

async fn until(step: &str, mut holds: impl AsyncFnMut() -> bool) -> Outcome<()> {
    for _ in 0..1200 {
        if holds().await {
            ok(step);
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("not so: {step}").into())
}

fn ports<'a>(all: impl Iterator<Item = &'a Arc<Instance>>) -> Vec<u32> {
    let mut ports: Vec<u32> = all.map(|i| i.port).collect();
    ports.sort();
    ports
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [protocol, address] = &arguments[..] else { return Err("a protocol and an address are needed".into()) };
    let is_grpc = protocol == "grpc";
    let service = format!("rust-client-{protocol}");
    let connect = || -> Arc<NamingClient> {
        // It renews its subscriptions without their namespace, so it has to be the default one.
        let builder = ClientBuilder::new().set_endpoint_addrs(address).set_tenant("public".into());
        // What it would find by itself is the machine's name for others; the pushes come from here.
        builder.set_client_ip("127.0.0.1".into()).set_use_grpc(is_grpc).build_naming_client()
    };
    let instance = |port| Instance::new_simple("127.0.0.1", port, &service, GROUP);
    // A client keeps what it has listed, and is told of changes: a new one asks.
    let listed = async || {
        let params = QueryInstanceListParams::new_simple(&service, GROUP);
        connect().query_instances(params).await.map(|all| ports(all.iter())).unwrap_or_default()
    };
    let (client, other) = (connect(), connect());
    // It connects behind our back.
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.register(instance(1001));
    until("register", async || listed().await == [1001]).await?;
    ok("list");
    let pushed = Arc::new(Mutex::new(Vec::new()));
    let listener = {
        let pushed = pushed.clone();
        let on_change = move |all: Arc<Vec<Arc<Instance>>>, _, _| *pushed.lock().unwrap() = ports(all.iter());
        InstanceDefaultListener::new(ServiceInstanceKey::new(&service, GROUP), Some(Arc::new(on_change)))
    };
    other.subscribe(Box::new(listener)).await?;
    let pushed_is = |want: &[u32]| *pushed.lock().unwrap() == want;
    until("push: how it is", async || pushed_is(&[1001])).await?;
    client.register(instance(1002));
    until("push: of another", async || pushed_is(&[1001, 1002])).await?;
    client.unregister(instance(1002));
    until("push: of its end", async || pushed_is(&[1001])).await?;
    println!("NO persist: it registers ephemeral instances alone");
    println!("NO kept: as above");
    println!("RESTART");
    std::io::stdin().read_line(&mut String::new())?;
    until("back: by itself, once", async || listed().await == [1001]).await?;
    let third = connect();
    third.register(instance(1003));
    until("push again", async || pushed_is(&[1001, 1003])).await?;
    client.unregister(instance(1001));
    until("deregister", async || pushed_is(&[1003])).await?;
    // Its threads would go on.
    std::process::exit(0)
}

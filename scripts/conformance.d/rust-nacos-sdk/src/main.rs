//! The nacos-sdk crate (the official one), unmodified: gRPC. See scripts/conformance.py.

use nacos_sdk::api::naming::{
    NamingChangeEvent, NamingEventListener, NamingService, NamingServiceBuilder, ServiceInstance,
};
use nacos_sdk::api::props::ClientProps;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SERVICE: &str = "rust-grpc";

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

#[derive(Default)]
struct Pushed(Mutex<Vec<i32>>);

impl Pushed {
    fn is(&self, want: &[i32]) -> bool {
        *self.0.lock().unwrap() == want
    }
}

impl NamingEventListener for Pushed {
    fn event(&self, event: Arc<NamingChangeEvent>) {
        *self.0.lock().unwrap() = ports(event.instances.clone().unwrap_or_default());
    }
}

fn ports(all: Vec<ServiceInstance>) -> Vec<i32> {
    let mut ports: Vec<i32> = all.iter().map(|i| i.port).collect();
    ports.sort();
    ports
}

fn instance(port: i32, ephemeral: bool) -> ServiceInstance {
    let metadata = [("k".to_owned(), "v".to_owned())].into();
    ServiceInstance { ip: "127.0.0.1".into(), port, ephemeral, metadata, ..Default::default() }
}

async fn connect(address: &str) -> Outcome<NamingService> {
    let props = ClientProps::new().server_addr(address).namespace("conformance").app_name("conformance");
    Ok(NamingServiceBuilder::new(props.naming_load_cache_at_start(false)).build().await?)
}

async fn listed(client: &NamingService, service: &str) -> Vec<i32> {
    client.get_all_instances(service.into(), None, Vec::new(), false).await.map(ports).unwrap_or_default()
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let address = std::env::args().nth(1).ok_or("an address is needed")?;
    let (client, other) = (connect(&address).await?, connect(&address).await?);
    let register = async |client: &NamingService, service: &str, port, ephemeral| {
        client.register_instance(service.into(), None, instance(port, ephemeral)).await
    };
    register(&client, SERVICE, 1001, true).await?;
    ok("register");
    until("list", async || listed(&other, SERVICE).await == [1001]).await?;
    let pushed = Arc::new(Pushed::default());
    other.subscribe(SERVICE.into(), None, Vec::new(), pushed.clone()).await?;
    let second = connect(&address).await?;
    register(&second, SERVICE, 1002, true).await?;
    until("push: of another", async || pushed.is(&[1001, 1002])).await?;
    second.deregister_instance(SERVICE.into(), None, instance(1002, true)).await?;
    until("push: of its end", async || pushed.is(&[1001])).await?;
    client.batch_register_instance("rust-batch".into(), None, vec![instance(2001, true), instance(2002, true)]).await?;
    until("batch", async || listed(&other, "rust-batch").await == [2001, 2002]).await?;
    register(&client, "rust-kept", 1, false).await?;
    ok("persist");
    println!("RESTART");
    std::io::stdin().read_line(&mut String::new())?;
    let third = connect(&address).await?;
    until("kept", async || listed(&third, "rust-kept").await == [1]).await?;
    until("back: by itself, once", async || listed(&third, SERVICE).await == [1001]).await?;
    until("back: the batch, too", async || listed(&third, "rust-batch").await == [2001, 2002]).await?;
    register(&third, SERVICE, 1003, true).await?;
    until("push again", async || pushed.is(&[1001, 1003])).await?;
    client.deregister_instance("rust-kept".into(), None, instance(1, false)).await?;
    client.deregister_instance(SERVICE.into(), None, instance(1001, true)).await?;
    until("deregister", async || pushed.is(&[1003]) && listed(&third, "rust-kept").await.is_empty()).await?;
    // Its threads would go on.
    std::process::exit(0)
}

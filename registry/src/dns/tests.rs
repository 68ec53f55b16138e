//! Over sockets: with a resolver library, with dig, and with peers that behave badly.

use super::*;
use crate::model::{Instance, InstanceId, ServiceKey};
use crate::service::Options as RegistryOptions;
use crate::table::Command;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{RData, RecordType};
use hickory_resolver::Resolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;

struct World {
    registry: Registry,
    stats: Arc<Stats>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

async fn world(options: Options) -> World {
    let registry = Registry::open(&RegistryOptions::default()).unwrap();
    let (udp, tcp) = loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let server = Server::on(vec![(udp, tcp)]);
    let address = server.addresses().unwrap()[0];
    let (stop, stopping) = watch::channel(false);
    let stats = Arc::new(Stats::default());
    let task = tokio::spawn(server.serve(registry.clone(), options, stats.clone(), stopping));
    World { registry, stats, address, stop, task }
}

impl World {
    async fn register(&self, name: &str, host: &str, port: u16) {
        let (service, id) = (ServiceKey::public(name).unwrap(), InstanceId::new("", host, port).unwrap());
        self.registry.submit(Command::Register { service, instance: Instance::new(id) }).await.unwrap();
    }

    async fn end(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap();
        self.registry.stop();
    }

    async fn dig(&self, args: &[&str]) -> String {
        let (port, args) = (self.address.port().to_string(), args.iter().map(|a| a.to_string()).collect::<Vec<_>>());
        let output = tokio::task::spawn_blocking(move || {
            let mut dig = std::process::Command::new("dig");
            dig.args(["@127.0.0.1", "-p", &port, "+tries=2", "+time=20"]).args(args).output()
        });
        let output = output.await.unwrap().expect("dig is there: scripts/setup");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(format!("{name}.ringspan.internal.").parse().unwrap(), kind));
    message.to_vec().unwrap()
}

async fn ask_tcp(stream: &mut TcpStream, query: &[u8]) -> io::Result<Message> {
    stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], query].concat()).await?;
    read_tcp(stream).await
}

async fn read_tcp(stream: &mut TcpStream) -> io::Result<Message> {
    let mut bytes = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(Message::from_vec(&bytes).unwrap())
}

/// A resolver library finds addresses and services, and follows a change.
#[tokio::test]
async fn a_resolver_library() {
    let w = world(Options { ttl: Duration::ZERO, ..Options::default() }).await;
    w.register("web", "10.0.0.1", 8080).await;
    w.register("web", "fd00::1", 8080).await;
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut c| {
        c.port = w.address.port();
        c
    });
    let server = NameServerConfig::new(w.address.ip(), true, connections.into());
    let config = ResolverConfig::from_parts(None, vec![], vec![server]);
    let resolver = Resolver::builder_with_config(config, TokioRuntimeProvider::default()).build().unwrap();
    let found = resolver.ipv4_lookup("web.svc.ringspan.internal.").await.unwrap();
    assert_eq!(found.answers()[0].data.to_string(), "10.0.0.1");
    let found = resolver.srv_lookup("_web._tcp.svc.ringspan.internal.").await.unwrap();
    let ports: Vec<u16> = found
        .answers()
        .iter()
        .filter_map(|r| if let RData::SRV(srv) = &r.data { Some(srv.port) } else { None })
        .collect();
    assert_eq!(ports, [8080, 8080]);
    w.register("web", "10.0.0.2", 8080).await;
    assert_eq!(resolver.ipv4_lookup("web.svc.ringspan.internal.").await.unwrap().answers().len(), 2);
    assert!(resolver.ipv4_lookup("nobody.svc.ringspan.internal.").await.is_err());
    w.end().await;
}

/// dig reads what we say: answers, negative answers with their SOA, a cut answer that it fetches over TCP, refusals.
#[tokio::test]
async fn dig_reads_it() {
    let w = world(Options { answers_max: 60, ..Options::default() }).await;
    for n in 0..60 {
        w.register("many", &format!("10.0.0.{n}"), 80).await;
    }
    w.register("com.acme.Api", "10.0.1.1", 9000).await;
    assert_eq!(w.dig(&["+short", "com_x2eacme_x2e_x41pi.svc.ringspan.internal"]).await, "10.0.1.1\n");
    assert_eq!(w.dig(&["+short", "com.acme.api.default_group.public.svc.ringspan.internal"]).await, "10.0.1.1\n");
    let srv = w.dig(&["SRV", "_com_x2eacme_x2eapi._tcp.svc.ringspan.internal"]).await;
    assert!(srv.contains("0 100 9000 10-0-1-1.com.acme._x41pi.default_group.public.host.ringspan.internal."), "{srv}");
    assert!(srv.contains("ADDITIONAL SECTION") && srv.contains("10.0.1.1"), "{srv}");
    let none = w.dig(&["nobody.svc.ringspan.internal"]).await;
    assert!(none.contains("status: NXDOMAIN") && none.contains("flags: qr aa rd;") && none.contains("SOA"), "{none}");
    let nodata = w.dig(&["AAAA", "many.svc.ringspan.internal"]).await;
    assert!(nodata.contains("status: NOERROR") && nodata.contains("ANSWER: 0, AUTHORITY: 1"), "{nodata}");
    let cut = w.dig(&["+noedns", "+ignore", "many.svc.ringspan.internal"]).await;
    assert!(cut.contains("flags: qr aa tc rd;"), "{cut}");
    let whole = w.dig(&["+noedns", "many.svc.ringspan.internal"]).await;
    assert!(whole.contains("retrying in TCP mode") && whole.contains("ANSWER: 60,"), "{whole}");
    for refused in [&["AXFR", "ringspan.internal"][..], &["CH", "TXT", "version.bind"], &["example.com"]] {
        let said = w.dig(refused).await;
        assert!(said.contains("REFUSED") || said.contains("Transfer failed"), "{refused:?}: {said}");
    }
    assert!(w.dig(&["+edns=1", "+noednsneg", "many.svc.ringspan.internal"]).await.contains("status: BADVERS"));
    assert!(w.dig(&["ANY", "many.svc.ringspan.internal"]).await.contains("\"RFC8482\""));
    w.end().await;
}

/// Many questions on one connection are answered in their order; one that cannot be read does not end it.
#[tokio::test]
async fn pipelined() {
    let w = world(Options::default()).await;
    w.register("web", "10.0.0.1", 80).await;
    let mut stream = TcpStream::connect(w.address).await.unwrap();
    let (good, bad) = (query("web.svc", RecordType::A), query("web.svc", RecordType::A)[..20].to_vec());
    let mut all = Vec::new();
    for n in 0..100_u16 {
        let mut one = if n == 50 { bad.clone() } else { good.clone() };
        one[..2].copy_from_slice(&n.to_be_bytes());
        all.extend((one.len() as u16).to_be_bytes());
        all.extend(one);
    }
    stream.write_all(&all).await.unwrap();
    for n in 0..100 {
        let answer = read_tcp(&mut stream).await.unwrap();
        assert_eq!((answer.metadata.id, answer.answers.len()), (n, usize::from(n != 50)));
    }
    w.end().await;
}

/// A connection more than one address may have is closed, and there is room again when one has ended; so is one that promises
/// too much.
#[tokio::test]
async fn connections_are_bounded() {
    let w = world(Options { connections_max: 4, ..Options::default() }).await;
    let good = query("web.svc", RecordType::A);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(w.address).await.unwrap();
        ask_tcp(&mut stream, &good).await.unwrap();
        held.push(stream);
    }
    let mut third = TcpStream::connect(w.address).await.unwrap();
    assert!(ask_tcp(&mut third, &good).await.is_err());
    held.pop();
    loop {
        let mut again = TcpStream::connect(w.address).await.unwrap();
        if ask_tcp(&mut again, &good).await.is_ok() {
            again.write_all(&[0xff, 0xff]).await.unwrap();
            assert!(read_tcp(&mut again).await.is_err());
            break;
        }
    }
    w.end().await;
}

/// Past the rate a network hears TC or nothing over UDP, and all over TCP; who may not ask hears nothing.
#[tokio::test]
async fn limited_and_not_allowed() {
    let w = world(Options { rate: 1, ..Options::default() }).await;
    w.register("web", "10.0.0.1", 80).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(w.address).await.unwrap();
    let mut cut = 0;
    let mut buffer = [0; 2048];
    while cut < 3 {
        socket.send(&query("web.svc", RecordType::A)).await.unwrap();
        if let Ok(n) = timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await {
            let answer = Message::from_vec(&buffer[..n.unwrap()]).unwrap();
            assert_eq!(answer.metadata.truncation, answer.answers.is_empty());
            cut += usize::from(answer.metadata.truncation);
        }
    }
    let mut stream = TcpStream::connect(w.address).await.unwrap();
    for _ in 0..10 {
        assert_eq!(ask_tcp(&mut stream, &query("web.svc", RecordType::A)).await.unwrap().answers.len(), 1);
    }
    w.end().await;
    let w = world(Options { allow: Some(vec!["10.0.0.0/8".parse().unwrap()]), ..Options::default() }).await;
    let mut stream = TcpStream::connect(w.address).await.unwrap();
    assert!(ask_tcp(&mut stream, &query("web.svc", RecordType::A)).await.is_err());
    socket.connect(w.address).await.unwrap();
    socket.send(&query("web.svc", RecordType::A)).await.unwrap();
    let mut text = String::new();
    while !text.contains("reason=\"not_allowed\"} 2") {
        tokio::task::yield_now().await;
        text = scrape(&w.stats);
    }
    w.end().await;
}

/// What /metrics says.
fn scrape(stats: &Arc<Stats>) -> String {
    #[derive(Debug)]
    struct Of(Arc<Stats>);
    impl prometheus_client::collector::Collector for Of {
        fn encode(&self, mut encoder: prometheus_client::encoding::DescriptorEncoder<'_>) -> fmt::Result {
            self.0.write(&mut encoder)
        }
    }
    let mut series = prometheus_client::registry::Registry::default();
    series.register_collector(Box::new(Of(stats.clone())));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &series).unwrap();
    text
}

/// What a zone may be called: table.
#[test]
fn zones() {
    let of = |text: &str| text.parse::<ZoneName>().map(|z| z.to_string()).ok();
    assert_eq!(of("Ringspan.Internal").as_deref(), Some("ringspan.internal."));
    assert_eq!(of("svc.").as_deref(), Some("svc."));
    for bad in ["", ".", "a..b", "a b", "ä.de", &"a".repeat(64), &"a.".repeat(70)] {
        assert_eq!(of(bad), None, "{bad:?}");
    }
}

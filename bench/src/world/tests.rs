use super::*;
use std::io::Read;
use std::net::TcpListener;
use std::thread;
use std::time::Instant;

fn free(ip: [u8; 4]) -> SocketAddr {
    TcpListener::bind(SocketAddr::from((ip, 0))).and_then(|l| l.local_addr()).expect("a free port")
}

/// A world in this process, and a handle that asks it.
fn world(delay_max_ms: u16) -> (Plan, BufReader<TcpStream>) {
    let crowd = vec![free([0, 0, 0, 0])];
    let mortals = (0..4).map(|i| free([127, 9, 9, 1 + i])).collect();
    let plan = Plan { crowd, mortals, delay_max_ms, control: free([127, 0, 0, 1]), seed: 1 };
    let its = plan.clone();
    thread::spawn(move || serve(&its));
    let until = Instant::now() + Duration::from_secs(20);
    let control = loop {
        match TcpStream::connect(plan.control) {
            Ok(control) => break control,
            Err(e) => assert!(Instant::now() < until, "the world does not come up: {e}"),
        }
    };
    control.set_read_timeout(Some(ASK_TIMEOUT)).expect("a socket");
    (plan, BufReader::new(control))
}

fn ask<T: for<'a> Deserialize<'a>>(control: &mut BufReader<TcpStream>, question: &str) -> T {
    writeln!(control.get_mut(), "{question}").expect("the world hears");
    let mut line = String::new();
    control.read_line(&mut line).expect("the world answers");
    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{question}: {e}: {line}"))
}

/// What a visitor hears to a request said in two pieces; `None`: nothing within the patience.
fn visit(address: SocketAddr) -> std::io::Result<Option<String>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r")?;
    stream.write_all(b"\n")?;
    let mut text = String::new();
    match stream.read_to_string(&mut text) {
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        other => other.map(|_| Some(text)),
    }
}

/// The crowd answers on every address of 127/8, the mortals die in both ways and come back, and every answer is
/// counted.
#[test]
fn mortals_die_and_come_back() {
    let (plan, mut control) = world(20);
    let crowd = SocketAddr::from(([127, 200, 3, 4], plan.crowd[0].port()));
    let everybody: Vec<_> = plan.mortals.iter().copied().chain([crowd]).collect();
    let all_well = || {
        for &address in &everybody {
            let text = visit(address).expect("accepted").expect("answered");
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nok"), "{address}: {text}");
        }
    };
    all_well();
    let deaths: Deaths = ask(&mut control, "die");
    assert_eq!(deaths.dead.len(), plan.mortals.len());
    for dead in &deaths.dead {
        assert!(dead.calls_ns.len() == 1 && dead.calls_ns[0] < deaths.at_ns && !dead.last_call_open);
        match (dead.death, visit(dead.address)) {
            (Death::Refused, Err(e)) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionRefused),
            (Death::Silent, Ok(None)) => {}
            (death, heard) => panic!("{death:?}: {heard:?}"),
        }
    }
    assert!(deaths.dead.iter().any(|d| d.death == Death::Refused), "both ways of dying");
    assert!(deaths.dead.iter().any(|d| d.death == Death::Silent), "both ways of dying");
    let _: u64 = ask(&mut control, "revive");
    all_well();
    let count: Count = ask(&mut control, "count");
    assert_eq!(count.served, 2 * everybody.len() as u64);
}

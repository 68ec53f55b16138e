//! Claim: who is named as a webhook in bridge.toml is told why an instance is down and how late that is, signed with the
//! secret of the environment; a reload changes what it is told. Method: the bridge as a child process, a receiver on a
//! socket of ours. Every wait ends with an event.

mod common;

use common::{Running, ringspan};
use ring::hmac;
use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

const SECRET: &str = "a secret of the environment";

/// One delivery: its headers and its body. Answered with yes.
fn receive(listener: &TcpListener) -> (HashMap<String, String>, Vec<u8>) {
    let (stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(common::PATIENCE)).expect("set");
    let mut stream = BufReader::new(stream);
    let mut headers = HashMap::new();
    let mut line = String::new();
    stream.read_line(&mut line).expect("a request");
    assert_eq!(line, "POST /hook?x=1 HTTP/1.1\r\n");
    loop {
        line.clear();
        stream.read_line(&mut line).expect("a header");
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_owned(), value.to_owned());
    }
    let mut body = vec![0; headers["content-length"].parse().expect("a number")];
    stream.read_exact(&mut body).expect("a body");
    stream.get_mut().write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").expect("sent");
    (headers, body)
}

fn register(http: SocketAddr, service: &str, port: u16) {
    let checker = r#"{"type":"TCP","intervalMs":100,"timeoutMs":100,"rise":1,"fall":1}"#;
    let metadata = serde_json::json!({ "preserved.checker": checker }).to_string();
    let metadata: String = metadata.bytes().map(|b| format!("%{b:02X}")).collect();
    let query = format!("serviceName={service}&ip=127.0.0.1&port={port}&ephemeral=false&metadata={metadata}");
    let mut stream = TcpStream::connect(http).expect("it listens");
    let head = format!("POST /nacos/v1/ns/instance?{query} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
}

#[test]
fn a_webhook_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/hook?x=1", listener.local_addr().expect("bound"));
    // Free a moment ago: whoever connects is refused.
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = closed.local_addr().expect("bound").port();
    drop(closed);
    let folder = tempfile::tempdir().expect("a folder");
    let write = |more: &str| {
        let text = format!(
            "data_dir = \"data\"\n[http]\nlisten = \"127.0.0.1:0\"\n[link]\nlisten = \"127.0.0.1:0\"\n\
             [[registry.webhook]]\nname = \"pager\"\nurl = \"{url}\"\nsecret = \"${{TEST_WEBHOOK_SECRET}}\"\n{more}"
        );
        let (new, file) = (folder.path().join("new"), folder.path().join("bridge.toml"));
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, &file).expect("renamed");
    };
    write("kinds = [\"health\"]\nservices = [\"w*\"]\n");
    let mut command = ringspan(&["bridge", "--config", "bridge.toml"]);
    let bridge = Running::start(command.current_dir(folder.path()).env("TEST_WEBHOOK_SECRET", SECRET));
    let line = bridge.wait_line(&["bridge is up"]);
    let http = line.split(" http=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("an address");
    let http: SocketAddr = http.parse().expect("an address");

    register(http, "other", port);
    register(http, "web", port);
    let (headers, body) = receive(&listener);
    let told: Value = serde_json::from_slice(&body).expect("JSON");
    let events = told["events"].as_array().expect("a list");
    assert_eq!((events.len(), &told["hook"], &told["missed"]), (1, &"pager".into(), &0.into()), "{told}");
    let event = &events[0];
    for (key, want) in [
        ("event", "health"),
        ("namespace", "public"),
        ("service", "web"),
        ("host", "127.0.0.1"),
        ("was", "unknown"),
        ("is", "down"),
        ("reason", "L4CON"),
    ] {
        assert_eq!(event[key], want, "{event}");
    }
    assert!(event["latency_us"].is_u64() && event["at_ms"].is_u64() && event["port"] == port, "{event}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signed =
        [headers["webhook-id"].as_bytes(), b".", headers["webhook-timestamp"].as_bytes(), b".", &body].concat();
    let signature = headers["webhook-signature"].strip_prefix("v1,").expect("of the first version");
    use base64::Engine;
    let signature = base64::engine::general_purpose::STANDARD.decode(signature).expect("Base64");
    hmac::verify(&key, &signed, &signature).expect("signed by us");

    // Read again: it hears of registrations now, and of another service.
    write("kinds = [\"registered\"]\nservices = [\"other\"]\n");
    bridge.wait_line(&["webhook \"pager\" is another one"]);
    register(http, "web", port + 1);
    register(http, "other", port + 1);
    let (_, body) = receive(&listener);
    let told: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((&told["events"][0]["event"], &told["events"][0]["service"]), (&"registered".into(), &"other".into()));
    let (_, metrics) = common::world::get(http, "/metrics").expect("it answers");
    assert!(metrics.contains("ringspan_webhook_events_total{hook=\"pager\",outcome=\"delivered\"}"), "{metrics}");
    assert!(!bridge.text().contains(SECRET));
}

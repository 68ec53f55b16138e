//! The smallest whole tunnel: a visitor's words reach the backend, and the answer comes back.

mod rig;

use rig::SHAPES;
use std::io::{Read, Write};
use std::net::TcpListener;

/// A request of any kind is answered through the tunnel, and both ends see the clean end.
#[test]
fn a_visitor_is_answered() {
    for shape in SHAPES {
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = backend.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = backend.accept().unwrap();
            let mut question = String::new();
            stream.read_to_string(&mut question).unwrap();
            stream.write_all(format!("you said {question}").as_bytes()).unwrap();
        });
        let bridge = rig::bridge(shape, &["web"]);
        let _agent = bridge.agent(shape, &[("web", address)]);
        let mut visitor = bridge.visit(0);
        visitor.write_all(b"hello").unwrap();
        visitor.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        visitor.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "you said hello", "{shape:?}");
        server.join().unwrap();
    }
}

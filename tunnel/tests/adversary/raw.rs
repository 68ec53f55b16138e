//! A peer of the bridge that can be made to say anything: blocking sockets, frames by hand.

use super::harness::{PATIENCE, World};
use ringspan_tunnel::frame::{HEADER_BYTES, Header, Kind};
use ringspan_tunnel::hello::{self, AgentHello, AgentStep, Carrier, Introduction, VERSIONS, Welcome};
use ringspan_tunnel::tls::{ClientTls, Tls};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// A bare connection to somewhere.
pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Reads until the other side ends the connection, in whatever way. Panics if it never does.
pub(crate) fn until_closed(socket: &mut TcpStream) {
    let mut sink = vec![0; 64 << 10];
    loop {
        match socket.read(&mut sink) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                panic!("the bridge keeps the connection open")
            }
            Err(_) => return,
        }
    }
}

/// A carrier to the bridge, with TLS if it wants that.
pub(crate) struct Raw {
    pub(crate) socket: TcpStream,
    pub(crate) tls: Tls,
}

impl Raw {
    /// As far as TLS.
    pub(crate) fn connect(world: &World) -> Raw {
        let tls = match &world.tls {
            None => Tls::plain(),
            Some(server) => ClientTls::pinned(server.fingerprint()).connect("127.0.0.1").unwrap(),
        };
        let mut raw = Raw { socket: connect(world.link()), tls };
        while raw.tls.is_handshaking() {
            raw.flush().unwrap();
            if raw.tls.is_handshaking() {
                assert_ne!(raw.fill().unwrap(), 0, "closed in the TLS handshake");
            }
        }
        raw.flush().unwrap();
        raw
    }

    /// All the way: a welcomed carrier of a hostile agent.
    pub(crate) fn enrol(world: &World, introduction: &Introduction) -> (Raw, Welcome) {
        Raw::greet(world, introduction, Carrier::mux(0, 1)).expect("the bridge lets it in")
    }

    /// The handshake of any carrier; `Err`: why the bridge does not let it in.
    pub(crate) fn greet(world: &World, introduction: &Introduction, place: Carrier) -> Result<(Raw, Welcome), String> {
        let mut raw = Raw::connect(world);
        let binding = raw.tls.binding().expect("TLS is through");
        let mut hello = AgentHello::new(introduction.clone(), VERSIONS, place, binding);
        loop {
            let Some((header, payload)) = raw.frame().unwrap() else { return Err("closed".into()) };
            if header.kind != Kind::Hello {
                return Err(String::from_utf8_lossy(&payload).into_owned());
            }
            match hello.on_message(hello_kind(header.aux), &payload) {
                AgentStep::Send(message) => raw.hello(&message),
                AgentStep::Welcomed(welcome) => return Ok((raw, welcome)),
                AgentStep::Refused(refusal) => return Err(refusal.to_string()),
                AgentStep::Over => panic!("the handshake was over"),
            }
        }
    }

    pub(crate) fn hello(&mut self, message: &hello::Message) {
        self.send(Header { aux: message.kind as u16, ..Header::new(Kind::Hello, 0) }, &message.payload).unwrap();
    }

    /// A frame with an honest length.
    pub(crate) fn send(&mut self, header: Header, payload: &[u8]) -> io::Result<()> {
        let header = Header { len: payload.len() as u32, ..header };
        self.write(&[&header.encode(), payload].concat())
    }

    /// Any bytes, inside the cipher.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.tls.write(bytes).map_err(io::Error::other)?;
            bytes = &bytes[n..];
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.tls.outgoing().is_empty() {
            let n = self.socket.write(self.tls.outgoing())?;
            self.tls.on_sent(n);
        }
        Ok(())
    }

    fn fill(&mut self) -> io::Result<usize> {
        let n = self.socket.read(self.tls.receive_space())?;
        self.tls.on_received(n).map_err(io::Error::other)?;
        Ok(n)
    }

    /// The next frame; `None` if the bridge ended the connection.
    pub(crate) fn frame(&mut self) -> io::Result<Option<(Header, Vec<u8>)>> {
        let Some(head) = self.exactly(HEADER_BYTES)? else { return Ok(None) };
        let header = Header::decode(&head.try_into().unwrap()).map_err(io::Error::other)?;
        let Some(payload) = self.exactly(header.len as usize)? else { return Ok(None) };
        Ok(Some((header, payload)))
    }

    fn exactly(&mut self, n: usize) -> io::Result<Option<Vec<u8>>> {
        while self.tls.plaintext().len() < n {
            match self.fill() {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    panic!("the bridge keeps the connection open")
                }
                Err(_) => return Ok(None),
            }
        }
        let bytes = self.tls.plaintext()[..n].to_vec();
        self.tls.consume(n);
        Ok(Some(bytes))
    }

    /// What the bridge still says, as far as it is text, until it ends the connection. Panics if it never does.
    pub(crate) fn last_words(&mut self) -> String {
        let mut words = String::new();
        while let Ok(Some((header, payload))) = self.frame() {
            if matches!(header.kind, Kind::Hello | Kind::Goaway) {
                words.push_str(&String::from_utf8_lossy(&payload));
            }
        }
        words
    }
}

pub(crate) fn hello_kind(aux: u16) -> hello::Kind {
    use hello::Kind::{Auth, Challenge, Refused, Welcome};
    [Challenge, Auth, Welcome, Refused].into_iter().find(|kind| *kind as u16 == aux).expect("a known step")
}

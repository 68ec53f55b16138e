//! `[http] grpc_listen`: where Nacos' newer clients connect. They take the HTTP port that they are told and add 1000.

use super::{Document, Error, unit};
use std::net::SocketAddr;
use toml::Spanned;

/// What Nacos' clients add to the HTTP port.
const PORT_OFFSET: u16 = 1000;

/// Where gRPC is served if the file does not say: beside HTTP, as its clients expect; at a port of the kernel's choice if
/// the HTTP port is one. `None`: that would be above 65535.
pub(super) fn beside(http: SocketAddr) -> Option<SocketAddr> {
    let port = if http.port() == 0 { 0 } else { http.port().checked_add(PORT_OFFSET)? };
    Some(SocketAddr::new(http.ip(), port))
}

/// The address; `None`: gRPC is not served.
pub(super) fn check(
    doc: &Document,
    raw: Option<&Spanned<String>>,
    http_raw: Option<&Spanned<String>>,
    http: SocketAddr,
) -> Result<Option<SocketAddr>, Error> {
    let example = "\"127.0.0.1:9848\" or \"off\"";
    match raw {
        Some(raw) if raw.get_ref() == "off" => Ok(None),
        Some(raw) => doc.value(raw, unit::address, example).map(Some),
        None => beside(http).map(Some).ok_or_else(|| {
            let at = http_raw.map_or(0..0, Spanned::span);
            let problem = format!("gRPC clients connect to its port + {PORT_OFFSET}, and there is no such port");
            doc.wrong(at, problem, "a port up to 64535, or a grpc_listen")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Document, bridge};

    /// Beside HTTP, elsewhere, or nowhere; and what is said of what cannot be.
    #[test]
    fn where_grpc_is() {
        let of = |text: &str| bridge::check(&Document::of("bridge.toml", text)).map(|b| b.grpc_listen);
        let at = |text: &str| Some(text.parse().unwrap());
        assert_eq!(of("").unwrap(), at("127.0.0.1:9848"));
        assert_eq!(of("[http]\nlisten = \"0.0.0.0:80\"").unwrap(), at("0.0.0.0:1080"));
        assert_eq!(of("[http]\nlisten = \"127.0.0.1:0\"").unwrap(), at("127.0.0.1:0"));
        assert_eq!(of("[http]\ngrpc_listen = \"127.0.0.1:1\"").unwrap(), at("127.0.0.1:1"));
        assert_eq!(of("[http]\ngrpc_listen = \"off\"").unwrap(), None);
        let error = |text: &str| of(text).unwrap_err().to_string();
        assert_eq!(
            error("[http]\nlisten = \"127.0.0.1:65000\""),
            "bridge.toml:2: [http] listen = \"127.0.0.1:65000\": gRPC clients connect to its port + 1000, and there is no \
             such port. Try: a port up to 64535, or a grpc_listen"
        );
        assert!(error("[http]\ngrpc_listen = \"on\"").contains("Try: \"127.0.0.1:9848\" or \"off\""));
        let taken = error("[http]\nlisten = \"127.0.0.1:7024\"");
        assert!(taken.contains("[http] grpc_listen has this address already (127.0.0.1:8024)"), "{taken}");
    }
}

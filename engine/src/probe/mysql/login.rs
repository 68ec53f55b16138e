//! From a greeting to "you are in": capabilities, the plugin that proves who we are, and when to rather not.
//! Uses `mysql_common`'s packets and plugins, and guards them where they believe too much.

use super::key;
use super::settings::MysqlCheck;
use mysql_common::auth::plugins::{AuthProc, ChallengeResponsePlugin, Context, Response};
use mysql_common::constants::CapabilityFlags;
use mysql_common::io::ParseBuf;
use mysql_common::packets::{
    AuthMoreData, AuthPlugin, AuthSwitchRequest, HandshakePacket, HandshakeResponse, SslRequest,
};
use mysql_common::proto::MySerialize;
use std::collections::HashMap;

/// What we say a packet may have at most: a server's own default (MySQL: 16 MB). Our own are under 16 KiB.
const MAX_PACKET: u32 = 16 * 1024 * 1024;
/// How often the plugin may be changed or asked again. MySQL changes once, MariaDB once for each plugin of the account.
const EXCHANGES_MAX: u8 = 8;
/// utf8mb4_general_ci: every server since 5.5.3 knows it.
const UTF8MB4: u8 = 45;
/// The version from which [`UTF8MB4`] is there. We speak to none that is older.
const VERSION: (u16, u16, u16) = (5, 5, 3);

/// What a server said first.
#[derive(Clone)]
pub(super) struct Greeting {
    nonce: Vec<u8>,
    plugin: AuthPlugin<'static>,
    capabilities: CapabilityFlags,
}

impl Greeting {
    /// Reads a greeting; `None`: it is not one of protocol 10 as spoken since MySQL 4.1.
    pub(super) fn read(packet: &[u8]) -> Option<Greeting> {
        // The byte that says how long the challenge is stands 22 bytes after the version's end. It is 21; from 128 on
        // mysql_common computes with a number of the wrong sign.
        let version_end = packet.iter().skip(1).position(|byte| *byte == 0)? + 1;
        if packet[0] != 10 || *packet.get(version_end + 21)? >= 128 {
            return None;
        }
        let greeting: HandshakePacket<'_> = ParseBuf(packet).parse(()).ok()?;
        let capabilities = greeting.capabilities();
        if !capabilities.contains(CapabilityFlags::CLIENT_PROTOCOL_41 | CapabilityFlags::CLIENT_SECURE_CONNECTION) {
            return None;
        }
        // An offer only: what the account really needs the server says with a switch request.
        let plugin = match greeting.auth_plugin() {
            Some(AuthPlugin::CachingSha2Password) => AuthPlugin::CachingSha2Password,
            _ => AuthPlugin::MysqlNativePassword,
        };
        Some(Greeting { nonce: greeting.nonce(), plugin, capabilities })
    }

    /// Whether the server speaks TLS.
    pub(super) fn offers_tls(&self) -> bool {
        self.capabilities.contains(CapabilityFlags::CLIENT_SSL)
    }

    /// The packet that asks for TLS.
    pub(super) fn tls_request(&self, check: &MysqlCheck) -> Vec<u8> {
        let capabilities = self.ours(check.database.is_some()) | CapabilityFlags::CLIENT_SSL;
        serialized(&SslRequest::new(capabilities, MAX_PACKET, UTF8MB4))
    }

    /// What both sides can do, as far as we want it: no EOF-less results, no several statements, no local files.
    fn ours(&self, has_database: bool) -> CapabilityFlags {
        let wanted = CapabilityFlags::CLIENT_PROTOCOL_41
            | CapabilityFlags::CLIENT_SECURE_CONNECTION
            | CapabilityFlags::CLIENT_LONG_PASSWORD
            | CapabilityFlags::CLIENT_TRANSACTIONS
            | CapabilityFlags::CLIENT_PLUGIN_AUTH
            | CapabilityFlags::CLIENT_CONNECT_ATTRS;
        let database = if has_database { CapabilityFlags::CLIENT_CONNECT_WITH_DB } else { CapabilityFlags::empty() };
        (wanted & self.capabilities) | database
    }
}

/// What comes of one more packet of a login.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// This is to be said; the server answers.
    Say(Vec<u8>),
    /// The server has more to say.
    Hear,
    /// We cannot, or will not, prove who we are this way: [`no_proof`] makes the server end it in good order.
    Decline(Reason),
    /// That was no login.
    Nonsense,
}

/// Why a login is given up. The numbers are those of MySQL's own clients (errmsg.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// CR_AUTH_PLUGIN_CANNOT_LOAD: the account uses a plugin that we do not have, or do not trust.
    Plugin,
    /// CR_AUTH_PLUGIN_ERR, "Authentication requires secure connection".
    Insecure,
}

impl Reason {
    pub(super) const fn number(self) -> u32 {
        match self {
            Reason::Plugin => 2059,
            Reason::Insecure => 2061,
        }
    }
}

/// A login in progress.
pub(super) struct Login {
    proc: AuthProc,
    /// The server's last challenge: what an RSA-encrypted password is mixed with, too.
    nonce: Vec<u8>,
    is_tls: bool,
    exchanges: u8,
}

impl Login {
    /// The first packet of ours, and the login that it begins. `None`: the challenge is of no plugin's length.
    pub(super) fn begin(greeting: &Greeting, check: &MysqlCheck, is_tls: bool) -> Option<(Login, Vec<u8>)> {
        let proc = greeting.plugin.init().expect("both offers are plugins that mysql_common has");
        let mut login = Login { proc, nonce: greeting.nonce.clone(), is_tls, exchanges: 0 };
        let Turn::Say(proof) = login.prove(check, &greeting.nonce) else { return None };
        let mut capabilities = greeting.ours(check.database.is_some());
        if is_tls {
            capabilities |= CapabilityFlags::CLIENT_SSL;
        }
        let attributes = HashMap::from([("program_name".to_owned(), "ringspan".to_owned())]);
        let response = HandshakeResponse::new(
            Some(proof),
            VERSION,
            Some(check.user.as_bytes()),
            check.database.as_deref().map(str::as_bytes),
            capabilities.contains(CapabilityFlags::CLIENT_PLUGIN_AUTH).then(|| greeting.plugin.clone()),
            capabilities,
            capabilities.contains(CapabilityFlags::CLIENT_CONNECT_ATTRS).then_some(attributes),
            MAX_PACKET,
        );
        Some((login, serialized(&response)))
    }

    /// A packet that neither lets us in (0x00) nor refuses (0xff).
    pub(super) fn hear(&mut self, packet: &[u8], check: &MysqlCheck) -> Turn {
        self.exchanges += 1;
        if self.exchanges > EXCHANGES_MAX {
            return Turn::Nonsense;
        }
        match packet {
            // The switch to passwords as they were before MySQL 4.1 (16 bits of them).
            [0xfe] => Turn::Decline(Reason::Plugin),
            [0xfe, ..] => self.switch(packet, check),
            [0x01, ..] => match ParseBuf(packet).parse::<AuthMoreData<'_>>(()) {
                Ok(more) => self.prove(check, more.data()),
                Err(_) => Turn::Nonsense,
            },
            _ => Turn::Nonsense,
        }
    }

    fn switch(&mut self, packet: &[u8], check: &MysqlCheck) -> Turn {
        let Ok(request) = ParseBuf(packet).parse::<AuthSwitchRequest<'_>>(()) else { return Turn::Nonsense };
        let plugin = request.auth_plugin();
        match plugin {
            AuthPlugin::MysqlNativePassword | AuthPlugin::CachingSha2Password | AuthPlugin::Sha256Password => {
                self.proc = plugin.init().expect("three plugins that mysql_common has");
                self.nonce = request.plugin_data().to_vec();
                self.prove(check, request.plugin_data())
            }
            // The password in clear, or nearly: not for anybody who asks. The others we do not have.
            AuthPlugin::MysqlClearPassword
            | AuthPlugin::MysqlOldPassword
            | AuthPlugin::Ed25519
            | AuthPlugin::Parsec
            | AuthPlugin::Other(_) => Turn::Decline(Reason::Plugin),
        }
    }

    fn prove(&mut self, check: &MysqlCheck, challenge: &[u8]) -> Turn {
        let looks_like_a_key = challenge.starts_with(b"-----BEGIN");
        if looks_like_a_key && (self.is_tls || !check.takes_server_key || !key::is_sound(challenge)) {
            return Turn::Nonsense;
        }
        let known = Known { password: check.password.bytes(), nonce: &self.nonce, is_tls: self.is_tls };
        match self.proc.run(known, challenge) {
            Ok(Response::Next { packet: Some(packet) }) if is_key_request(&packet) && !check.takes_server_key => {
                Turn::Decline(Reason::Insecure)
            }
            Ok(Response::Next { packet: Some(packet) } | Response::Last { packet: Some(packet) }) => Turn::Say(packet),
            Ok(Response::Next { packet: None } | Response::Last { packet: None }) => Turn::Hear,
            Err(_) => Turn::Nonsense,
        }
    }
}

/// What to answer to a packet of a login that is given up: a proof that proves nothing. Plugins take an empty one for a
/// wrong password; MariaDB's ed25519 takes any but 64 bytes for a broken handshake, and counts those against our host.
pub(super) fn no_proof(packet: &[u8]) -> Vec<u8> {
    match ParseBuf(packet).parse::<AuthSwitchRequest<'_>>(()) {
        Ok(request) if request.auth_plugin() == AuthPlugin::Ed25519 => vec![0; 64],
        Ok(_) | Err(_) => Vec::new(),
    }
}

/// One byte where a scramble has 20 or 32: 2 in caching_sha2_password, 1 in sha256_password.
fn is_key_request(packet: &[u8]) -> bool {
    matches!(packet, [1 | 2])
}

fn serialized(packet: &impl MySerialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.serialize(&mut bytes);
    bytes
}

/// What the plugins ask us.
struct Known<'a> {
    password: &'a [u8],
    nonce: &'a [u8],
    is_tls: bool,
}

impl Context for Known<'_> {
    fn pass(&self) -> &[u8] {
        self.password
    }

    fn is_ipc_transport(&self) -> bool {
        false
    }

    fn is_tls_transport(&self) -> bool {
        self.is_tls
    }

    fn scramble(&self) -> &[u8] {
        self.nonce
    }

    fn server_key_pem(&self) -> Option<&[u8]> {
        None
    }
}

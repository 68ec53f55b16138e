//! Secret services: one agent exposes, another visits, nobody else can, and the bridge in between cannot read them.
//!
//! ```text
//! client ─▶ agent [[visit]] ─HELLO─▶ bridge, listener of type "visit" ─plane─▶ agent [[expose]] secret_file ─▶ backend
//!                 └═════════ TLS 1.3, both ends proved by the shared secret ═════════┘
//! ```

mod greet;
pub(crate) mod key;
pub(crate) mod listener;
pub(crate) mod visit;

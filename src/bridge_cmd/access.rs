//! The registry's accounts as a bridge opens them: where they are, whether they are asked for, and the first of them.

use crate::Failure;
use crate::config::bridge::Bridge as Config;
use ringspan_registry::access::{Access, AuditOptions, FirstAdmin, Kept, Options, Refused, audit_file_in};

/// How a configuration has it.
pub(crate) fn options(config: &Config) -> Options {
    let wanted = &config.access;
    let (required, _) = wanted.is_required(config.http_listen, config.grpc_listen);
    let in_folder = Options::in_folder(&config.data_dir);
    let kept = match &config.cluster {
        Some(cluster) => Kept::Etcd { etcd: cluster.etcd.clone(), prefix: cluster.prefix.clone() },
        None => in_folder.kept.clone(),
    };
    let audit = wanted.audit.unwrap_or(required).then(|| AuditOptions::new(audit_file_in(&config.data_dir)));
    Options { required, kept, session: wanted.session, rates: wanted.rates, audit, ..in_folder }
}

/// Opens the accounts; if they are asked for and nobody could come in, makes an administrator and shows his password, once.
pub(super) fn open(config: &Config) -> Result<Access, Failure> {
    let access = Access::open(&options(config)).map_err(|e| Failure::Run(e.to_string()))?;
    let first = first_admin(&access).map_err(|e| Failure::Run(format!("the first administrator: {e}")))?;
    if let Some(FirstAdmin { name, password }) = first {
        // To the terminal and not to the log: logs are kept, and sent elsewhere.
        eprintln!(
            "\n  The registry asks who is there, and nobody had an account. An administrator was made:\n\n    \
             user      {name}\n    password  {password}\n\n  \
             This is shown once; a hash of it is all that is kept. Another one: ringspan user passwd {name}\n"
        );
        tracing::info!(user = name, "an administrator was made; the password is on stderr, once");
    }
    Ok(access)
}

/// On a thread of its own: whoever starts a bridge is in a runtime already.
fn first_admin(access: &Access) -> Result<Option<FirstAdmin>, Refused> {
    let failed = |e: std::io::Error| Refused::Failed(e.to_string());
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
            runtime.block_on(access.first_admin())
        });
        work.join().unwrap_or_else(|_| Err(Refused::Failed("the thread has panicked".into())))
    })
}

/// Says what holds, and why.
pub(super) fn tell(config: &Config) {
    let (required, why) = config.access.is_required(config.http_listen, config.grpc_listen);
    let is_open = !config.http_listen.ip().is_loopback() || config.grpc_listen.is_some_and(|a| !a.ip().is_loopback());
    tracing::info!(required, why, tls = config.access.tls.is_some(), "the registry's users have to log in");
    match (required, is_open) {
        (false, true) => tracing::warn!(http = %config.http_listen, "whoever reaches the registry may change it"),
        (true, true) if config.access.tls.is_none() => {
            tracing::warn!("passwords and tokens cross the network in the clear. Try: [http] cert and key");
        }
        _ => {}
    }
}

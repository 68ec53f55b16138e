//! As much of etcd's v3 API as the cluster needs: one client that finds an endpoint that answers.
//! Promise: every call ends within [`CALL_TIME_MAX`] of each endpoint's turn; a server that has lost its leader is left for
//! another one; the password is never printed.
//! The messages are declared here in Rust (etcd/api/etcdserverpb/rpc.proto, field for field), not generated: the build needs
//! no protoc.

use super::stats::ClusterStats;
use axum::http::uri::PathAndQuery;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};

/// An endpoint that has not answered by then is left for the next one: four round trips across a continent, and longer
/// than a healthy etcd takes for a commit; two of them fit into the time in which a new leader is elected.
pub(crate) const CALL_TIME_MAX: Duration = Duration::from_secs(2);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(1);
/// Keys read at a time when all of them are.
const PAGE_LEN: i64 = 5_000;
/// Longest answer that is taken: a page of the largest records.
const ANSWER_BYTES_MAX: usize = 64 << 20;

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        $($(#[$doc])*
        #[derive(Clone, PartialEq, prost::Message)]
        pub(crate) struct $name { $($(#[$attribute])* pub(crate) $field: $type),* })*
    };
}

messages! {
    Header {
        #[prost(int64, tag = "3")] revision: i64,
    }
    KeyValue {
        #[prost(bytes = "vec", tag = "1")] key: Vec<u8>,
        #[prost(int64, tag = "2")] create_revision: i64,
        #[prost(int64, tag = "3")] mod_revision: i64,
        #[prost(bytes = "vec", tag = "5")] value: Vec<u8>,
    }
    /// `kind` 0: put, 1: deleted.
    WatchEvent {
        #[prost(int32, tag = "1")] kind: i32,
        #[prost(message, optional, tag = "2")] kv: Option<KeyValue>,
    }
    RangeRequest {
        #[prost(bytes = "vec", tag = "1")] key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")] range_end: Vec<u8>,
        #[prost(int64, tag = "3")] limit: i64,
        #[prost(int64, tag = "4")] revision: i64,
    }
    RangeResponse {
        #[prost(message, optional, tag = "1")] header: Option<Header>,
        #[prost(message, repeated, tag = "2")] kvs: Vec<KeyValue>,
        #[prost(bool, tag = "3")] more: bool,
    }
    PutRequest {
        #[prost(bytes = "vec", tag = "1")] key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")] value: Vec<u8>,
        #[prost(int64, tag = "3")] lease: i64,
    }
    DeleteRequest {
        #[prost(bytes = "vec", tag = "1")] key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")] range_end: Vec<u8>,
    }
    Op {
        #[prost(oneof = "OpKind", tags = "2, 3")] kind: Option<OpKind>,
    }
    /// `mod_revision` of every key in [key, range_end) against a number; `result` 0: equal, 2: less.
    Compare {
        #[prost(int32, tag = "1")] result: i32,
        #[prost(int32, tag = "2")] target: i32,
        #[prost(bytes = "vec", tag = "3")] key: Vec<u8>,
        #[prost(int64, optional, tag = "6")] mod_revision: Option<i64>,
        #[prost(bytes = "vec", tag = "64")] range_end: Vec<u8>,
    }
    Txn {
        #[prost(message, repeated, tag = "1")] compare: Vec<Compare>,
        #[prost(message, repeated, tag = "2")] success: Vec<Op>,
    }
    TxnResponse {
        #[prost(message, optional, tag = "1")] header: Option<Header>,
        #[prost(bool, tag = "2")] succeeded: bool,
    }
    WatchCreate {
        #[prost(bytes = "vec", tag = "1")] key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")] range_end: Vec<u8>,
        #[prost(int64, tag = "3")] start_revision: i64,
    }
    WatchRequest {
        #[prost(message, optional, tag = "1")] create: Option<WatchCreate>,
    }
    WatchResponse {
        #[prost(message, optional, tag = "1")] header: Option<Header>,
        #[prost(bool, tag = "3")] created: bool,
        #[prost(bool, tag = "4")] canceled: bool,
        #[prost(int64, tag = "5")] compact_revision: i64,
        #[prost(string, tag = "6")] cancel_reason: String,
        #[prost(message, repeated, tag = "11")] events: Vec<WatchEvent>,
    }
    LeaseGrant {
        #[prost(int64, tag = "1")] ttl_s: i64,
    }
    LeaseGranted {
        #[prost(int64, tag = "2")] id: i64,
    }
    LeaseKeepAlive {
        #[prost(int64, tag = "1")] id: i64,
    }
    LeaseKept {
        #[prost(int64, tag = "3")] ttl_s: i64,
    }
    LeaseRevoke {
        #[prost(int64, tag = "1")] id: i64,
    }
    Empty {}
    Authenticate {
        #[prost(string, tag = "1")] name: String,
        #[prost(string, tag = "2")] password: String,
    }
    Authenticated {
        #[prost(string, tag = "2")] token: String,
    }
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum OpKind {
    #[prost(message, tag = "2")]
    Put(PutRequest),
    #[prost(message, tag = "3")]
    Delete(DeleteRequest),
}

impl Compare {
    const EQUAL: i32 = 0;
    const LESS: i32 = 2;
    const MOD: i32 = 2;

    /// This key has been changed last at `revision`; 0: it is not there.
    pub(crate) fn unchanged(key: Vec<u8>, revision: i64) -> Compare {
        let (result, target) = (Compare::EQUAL, Compare::MOD);
        Compare { result, target, key, mod_revision: Some(revision), range_end: Vec::new() }
    }

    /// No key that is there under this prefix has been changed after `revision`.
    pub(crate) fn quiet(prefix: Vec<u8>, revision: i64) -> Compare {
        let (result, target, range_end) = (Compare::LESS, Compare::MOD, end_of(&prefix));
        Compare { result, target, key: prefix, mod_revision: Some(revision + 1), range_end }
    }
}

impl Op {
    pub(crate) fn put(key: Vec<u8>, value: Vec<u8>, lease: i64) -> Op {
        Op { kind: Some(OpKind::Put(PutRequest { key, value, lease })) }
    }

    pub(crate) fn delete(key: Vec<u8>) -> Op {
        Op { kind: Some(OpKind::Delete(DeleteRequest { key, range_end: Vec::new() })) }
    }

    pub(crate) fn delete_all(prefix: Vec<u8>) -> Op {
        let range_end = end_of(&prefix);
        Op { kind: Some(OpKind::Delete(DeleteRequest { key: prefix, range_end })) }
    }
}

/// The first key after all that begin with `prefix`.
pub(crate) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// How to reach etcd.
#[derive(Clone, Default)]
pub struct EtcdOptions {
    /// URLs, `http://host:2379` or `https://host:2379`; the first that answers is used, the others when it fails.
    pub endpoints: Vec<String>,
    /// User and password, if etcd's authentication is on.
    pub login: Option<(String, String)>,
    /// PEM of the authorities that etcd's certificate must come from; for https endpoints.
    pub ca: Option<Vec<u8>>,
    /// PEM of our own certificate and key, if etcd asks for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.login.as_ref().map(|(user, _)| (user, "***"));
        f.debug_struct("EtcdOptions").field("endpoints", &self.endpoints).field("login", &user).finish_non_exhaustive()
    }
}

/// A client of all endpoints.
pub(crate) struct Etcd {
    channels: Vec<(String, Channel)>,
    /// Which one is asked.
    current: AtomicUsize,
    login: Option<(String, String)>,
    token: Mutex<Option<AsciiMetadataValue>>,
    stats: ClusterStats,
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send + 'a>>;
type Codec<Q, A> = tonic_prost::ProstCodec<Q, A>;

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const KEEP: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";

impl Etcd {
    /// Checks the options; connects when it is first asked something. Needs a runtime.
    pub(crate) fn new(options: &EtcdOptions) -> Result<Etcd, String> {
        let channel = |url: &String| {
            let mut endpoint = Endpoint::from_shared(url.clone()).map_err(|e| format!("{url}: {e}"))?;
            if url.starts_with("https:") {
                let mut tls = ClientTlsConfig::new();
                if let Some(ca) = &options.ca {
                    tls = tls.ca_certificate(Certificate::from_pem(ca));
                }
                if let Some((cert, key)) = &options.identity {
                    tls = tls.identity(Identity::from_pem(cert, key));
                }
                endpoint = endpoint.tls_config(tls).map_err(|e| format!("{url}: {e}"))?;
            }
            let endpoint = endpoint
                .connect_timeout(CONNECT_TIME_MAX)
                .http2_keep_alive_interval(CALL_TIME_MAX)
                .keep_alive_timeout(CALL_TIME_MAX)
                .keep_alive_while_idle(true);
            Ok((url.clone(), endpoint.connect_lazy()))
        };
        let channels = options.endpoints.iter().map(channel).collect::<Result<Vec<_>, String>>()?;
        if channels.is_empty() {
            return Err("no endpoints".into());
        }
        Ok(Etcd {
            channels,
            current: AtomicUsize::new(0),
            login: options.login.clone(),
            token: Mutex::default(),
            stats: ClusterStats::default(),
        })
    }

    /// How we get on with it.
    pub(crate) fn stats(&self) -> &ClusterStats {
        &self.stats
    }

    /// Every key under `prefix` as of one revision.
    pub(crate) async fn all(&self, prefix: &[u8]) -> Result<(i64, Vec<KeyValue>), Status> {
        let (mut kvs, mut from, mut revision) = (Vec::new(), prefix.to_vec(), 0);
        loop {
            let request = RangeRequest { key: from, range_end: end_of(prefix), limit: PAGE_LEN, revision };
            let page: RangeResponse = self.call(RANGE, request).await?;
            if revision == 0 {
                revision = page.header.map_or(0, |h| h.revision);
            }
            kvs.extend(page.kvs);
            match kvs.last() {
                // The next key after the last one of this page.
                Some(last) if page.more => from = [&last.key[..], &[0]].concat(),
                _ => return Ok((revision, kvs)),
            }
        }
    }

    /// Carries out a transaction. After an error it may or may not have been carried out.
    pub(crate) async fn txn(&self, txn: Txn) -> Result<TxnResponse, Status> {
        self.call(TXN, txn).await
    }

    /// A lease of this many seconds.
    pub(crate) async fn grant(&self, ttl_s: i64) -> Result<i64, Status> {
        self.call(GRANT, LeaseGrant { ttl_s }).await.map(|granted: LeaseGranted| granted.id)
    }

    /// Renews a lease; the seconds it has from now, 0 if it is gone.
    pub(crate) async fn keep(&self, id: i64) -> Result<i64, Status> {
        let keep = move |channel| async move {
            let mut grpc = Grpc::new(channel);
            grpc.ready().await.map_err(unavailable)?;
            let request = self.request(tokio_stream::once(LeaseKeepAlive { id }));
            let codec = Codec::<LeaseKeepAlive, LeaseKept>::default();
            let mut answers = grpc.streaming(request, PathAndQuery::from_static(KEEP), codec).await?.into_inner();
            answers.message().await?.map(|kept| kept.ttl_s).ok_or_else(|| Status::unavailable("no answer"))
        };
        self.each(|channel| Box::pin(keep(channel))).await
    }

    /// Gives a lease up, and what hangs on it.
    pub(crate) async fn revoke(&self, id: i64) -> Result<(), Status> {
        self.call(REVOKE, LeaseRevoke { id }).await.map(|_: Empty| ())
    }

    /// Everything under `prefix` from `revision` on. The stream ends with an error when its server has lost the leader.
    /// The sender keeps it open.
    pub(crate) async fn watch(
        &self,
        prefix: &[u8],
        revision: i64,
    ) -> Result<(tokio::sync::mpsc::Sender<WatchRequest>, Streaming<WatchResponse>), Status> {
        let create = WatchCreate { key: prefix.to_vec(), range_end: end_of(prefix), start_revision: revision };
        self.each(|channel| {
            let create = create.clone();
            Box::pin(async move {
                let mut grpc = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
                grpc.ready().await.map_err(unavailable)?;
                let (sender, receiver) = tokio::sync::mpsc::channel(1);
                let requests = tokio_stream::StreamExt::chain(
                    tokio_stream::once(WatchRequest { create: Some(create.clone()) }),
                    Requests(receiver),
                );
                let mut request = self.request(requests);
                request.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
                let codec = Codec::<WatchRequest, WatchResponse>::default();
                let answers = grpc.streaming(request, PathAndQuery::from_static(WATCH), codec).await?;
                Ok((sender, answers.into_inner()))
            })
        })
        .await
    }

    /// The endpoint in use failed in a way that only its user can see: try the next one.
    pub(crate) fn leave(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    async fn call<Q, A>(&self, path: &'static str, question: Q) -> Result<A, Status>
    where
        Q: prost::Message + Default + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let start = Instant::now();
        let answer = self.each(|channel| Box::pin(self.ask(channel, path, question.clone()))).await;
        self.stats.on_call(answer.is_ok(), start.elapsed());
        answer
    }

    async fn ask<Q, A>(&self, channel: Channel, path: &'static str, question: Q) -> Result<A, Status>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        grpc.ready().await.map_err(unavailable)?;
        let codec = Codec::<Q, A>::default();
        grpc.unary(self.request(question), PathAndQuery::from_static(path), codec)
            .await
            .map(tonic::Response::into_inner)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &*self.token.lock().unwrap_or_else(PoisonError::into_inner) {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    /// Does it with the endpoint in use, and if that fails, with each of the others.
    async fn each<'a, T>(&'a self, attempt: impl Fn(Channel) -> Answer<'a, T> + Send) -> Result<T, Status> {
        let mut last = Status::unavailable("no endpoint");
        for _ in 0..=self.channels.len() {
            let at = self.current.load(Ordering::Relaxed);
            let (url, channel) = &self.channels[at % self.channels.len()];
            let attempt = async {
                if self.login.is_some() && self.token.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
                    self.log_in(channel.clone()).await?;
                }
                attempt(channel.clone()).await
            };
            let result = tokio::time::timeout(CALL_TIME_MAX, attempt).await;
            match result.unwrap_or_else(|_elapsed| Err(Status::deadline_exceeded("no answer in time"))) {
                Ok(value) => return Ok(value),
                Err(status) if is_token(&status) && self.login.is_some() => {
                    *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    last = status;
                }
                Err(status) if is_elsewhere(&status) => {
                    tracing::debug!(%url, %status, "etcd endpoint failed");
                    let next = at.wrapping_add(1);
                    // Whoever else has moved on already has chosen.
                    let _moved = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
                    last = status;
                }
                Err(status) => return Err(status),
            }
        }
        Err(last)
    }

    async fn log_in(&self, channel: Channel) -> Result<(), Status> {
        let Some((name, password)) = self.login.clone() else { return Ok(()) };
        let answer: Authenticated = self.ask(channel, AUTHENTICATE, Authenticate { name, password }).await?;
        let token = AsciiMetadataValue::try_from(answer.token).map_err(|e| Status::internal(e.to_string()))?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }
}

/// Further requests of a watch: none are ever sent, but their end would end the watch.
struct Requests(tokio::sync::mpsc::Receiver<WatchRequest>);

impl tokio_stream::Stream for Requests {
    type Item = WatchRequest;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<WatchRequest>> {
        self.0.poll_recv(cx)
    }
}

fn unavailable(error: tonic::transport::Error) -> Status {
    Status::unavailable(error.to_string())
}

/// Whether another endpoint may do better.
fn is_elsewhere(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal
    )
}

fn is_token(status: &Status) -> bool {
    status.code() == Code::Unauthenticated || status.message().contains("invalid auth token")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A range ends right after its prefix: table.
    #[test]
    fn ranges() {
        for (prefix, end) in
            [(&b"/a/"[..], &b"/a0"[..]), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"s\0", b"s\x01"), (b"", b"\0")]
        {
            assert_eq!(end_of(prefix), end, "{prefix:?}");
        }
    }

    /// A password is nobody's to read.
    #[test]
    fn secrets_stay_secret() {
        let options = EtcdOptions { login: Some(("root".into(), "hush".into())), ..EtcdOptions::default() };
        assert!(!format!("{options:?}").contains("hush"));
    }
}

//! Reads a running Nacos (or whatever speaks its v1 API: r-nacos, another ringspan) for an import: namespaces, services with
//! their settings and checkers, persistent instances. Only reads.
//! Promise: a server that lies, breaks off or sends too much is an error; the password goes nowhere but to the login.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use ringspan_registry::checker;
use ringspan_registry::model::{Cluster, Instance, InstanceId, Metadata, ServiceKey, ServiceMeta, cluster_name};
use ringspan_registry::selector::service::ServiceSelector;
use ringspan_registry::transfer::Moved;
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;
use url::Url;
use url::form_urlencoded::Serializer;

/// A page of services or instances.
const PAGE: usize = 500;
/// Longest answer: a page of instances with all the metadata they may have.
const ANSWER_BYTES_MAX: usize = 16 << 20;
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// More pages than a million services have: a server that never ends is left.
const PAGES_MAX: usize = 10_000;

/// Everything that would outlive the server there.
pub(super) fn read(base: &str, login: Option<(String, String)>) -> Result<Vec<Moved>, String> {
    let url = Url::parse(base).map_err(|e| format!("--from-nacos {base}: {e}. Try: http://127.0.0.1:8848/nacos"))?;
    let (Some(host), "http") = (url.host_str(), url.scheme()) else {
        return Err(format!("--from-nacos {base}: only http:// is spoken. Try: http://127.0.0.1:8848/nacos"));
    };
    let authority = format!("{host}:{}", url.port_or_known_default().unwrap_or(8848));
    let mut nacos = Nacos { authority, base: url.path().trim_end_matches('/').to_owned(), token: None };
    let runtime = crate::machine::runtime().map_err(|e| e.to_string())?;
    runtime.block_on(nacos.all(login))
}

struct Nacos {
    authority: String,
    base: String,
    token: Option<String>,
}

impl Nacos {
    async fn all(&mut self, login: Option<(String, String)>) -> Result<Vec<Moved>, String> {
        if let Some((user, password)) = login {
            let fields = [("username", &*user), ("password", &*password)];
            let answer = self.call(Method::POST, "/v1/auth/login", &fields).await?;
            let token = answer["accessToken"].as_str().ok_or("the login gave no accessToken")?;
            self.token = Some(token.to_owned());
        }
        let mut all = Vec::new();
        for namespace in self.namespaces().await? {
            for (group, name) in self.services(&namespace).await? {
                all.push(self.service(&namespace, &group, &name).await?);
            }
        }
        Ok(all)
    }

    async fn namespaces(&self) -> Result<Vec<String>, String> {
        let answer = self.get("/v1/console/namespaces", &[]).await?;
        let list = answer["data"].as_array().ok_or("the list of namespaces is none")?;
        let name = |entry: &Value| entry["namespace"].as_str().map(str::to_owned);
        let mut names: Vec<String> = list.iter().filter_map(name).collect();
        // The public one has no name there, or that of its own.
        names.retain(|n| !n.is_empty() && n != "public");
        names.insert(0, String::new());
        Ok(names)
    }

    async fn services(&self, namespace: &str) -> Result<Vec<(String, String)>, String> {
        let all = self.pages("/v1/ns/catalog/services", "serviceList", &[("namespaceId", namespace)]).await?;
        let read = |entry: &Value| Some((entry["groupName"].as_str()?.to_owned(), entry["name"].as_str()?.to_owned()));
        all.iter().map(|entry| read(entry).ok_or_else(|| format!("no service: {entry}"))).collect()
    }

    async fn service(&self, namespace: &str, group: &str, name: &str) -> Result<Moved, String> {
        let service = ServiceKey::new(namespace, group, name).map_err(|e| format!("{group}@@{name}: {e}"))?;
        let wrong = |what: String| format!("{service}: {what}");
        let full = service.grouped();
        let fields = [("namespaceId", namespace), ("serviceName", &*full)];
        let detail = self.get("/v1/ns/catalog/service", &fields).await?;
        let selector = match &detail["service"]["selector"] {
            Value::Null => ServiceSelector::None,
            said => ServiceSelector::read(&said.to_string()).map_err(|e| wrong(e.to_string()))?,
        };
        let mut meta = ServiceMeta {
            protect_threshold: detail["service"]["protectThreshold"].as_f64().unwrap_or_default(),
            metadata: metadata(&detail["service"]["metadata"]),
            selector,
            ..ServiceMeta::default()
        };
        let mut instances = Vec::new();
        for cluster in detail["clusters"].as_array().into_iter().flatten() {
            let Some(cluster_said) = cluster["name"].as_str() else { continue };
            let port = match cluster["useIpPort4Check"].as_bool().or(cluster["useInstancePortForCheck"].as_bool()) {
                Some(false) => cluster["defaultCheckPort"].as_u64().or(cluster["healthyCheckPort"].as_u64()),
                _ => None,
            };
            let port = port.and_then(|port| u16::try_from(port).ok());
            let checker = match &cluster["healthChecker"] {
                Value::Null => checker::Checker::default(),
                said => checker::read(&said.to_string(), port).map_err(|e| wrong(e.to_string()))?,
            };
            let settings = Cluster { checker, metadata: metadata(&cluster["metadata"]) };
            if settings != Cluster::default() {
                let name = cluster_name(cluster_said).map_err(|e| wrong(e.to_string()))?;
                meta.clusters.insert(name, settings);
            }
            let fields = [("namespaceId", namespace), ("serviceName", &*full), ("clusterName", cluster_said)];
            for host in self.pages("/v1/ns/catalog/instances", "list", &fields).await? {
                if host["ephemeral"].as_bool() != Some(false) {
                    continue;
                }
                instances.push(instance(cluster_said, &host).map_err(wrong)?);
            }
        }
        meta.check().map_err(|e| wrong(e.to_string()))?;
        Ok(Moved { settings: (meta != ServiceMeta::default()).then_some(meta), service, instances })
    }

    /// All entries of a list that comes in pages.
    async fn pages(&self, path: &str, list: &str, fields: &[(&str, &str)]) -> Result<Vec<Value>, String> {
        let (mut all, size) = (Vec::new(), PAGE.to_string());
        for page in 1..=PAGES_MAX {
            let number = page.to_string();
            let mut fields = fields.to_vec();
            fields.extend([("pageNo", &*number), ("pageSize", &*size)]);
            let answer = self.get(path, &fields).await?;
            let entries = answer[list].as_array().ok_or_else(|| format!("{path}: there is no {list}"))?;
            all.extend(entries.iter().cloned());
            let count = answer["count"].as_u64().unwrap_or_default();
            if entries.len() < PAGE || all.len() as u64 >= count {
                return Ok(all);
            }
        }
        Err(format!("{path}: more than {PAGES_MAX} pages"))
    }

    async fn get(&self, path: &str, fields: &[(&str, &str)]) -> Result<Value, String> {
        self.call(Method::GET, path, fields).await
    }

    async fn call(&self, method: Method, path: &str, fields: &[(&str, &str)]) -> Result<Value, String> {
        let call = self.try_call(method, path, fields);
        match tokio::time::timeout(ANSWER_TIME_MAX, call).await {
            Ok(answer) => answer.map_err(|e| format!("http://{}{}{path}: {e}", self.authority, self.base)),
            Err(_elapsed) => Err(format!("http://{}{}{path}: no answer in time", self.authority, self.base)),
        }
    }

    async fn try_call(&self, method: Method, path: &str, fields: &[(&str, &str)]) -> Result<Value, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let mut query = Serializer::new(String::new());
        query.extend_pairs(fields);
        if let Some(token) = &self.token {
            query.append_pair("accessToken", token);
        }
        let stream = TcpStream::connect(&self.authority).await.map_err(|e| text(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| text(&e))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}?{}", self.base, query.finish()))
            .header("Host", &self.authority)
            .header("User-Agent", "ringspan")
            .body(Empty::<Bytes>::new())
            .map_err(|e| text(&e))?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|e| text(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|e| text(&e))?.to_bytes();
        if status != StatusCode::OK {
            let said: String = String::from_utf8_lossy(&body).chars().take(200).collect();
            let hint = match status {
                StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => ". Try: --user and --password",
                StatusCode::NOT_FOUND | StatusCode::GONE => {
                    ". Does it speak Nacos' v1 API? (Nacos 3: compatibility mode)"
                }
                _ => "",
            };
            return Err(format!("{status}: {said}{hint}"));
        }
        serde_json::from_slice(&body).map_err(|e| text(&e))
    }
}

fn metadata(value: &Value) -> Metadata {
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn instance(cluster: &str, host: &Value) -> Result<Instance, String> {
    let port = host["port"].as_u64().and_then(|p| u16::try_from(p).ok()).ok_or_else(|| format!("no port: {host}"))?;
    let ip = host["ip"].as_str().ok_or_else(|| format!("no ip: {host}"))?;
    let id = InstanceId::new(cluster, ip, port).map_err(|e| e.to_string())?;
    let instance = Instance {
        weight: host["weight"].as_f64().unwrap_or(1.0),
        enabled: host["enabled"].as_bool().unwrap_or(true),
        // `healthy` is what that server has found, not what the instance says of itself: ours finds out by itself.
        metadata: metadata(&host["metadata"]),
        ..Instance::new(id)
    };
    instance.check().map_err(|e| e.to_string())?;
    Ok(instance)
}

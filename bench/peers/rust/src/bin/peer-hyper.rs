//! An HTTP prober with tokio and hyper.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use peers::{ANSWER_MAX, TIMEOUT, Task};
use std::cell::Cell;
use std::error::Error;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::net::TcpStream;
use tokio::task::LocalSet;

async fn probe(address: SocketAddr, path: &str) -> Result<bool, Box<dyn Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Limited::new(response.into_body(), ANSWER_MAX).collect().await?;
        Ok(status == StatusCode::OK)
    };
    // The connection is driven here, not in a task of its own: one task less to make and to wake.
    let (result, _) = tokio::join!(exchange, connection);
    result
}

fn main() {
    let task = Rc::new(Task::read());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (next, up) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let workers = LocalSet::new();
    for _ in 0..task.in_flight {
        let (task, next, up) = (task.clone(), next.clone(), up.clone());
        workers.spawn_local(async move {
            while next.get() < task.count {
                let target = task.targets[next.get() % task.targets.len()];
                next.set(next.get() + 1);
                let well = matches!(tokio::time::timeout(TIMEOUT, probe(target, &task.path)).await, Ok(Ok(true)));
                up.set(up.get() + usize::from(well));
            }
        });
    }
    runtime.block_on(workers);
    task.finish(up.get());
}

//! An HTTP prober with tokio-uring.

use peers::{ANSWER_MAX, TIMEOUT, Task};
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

async fn probe(address: SocketAddr, request: Vec<u8>) -> io::Result<bool> {
    let stream = TcpStream::connect(address).await?;
    stream.write_all(request).await.0?;
    let mut heard = Vec::with_capacity(ANSWER_MAX);
    loop {
        let from = heard.len();
        if from == heard.capacity() {
            return Err(io::Error::other("the answer is too long"));
        }
        let (read, slice) = stream.read(heard.slice(from..)).await;
        heard = slice.into_inner();
        let ended = read? == 0;
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        if let httparse::Status::Complete(head) = response.parse(&heard).map_err(io::Error::other)? {
            let length = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
            let length = length.and_then(|h| std::str::from_utf8(h.value).ok()?.trim().parse::<usize>().ok());
            if ended || length.is_some_and(|length| heard.len() >= head + length) {
                return Ok(response.code == Some(200));
            }
        }
        if ended {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn main() {
    let task = Rc::new(Task::read());
    let request = |address| format!("GET {} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n", task.path);
    let (next, up) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let mut builder = tokio_uring::builder();
    // The default of 256 entries would make it enter the kernel more often than it need.
    builder.entries(1024);
    builder.start(async {
        let requests: Rc<Vec<Vec<u8>>> = Rc::new(task.targets.iter().map(|a| request(*a).into_bytes()).collect());
        let workers = (0..task.in_flight).map(|_| {
            let (task, requests, next, up) = (task.clone(), requests.clone(), next.clone(), up.clone());
            tokio_uring::spawn(async move {
                while next.get() < task.count {
                    let target = next.get() % task.targets.len();
                    next.set(next.get() + 1);
                    let probe = probe(task.targets[target], requests[target].clone());
                    let well = matches!(tokio::time::timeout(TIMEOUT, probe).await, Ok(Ok(true)));
                    up.set(up.get() + usize::from(well));
                }
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.expect("a worker does not panic");
        }
    });
    task.finish(up.get());
}

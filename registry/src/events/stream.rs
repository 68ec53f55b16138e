//! Events as server-sent events (HTML Living Standard, 9.2): `GET /api/v1/events`.
//! Promise: a reader gets each event of what it asked for once and in order, or `missed` where some are lost; one that does
//! not read holds a connection and nothing else.

use super::{Events, Filter, News, Reader};
use axum::response::sse::{Event as Sse, KeepAlive, Sse as Answer};
use futures_core::Stream;
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// Read from the ring in one go.
const BATCH: usize = 256;
/// Written ahead of a reader: more would only hide that it is slow.
const AHEAD: usize = 64;
/// A comment goes out after so long without an event, so that proxies and dead readers are noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What is written, as it comes.
pub(crate) struct Written(mpsc::Receiver<Sse>);

impl Stream for Written {
    type Item = Result<Sse, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|next| next.map(Ok))
    }
}

/// What a reader is told in the place of what is lost.
#[derive(Serialize)]
struct Missed {
    /// How many events there were, of every kind and service; `None`: nobody knows.
    missed: Option<u64>,
    why: &'static str,
}

/// Tells of what happens from now on, or from behind `last`, the id of the last event that the reader has.
pub(crate) fn stream(
    events: &Events,
    filter: Filter,
    last: Option<&str>,
) -> Answer<impl Stream<Item = Result<Sse, Infallible>> + use<>> {
    let (ahead, written) = mpsc::channel(AHEAD);
    // It has its place before its answer begins: who has the answer misses nothing.
    let reader = Reader::new(events);
    tokio::spawn(write(events.clone(), reader, filter, last.map(str::to_owned), ahead));
    Answer::new(Written(written)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

/// `None`: the reader is gone.
async fn tell(ahead: &mpsc::Sender<Sse>, event: &str, id: String, data: &impl Serialize) -> Option<()> {
    let data = serde_json::to_string(data).expect("strings and numbers are JSON");
    ahead.send(Sse::default().event(event).id(id).data(data)).await.ok()
}

async fn write(
    events: Events,
    mut reader: Reader,
    filter: Filter,
    last: Option<String>,
    ahead: mpsc::Sender<Sse>,
) -> Option<()> {
    if let Some(last) = last {
        match events.read_id(&last) {
            Some(number) => reader.go_back(number),
            None => {
                let why = "the id is of another run of this server, or of another server: look anew";
                tell(&ahead, "missed", events.id(reader.at()), &Missed { missed: None, why }).await?;
            }
        }
    }
    loop {
        let news = tokio::select! {
            news = reader.next(BATCH) => news?,
            () = ahead.closed() => return None,
        };
        match news {
            News::Events(batch) => {
                for event in batch.iter().filter(|event| filter.takes(event)) {
                    tell(&ahead, event.event, events.id(event.number), event).await?;
                }
            }
            News::Missed(missed) => {
                let why = "more happened than is kept while you did not read: look anew";
                tell(&ahead, "missed", events.id(reader.at()), &Missed { missed: Some(missed), why }).await?;
            }
        }
    }
}

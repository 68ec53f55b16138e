//! Events as server-sent events (HTML Living Standard, 9.2): `GET /api/v1/events`.
//! Promise: a reader gets each event of what it asked for once and in order, or `reset` where some are lost; one that does
//! not read holds a connection and nothing else, and is let go when it is too far behind.

use super::{Event, Events, Next};
use axum::response::sse::{Event as Sse, KeepAlive, Sse as Answer};
use futures_core::Stream;
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

/// What a reader asked for; empty: all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) namespace: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) service: Option<String>,
}

impl Filter {
    /// Whether the reader wants to hear of it. Agents' comings and goings are everybody's.
    pub(super) fn takes(&self, event: &Event) -> bool {
        let Some(place) = &event.place else { return self.service.is_none() };
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|w| w == found);
        is(&self.namespace, &place.namespace) && is(&self.group, &place.group) && is(&self.service, &place.service)
    }
}

/// What is written, as it comes.
pub(crate) struct Written(mpsc::Receiver<Sse>);

impl Stream for Written {
    type Item = Result<Sse, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|next| next.map(Ok))
    }
}

/// Tells of what happens from now on, or from behind `last`, the id of the last event that the reader has.
pub(crate) fn stream(
    events: &Events,
    filter: Filter,
    last: Option<&str>,
) -> Answer<impl Stream<Item = Result<Sse, Infallible>> + use<>> {
    let (ahead, written) = mpsc::channel(AHEAD);
    tokio::spawn(write(events.clone(), filter, last.map(str::to_owned), ahead));
    Answer::new(Written(written)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

async fn write(events: Events, filter: Filter, last: Option<String>, ahead: mpsc::Sender<Sse>) {
    let mut news = events.inner.latest.subscribe();
    let run = events.inner.run;
    let id = |number: u64| format!("{run}-{number}");
    let reset =
        |number| Sse::default().event("reset").id(id(number)).data("{\"why\":\"events are missing: look anew\"}");
    let mut at = match &last {
        None => events.latest(),
        Some(last) => match last.split_once('-').map(|(r, n)| (r.parse() == Ok(run), n.parse::<u64>())) {
            Some((true, Ok(number))) => number,
            // Of another run, or nothing we ever said.
            _ => {
                let latest = events.latest();
                if ahead.send(reset(latest)).await.is_err() {
                    return;
                }
                latest
            }
        },
    };
    loop {
        match events.after(at, BATCH) {
            Next::Events(batch) if batch.is_empty() => {
                if *news.borrow_and_update() == u64::MAX {
                    return;
                }
                tokio::select! {
                    changed = news.changed() => if changed.is_err() { return },
                    () = ahead.closed() => return,
                }
            }
            Next::Events(batch) => {
                for event in batch {
                    at = event.number;
                    if !filter.takes(&event) {
                        continue;
                    }
                    let data = serde_json::to_string(&*event).expect("strings and numbers are JSON");
                    let told = Sse::default().event(event.event).id(id(at)).data(data);
                    if ahead.send(told).await.is_err() {
                        return;
                    }
                }
            }
            Next::Lost => {
                at = events.latest();
                if ahead.send(reset(at)).await.is_err() {
                    return;
                }
            }
        }
    }
}

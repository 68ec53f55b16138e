//! Our own API, `/api/v1`: the truth, with nothing made up for anybody's sake. JSON, snake_case, times in Unix milliseconds.
//! Promise: what is served is what the OpenAPI document says, because both are made of one list of [`Operation`]s; every
//! refusal is a problem (RFC 9457) that says what would be right.
//!
//! ```text
//! operations ─┬─► router: path, method, handler        request ─► asked (strict) ─► Command ─► Registry
//!             └─► document: the same, in words                    seen ◄── snapshot
//! ```

mod asked;
mod document;
mod instances;
mod operation;
mod overview;
mod problem;
mod seen;
mod services;
mod settings;
mod tag;
#[cfg(test)]
mod tests;

pub(super) use asked::ALL;
pub use overview::{AgentLink, AgentLinks};
pub(super) use problem::{is_ours, refusal_as_problem};

use super::App;
use axum::Router;
use operation::Operation;
use problem::Problem;
use tokio::sync::Semaphore;

/// Instances that the answer about one service or one agent holds; lists have pages for the rest.
const INSTANCES_SHOWN: usize = 1_000;
/// Requests that go through everything at a time: each takes a core for up to a tenth of a second when a million instances
/// are there.
const SCANS_MAX: usize = 2;
static SCANS: Semaphore = Semaphore::const_new(SCANS_MAX);

/// All of them. The router and the document are made of this.
fn operations() -> Vec<Operation> {
    [overview::operations(), services::operations(), instances::operations()].into_iter().flatten().collect()
}

pub(super) fn routes() -> Router<App> {
    operations().into_iter().fold(Router::new(), |router, o| router.route(o.path, o.handler))
}

/// Does what may take a while away from the threads that serve everybody; whoever comes when enough are at it waits.
async fn scan<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let place = SCANS.acquire().await.expect("never closed");
    let work = move || {
        // Held until it is done, also if whoever asked has gone.
        let _place = place;
        work()
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Problem::new("internal", format!("the answer could not be made: {e}")))
}

//! The tunnel's series of /metrics: the bridge's counters and gauges under their own names.
//! Promise: as many series as there are counters and reasons, whatever agents and visitors do.

use crate::doors::http::HttpStats;
use crate::doors::tally::Tally;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use ringspan_registry::http::MoreSeries;
use ringspan_tunnel::bridge::BridgeHandle;
use ringspan_tunnel::frame::Reason;
use ringspan_tunnel::stats::Stats;
use std::fmt;
use std::sync::Arc;

/// Asked at each scrape.
pub(super) fn of(
    handle: BridgeHandle,
    doors: Arc<Tally>,
    http: HttpStats,
    dns: Option<Arc<ringspan_registry::dns::Stats>>,
) -> MoreSeries {
    Arc::new(move |mut encoder| {
        http.write(&mut encoder)?;
        if let Some(dns) = &dns {
            dns.write(&mut encoder)?;
        }
        write(encoder, &handle.stats(), &doors)
    })
}

fn write(mut encoder: DescriptorEncoder<'_>, stats: &Stats, doors: &Tally) -> fmt::Result {
    let gauges = [
        ("tunnel_carriers", "Connections of agents that are up", stats.carriers_up),
        ("tunnel_handshakes_open", "Connections of agents in their handshake", stats.handshakes_open),
        ("tunnel_streams", "Visitors that are being carried", stats.streams_open),
        ("tunnel_held_bytes", "Bytes that wait for a slow receiver, in memory or in pipes", stats.bytes_held),
        ("tunnel_pipes", "Pipes that exist", stats.pipes),
        ("tunnel_direct_waiting", "Direct carriers that wait for a stream", stats.direct_spare),
        ("tunnel_direct_streams", "Direct carriers with a stream", stats.direct_open),
    ];
    for (name, help, value) in gauges {
        let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value as f64).encode(family)?;
    }
    let counters = [
        ("tunnel_streams_opened", "Visitors that got a stream", stats.streams_total),
        ("tunnel_to_agents_bytes", "Bytes from visitors into links", stats.bytes_to_link),
        ("tunnel_from_agents_bytes", "Bytes from links to visitors", stats.bytes_from_link),
        ("tunnel_spliced_bytes", "Of both, bytes that were not copied through this process", stats.bytes_spliced),
        ("tunnel_spilled_bytes", "Bytes that had to wait in memory", stats.bytes_spilled),
        ("tunnel_streams_moved", "Streams that left the mux for a direct carrier", stats.streams_moved),
        ("tunnel_bulk_rests", "Turns whose bulk rested after them, for small messages", stats.bulk_rests),
        ("tunnel_direct_missed", "Streams that found no direct carrier waiting", stats.direct_missed),
        (
            "tunnel_ktls_carriers",
            "Connections of agents, so far, whose TLS records the kernel makes",
            stats.carriers_ktls,
        ),
        ("tunnel_link_reads", "System calls that read from links", stats.link_reads),
        ("tunnel_link_writes", "System calls that wrote to links", stats.link_writes),
        ("tunnel_handovers", "Visitors handed to another worker", stats.handovers),
        ("tunnel_visitors_refused", "Visitors reset without a stream", stats.visitors_refused),
        (
            "tunnel_visitors_retried",
            "Times a visitor whose backend was not reached was sent to another",
            stats.visitors_retried,
        ),
        (
            "tunnel_ejections",
            "Times a backend that visitors could not reach was given none for a while",
            stats.ejections,
        ),
        ("tunnel_handshakes_failed", "Connections to the link port that never came up", stats.handshakes_failed),
    ];
    for (name, help, value) in counters {
        let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(family)?;
    }
    for (name, help, value) in doors.series() {
        let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(family)?;
    }
    let help = "Streams and visitors that ended otherwise than by both sides' wish, by reason";
    let mut family = encoder.encode_descriptor("tunnel_ends", help, None, MetricType::Counter)?;
    for (reason, count) in Reason::ALL.iter().zip(stats.reasons) {
        ConstCounter::new(count).encode(family.encode_family(&[("reason", reason.as_str())])?)?;
    }
    Ok(())
}

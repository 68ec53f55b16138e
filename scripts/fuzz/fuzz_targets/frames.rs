//! A carrier whose peer says anything: headers, and in between what our own side does with its streams.
//! No panic; a header reads back as it was written; no stream gets more than it was granted, no frame is longer than
//! agreed, and what we owe the peer is bounded, whatever it asks for.
#![no_main]

use ringspan_engine::time::Instant;
use ringspan_tunnel::frame::{HEADER_BYTES, Header, Kind, Reason};
use ringspan_tunnel::memory::MemoryLimits;
use ringspan_tunnel::mux::{Input, Limits, Mux, OpenInfo, Output, Side};
use std::collections::HashMap;
use std::time::Duration;

/// Bytes of one step: what to do, and a header or its arguments.
const STEP_BYTES: usize = 1 + HEADER_BYTES;

/// What our side knows of a stream.
#[derive(Default)]
struct Known {
    /// Bytes that came and were not reported as delivered.
    held: u64,
    dead: bool,
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&first, steps)) = data.split_first() else { return };
    let side = if first & 1 == 0 { Side::Opener } else { Side::Accepter };
    let limits = Limits { streams_max: 1 + u16::from(first >> 1) % 8, ..Limits::default() };
    let mut mux = Mux::<u32>::new(side, limits);
    let mut known: HashMap<u32, Known> = HashMap::new();
    let mut ids: Vec<u32> = Vec::new();
    let mut now = Instant::from_ns(1);
    for step in steps.chunks_exact(STEP_BYTES) {
        let (what, bytes): (u8, &[u8; HEADER_BYTES]) = (step[0], step[1..].try_into().expect("sixteen bytes"));
        let some_id = || ids.get(usize::from(bytes[0]) % ids.len().max(1)).copied();
        let n = u32::from_le_bytes([bytes[1], bytes[2], bytes[3] & 7, 0]);
        now = now + Duration::from_micros(u64::from(bytes[4]));
        match what % 16 {
            // Half of the steps are the peer's: whole headers, and ones about streams that there are.
            0..=7 => {
                let mut header = *bytes;
                if what % 16 > 3 {
                    header[0] = 0x10 | (header[0] & 15);
                    if let Some(id) = some_id() {
                        header[4..8].copy_from_slice(&id.to_le_bytes());
                    }
                    header[10..12].fill(0);
                }
                let Ok(header) = Header::decode(&header) else { return };
                let again = Header::decode(&header.encode()).expect("what was written");
                assert_eq!(again, header);
                match mux.on_header(&header) {
                    // The carrier is over.
                    Err(violation) => return drop(violation.to_string()),
                    Ok(Input::Open { id, len, .. }) => {
                        assert!(side == Side::Accepter && len <= 64 << 10);
                        // Owners are named by the stream's number.
                        mux.adopt(id, id);
                        ids.push(id);
                        known.insert(id, Known::default());
                    }
                    Ok(Input::Data { id, owner, len, .. }) => {
                        assert_eq!(id, owner);
                        let stream = known.get_mut(&id).expect("a stream that we know");
                        assert!(!stream.dead, "bytes for nobody");
                        stream.held += u64::from(len);
                        let most = MemoryLimits::default().window_bytes_max;
                        assert!(stream.held <= u64::from(most), "{} bytes held for one stream", stream.held);
                    }
                    Ok(Input::Reset { owner, .. }) => known.get_mut(&owner).expect("a stream that we know").dead = true,
                    Ok(Input::Pong { cookie }) => mux.on_pong(cookie, now),
                    Ok(_) => {}
                }
            }
            8 if side == Side::Opener => {
                // The owner's name is the stream's number: known only afterwards, so guess it and look.
                if let Some(id) = mux.open_with(0, u16::from(bytes[0]), bytes[1] & 1 == 0, &OpenInfo::default()) {
                    mux.adopt(id, id);
                    ids.push(id);
                    known.insert(id, Known::default());
                }
            }
            9 => some_id().into_iter().for_each(|id| mux.source_ready(id)),
            10 => {
                if let Some(id) = some_id()
                    && let Some(stream) = known.get_mut(&id)
                {
                    let done = stream.held.min(u64::from(n));
                    stream.held -= done;
                    mux.delivered(id, done as u32, stream.held as usize, now);
                }
            }
            11 => {
                if let Some(id) = some_id() {
                    mux.reset(id, Reason::SocketReset);
                    known.get_mut(&id).expect("a stream that we know").dead = true;
                }
            }
            12 => mux.ping(now),
            13 => mux.set_frame_bytes(n),
            14 => some_id().into_iter().for_each(|id| mux.opened(id)),
            _ => {
                for _ in 0..4 {
                    match mux.next_output() {
                        None => break,
                        Some(Output::Control(header, payload)) => {
                            assert_eq!(header.len as usize, payload.len());
                            assert!(header.kind != Kind::Data || payload.is_empty());
                        }
                        Some(Output::Data { id, owner, len_max }) => {
                            assert_eq!(id, owner);
                            assert!(!known[&id].dead, "bytes asked of nobody");
                            assert!(len_max >= 1 && len_max <= limits.frame_bytes_max);
                            match bytes[5] & 3 {
                                0 => mux.dry(id),
                                1 => drop(mux.sent(id, n.clamp(1, len_max), false, true)),
                                2 => drop(mux.sent(id, n.min(len_max), true, false)),
                                _ => drop(mux.sent(id, len_max, false, false)),
                            }
                        }
                    }
                }
            }
        }
        assert!(side == Side::Accepter || mux.streams() <= usize::from(limits.streams_max));
    }
});

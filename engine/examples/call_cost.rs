//! What one HTTP call costs on an `Io`, beside the bare loop, in turns in one process: `call_cost COUNT IN_FLIGHT ROUNDS
//! [TIER] [PORT]`, against an HTTP server on 127.0.1.1 to 127.0.1.16 (port 7779 by default).

use ringspan_engine::io::{Completion, End, Event, Family, Io, Lane, LaneKind, Op, Way};
use ringspan_engine::kernel::{CpuOf, Tier, Waker, cpu_time, floor, open_tier, pin_thread};
use ringspan_engine::token::Token;
use std::net::SocketAddr;

const QUESTION: &[u8] = b"GET /health HTTP/1.1\r\nHost: floor\r\nConnection: close\r\n\r\n";

fn token(lane: Lane) -> Token {
    Token::new(1, 0, 0, lane.0)
}

/// Calls, hears and hangs up `count` times; how many were answered with a 200.
fn calls(io: &mut dyn Io, lanes: &[Lane], count: usize, targets: &[SocketAddr]) -> usize {
    let (mut started, mut done, mut up) = (0, 0, 0);
    let mut completions: Vec<Completion> = Vec::new();
    let mut free = lanes.to_vec();
    while done < count {
        for _ in 0..64 {
            let Some(lane) = (started < count).then(|| free.pop()).flatten() else { break };
            io.outgoing(lane).extend_from_slice(QUESTION);
            io.submit(token(lane), Op::Call { lane, to: targets[started % targets.len()] });
            started += 1;
        }
        io.wait(None, &mut completions);
        for completion in completions.drain(..) {
            let lane = Lane(completion.token.index());
            match completion.event {
                Event::Heard(result) => {
                    up += usize::from(result.is_ok() && io.heard(lane).starts_with(b"HTTP/1.1 200"));
                    io.submit(token(lane), Op::Hang { lane, end: End::Reset });
                }
                _ => {
                    done += 1;
                    free.push(lane);
                }
            }
        }
    }
    up
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: usize| args.get(place).map_or(default, |a| a.parse().expect("a number"));
    let (count, in_flight, rounds, port) = (number(0, 100_000), number(1, 512), number(2, 5), number(4, 7779));
    let best = args.get(3).map_or(Tier::Ring61, |name| {
        *Tier::ALL.iter().find(|tier| tier.as_str() == name).expect("epoll, ring-5.10, ring-5.15, ring-5.19, ring-6.1")
    });
    pin_thread(0).expect("core 0");
    let targets: Vec<SocketAddr> = (1..=16).map(|n| ([127, 0, 1, n], port as u16).into()).collect();
    let waker = Waker::new().expect("an eventfd");
    let (mut io, capabilities) = open_tier(best, &waker).expect("an Io");
    println!("{capabilities}");
    let kind = LaneKind { way: Way::Stream, family: Family::V4, source: None };
    let lanes: Vec<Lane> = io.open_lanes(kind, in_flight as u32).expect("lanes").map(Lane).collect();
    let mut ratios = Vec::new();
    for _ in 0..rounds {
        let cost = |run: &mut dyn FnMut() -> usize| {
            let (cpu, wall) = (cpu_time(CpuOf::Thread), std::time::Instant::now());
            let up = run();
            let cpu = (cpu_time(CpuOf::Thread) - cpu).as_secs_f64() / count as f64 * 1e6;
            (cpu, count as f64 / wall.elapsed().as_secs_f64(), up)
        };
        let ours = cost(&mut || calls(io.as_mut(), &lanes, count, &targets));
        let bare = cost(&mut || floor::HTTP_PROBES[0].1(count, in_flight, &targets).expect("the floor"));
        println!(
            "call {:.2} us, {:.0}/s, {} up; floor {:.2} us, {:.0}/s, {} up; ratio {:.3}",
            ours.0,
            ours.1,
            ours.2,
            bare.0,
            bare.1,
            bare.2,
            ours.0 / bare.0
        );
        ratios.push(ours.0 / bare.0);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.3}", ratios[ratios.len() / 2]);
}

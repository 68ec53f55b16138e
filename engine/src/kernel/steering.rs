//! Which sockets of a SO_REUSEPORT group get new connections: all of them, by a hash of the addresses, or some of them,
//! by a classic BPF program that draws one (socket(7), SO_ATTACH_REUSEPORT_CBPF; no privileges are needed).

use super::socket::{Socket, check, set_option};
use std::io;
use std::mem;

/// A load of what is no part of the packet: a random number (linux/filter.h, SKF_AD_OFF + SKF_AD_RANDOM).
const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;

/// Sockets that a group is steered to at most; a program has at most 4,096 instructions (BPF_MAXINSNS), two for each.
pub const STEERED_MAX: usize = 1024;

impl Socket {
    /// From now on each new connection to this socket's SO_REUSEPORT group goes to one of these sockets, drawn at random;
    /// a socket is named by its place in the group, which is the order in which they were made to listen, from 0
    /// ([`listen_group`](Socket::listen_group)). For the whole group, whichever of its sockets is asked, until the next
    /// word. A place that the group does not have counts as no word: the hash decides (net/core/sock_reuseport.c,
    /// reuseport_select_sock). None named: all sockets, by the hash, as at the start.
    ///
    /// # Errors
    /// `InvalidInput` for more than [`STEERED_MAX`]; EINVAL if the socket shares its address with no other
    /// (SO_REUSEPORT is not set); ENOENT if there is no word to take back.
    pub fn steer(&self, places: &[u16]) -> io::Result<()> {
        if places.is_empty() {
            return set_option(self.raw(), libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, 0i32);
        }
        if places.len() > STEERED_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {STEERED_MAX} sockets")));
        }
        let mut program = drawing(places);
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        let len = mem::size_of_val(&program) as libc::socklen_t;
        // SAFETY: pointer and length describe `program`, whose `filter` and `len` describe the instructions; both outlive
        // the call, which copies them.
        check(unsafe {
            libc::setsockopt(
                self.raw(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                (&raw const program).cast(),
                len,
            )
        })?;
        Ok(())
    }
}

/// Draws one of these.
fn drawing(places: &[u16]) -> Vec<libc::sock_filter> {
    let instruction = |code: u32, k: u32, (jt, jf): (u8, u8)| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = vec![
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, RANDOM, (0, 0)),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, places.len() as u32, (0, 0)),
    ];
    let (last, others) = places.split_last().expect("the caller has looked");
    for (n, place) in (0..).zip(others) {
        program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, n, (0, 1)));
        program.push(instruction(libc::BPF_RET | libc::BPF_K, u32::from(*place), (0, 0)));
    }
    program.push(instruction(libc::BPF_RET | libc::BPF_K, u32::from(*last), (0, 0)));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::handover::waiting_sockets;
    use std::net::TcpStream;

    /// Who of the group has got how many of 60 visitors.
    fn shares(group: &[Socket]) -> Vec<usize> {
        let address = group[0].local_addr().unwrap();
        let visitors: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(address).unwrap()).collect();
        let accepted = |socket: &Socket| (0..).map_while(|_| socket.accept_now().unwrap()).count();
        let shares = group.iter().map(accepted).collect();
        drop(visitors);
        shares
    }

    /// Each has its share, then only those that are named, then each again: of fair draws, an empty share is one in 10^10.
    #[test]
    fn only_who_is_named_is_given_any() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let group = match Socket::listen_group(&address.parse().unwrap(), 128, 3) {
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                    println!("SKIPPED {address}: {error}");
                    continue;
                }
                group => group.unwrap(),
            };
            assert!(shares(&group).iter().all(|share| *share > 0));
            group[2].steer(&[1]).unwrap();
            assert_eq!(shares(&group), [0, 60, 0], "{address}");
            group[0].steer(&[0, 2]).unwrap();
            let shared = shares(&group);
            assert!(shared[0] > 0 && shared[1] == 0 && shared[2] > 0, "{address}: {shared:?}");
            group[1].steer(&[]).unwrap();
            assert!(shares(&group).iter().all(|share| *share > 0), "{address}");
            assert_eq!(group[1].steer(&[]).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        }
    }

    /// Whoever is given the sockets by the process that bound them, in the order in which they are found, knows their places.
    #[test]
    fn places_are_known_after_a_handover() {
        let group = Socket::listen_group(&"127.0.0.1:0".parse().unwrap(), 128, 4).unwrap();
        let address = group[0].local_addr().unwrap();
        let found = waiting_sockets().unwrap().into_iter().filter(|waiting| waiting.address == address);
        let found: Vec<Socket> = found.map(|waiting| Socket::from_owned(waiting.fd)).collect();
        assert_eq!(found.len(), 4);
        for place in [2, 0, 3, 1] {
            found[0].steer(&[place]).unwrap();
            let mut wanted = [0; 4];
            wanted[usize::from(place)] = 60;
            assert_eq!(shares(&found), wanted);
        }
    }

    /// A place that nobody has is no reason to turn a visitor away.
    #[test]
    fn a_wrong_place_is_no_place() {
        let group = Socket::listen_group(&"127.0.0.1:0".parse().unwrap(), 128, 2).unwrap();
        group[0].steer(&[7]).unwrap();
        assert!(shares(&group).iter().all(|share| *share > 0));
        let alone = Socket::listen(&"127.0.0.1:0".parse().unwrap(), 128).unwrap();
        assert_eq!(alone.steer(&[0]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(alone.steer(&[0; STEERED_MAX + 1]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

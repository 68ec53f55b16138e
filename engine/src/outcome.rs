//! What can come of a probe: a code, the layer it speaks of, whose fault it is, and a sentence for people.
//! The words are HAProxy's (check-t.h) where it has one, so that an operator can guess them.

use crate::io::Errno;

/// Who is to blame for an outcome. Only `Target` may ever turn a target down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nobody: the probe succeeded.
    Nobody,
    /// The target, or the network on the way to it.
    Target,
    /// The prober itself: no port, no descriptor, no memory, too late. Never counts against a target.
    Prober,
}

macro_rules! codes {
    ($($name:ident $text:literal $layer:literal $fault:ident $sentence:literal)*) => {
        /// The outcome of one probe.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Code { $(#[doc = $sentence] $name),* }

        impl Code {
            /// Every code, in the table's order.
            pub const ALL: &[Code] = &[$(Code::$name),*];
            /// How many there are.
            pub const COUNT: usize = Code::ALL.len();
            /// The short name in logs, JSON and metrics.
            pub const fn as_str(self) -> &'static str { match self { $(Code::$name => $text),* } }
            /// The OSI layer it speaks of: 4, 6 or 7; 0 for the prober's own trouble.
            pub const fn layer(self) -> u8 { match self { $(Code::$name => $layer),* } }
            /// Whose fault it is.
            pub const fn fault(self) -> Fault { match self { $(Code::$name => Fault::$fault),* } }
            /// One sentence for people.
            pub const fn sentence(self) -> &'static str { match self { $(Code::$name => $sentence),* } }
        }
    };
}

codes! {
    L4Ok          "L4OK"    4 Nobody "The connection was made."
    L4Refused     "L4CON"   4 Target "The host answered that nothing listens on the port."
    L4Timeout     "L4TOUT"  4 Target "No answer within the timeout."
    L4Unreachable "L4UNR"   4 Target "The network says that the host cannot be reached."
    L4Reset       "L4RST"   4 Target "The connection was reset while it was being made."
    L6Ok          "L6OK"    6 Nobody "The TLS handshake went well."
    L6Timeout     "L6TOUT"  6 Target "The TLS handshake was not over within the timeout."
    L6Response    "L6RSP"   6 Target "The TLS handshake failed: an alert, a reset, or something that is not TLS."
    L6Certificate "L6CERT"  6 Target "The certificate was presented and not accepted."
    L7Ok          "L7OK"    7 Nobody "The application answered as expected."
    L7OkLogin     "L7OKC"   7 Nobody "The application is alive, though it refused the login or the question."
    L7Timeout     "L7TOUT"  7 Target "The application did not answer within the timeout."
    L7Response    "L7RSP"   7 Target "The answer was not of the protocol, or broke off."
    L7Status      "L7STS"   7 Target "The application answered with a status or an error that was not expected."
    L7Content     "L7CONT"  7 Target "The answer's content was not as expected."
    SockErr       "SOCKERR" 0 Prober "The prober had no port, descriptor or memory for the probe, or may not make it."
    Late          "LATE"    0 Prober "The prober was too busy to judge: its own lateness ate the timeout."
}

impl Code {
    /// Whether the probe found its target well.
    pub const fn is_up(self) -> bool {
        matches!(self.fault(), Fault::Nobody)
    }

    /// What an errno of a connect means. ECONNRESET and ECONNABORTED before the handshake is over are a refusal:
    /// kernels 6.14 to 6.15.7 report a refused port as reset (kernel commit 8c8492ca64e7, cured by c7cafd5b81cc), and
    /// some 6.1 ones report ECONNABORTED on a recycled socket. ENETDOWN and ENONET speak of our own interface; what
    /// nobody foresaw is taken for our own trouble too, because a wrong "down" costs more than a late one.
    pub const fn of_connect(errno: Errno) -> Code {
        match errno.0 {
            libc::ECONNREFUSED | libc::ECONNRESET | libc::ECONNABORTED => Code::L4Refused,
            libc::ETIMEDOUT => Code::L4Timeout,
            libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENOPROTOOPT => Code::L4Unreachable,
            _ => Code::SockErr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every errno of connect(2) that we know has one reading, and the unknown ones never blame the target.
    #[test]
    fn connect_errnos_have_one_reading() {
        let table = [
            (libc::ECONNREFUSED, Code::L4Refused),
            (libc::ECONNRESET, Code::L4Refused),
            (libc::ECONNABORTED, Code::L4Refused),
            (libc::ETIMEDOUT, Code::L4Timeout),
            (libc::EHOSTUNREACH, Code::L4Unreachable),
            (libc::ENETUNREACH, Code::L4Unreachable),
            (libc::EHOSTDOWN, Code::L4Unreachable),
            (libc::ENOPROTOOPT, Code::L4Unreachable),
        ];
        for errno in 1..200 {
            let expected = table.iter().find(|(known, _)| *known == errno).map_or(Code::SockErr, |(_, code)| *code);
            assert_eq!(Code::of_connect(Errno(errno)), expected, "{}", Errno(errno));
        }
    }

    /// Names are unique, layers agree with faults, and only success is up.
    #[test]
    fn the_table_is_consistent() {
        for (position, code) in Code::ALL.iter().enumerate() {
            assert_eq!(*code as usize, position);
            assert_eq!(Code::ALL.iter().filter(|other| other.as_str() == code.as_str()).count(), 1);
            assert_eq!(code.layer() == 0, code.fault() == Fault::Prober, "{code:?}");
            assert_eq!(code.is_up(), code.fault() == Fault::Nobody, "{code:?}");
            assert!(code.sentence().ends_with('.'));
        }
        assert_eq!(Code::ALL.len(), Code::COUNT);
    }
}

//! A stream's way from the mux to a direct carrier, as one end of it sees it: each direction by itself.
//! Promise: with the marker behind the last byte on the mux and the first byte on the direct carrier behind the marker,
//! nothing is lost, doubled or put before what it follows, in whatever order the two connections bring their bytes.
//! Pure: it says which wire a byte goes to and when the other wire may be read; it moves none.
//!
//! ```text
//! out    Mux ──bind (the marker goes out)──▶ Direct ──end──▶ Over        Mux ──FIN──▶ Over
//! in     Mux ──marker──▶ Direct ──end──▶ Over                            Mux ──FIN──▶ Over
//! ```
//! The bridge binds when it takes the direct carrier, the agent when the OPEN has come on it. Until then markers may
//! have come already: the mux and the direct carrier are two connections, and either may be ahead.

/// Where the next byte of one direction goes or comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In frames, on the carrier it began on.
    Mux,
    /// On the direct carrier, as it is.
    Direct,
    /// There is no next byte.
    Over,
}

/// The peer says what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Confusion {
    /// A marker for a direction that has moved or ended, or with no direct carrier that it could mean.
    #[error("a stream moved that cannot")]
    Marker,
    /// Two direct carriers for one stream.
    #[error("a second direct carrier for one stream")]
    Twice,
}

/// One end of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moving {
    out: Way,
    inward: Way,
    bound: bool,
    /// A direction has gone to the direct carrier.
    moved: bool,
}

impl Moving {
    /// A stream of the mux.
    pub const MUX: Moving = Moving { out: Way::Mux, inward: Way::Mux, bound: false, moved: false };

    /// A stream that was on a direct carrier from the start.
    pub const DIRECT: Moving = Moving { out: Way::Direct, inward: Way::Direct, bound: true, moved: true };

    /// The direct carrier is here. `true`: our direction goes there from now on, and the marker has to be sent on the
    /// mux, behind what was sent there; `false`: our direction has ended already.
    ///
    /// # Errors
    /// [`Confusion::Twice`].
    pub fn bind(&mut self) -> Result<bool, Confusion> {
        if self.bound {
            return Err(Confusion::Twice);
        }
        self.bound = true;
        let moves = self.out == Way::Mux;
        if moves {
            (self.out, self.moved) = (Way::Direct, true);
        }
        Ok(moves)
    }

    /// The peer's marker has come on the mux. `may_wait`: the direct carrier's own word may be under way still (at the
    /// agent); at the bridge, which chose it, nothing can be.
    ///
    /// # Errors
    /// [`Confusion::Marker`].
    pub fn on_marker(&mut self, may_wait: bool) -> Result<(), Confusion> {
        if self.inward != Way::Mux || !(self.bound || may_wait) {
            return Err(Confusion::Marker);
        }
        (self.inward, self.moved) = (Way::Direct, true);
        Ok(())
    }

    /// The peer's direction has ended, where it was.
    pub fn on_end(&mut self) {
        self.inward = Way::Over;
    }

    /// Our direction ends now. Returns where that is to be said.
    pub fn end(&mut self) -> Way {
        std::mem::replace(&mut self.out, Way::Over)
    }

    /// Where our bytes go.
    pub fn out(&self) -> Way {
        self.out
    }

    /// Where the peer's bytes come from.
    pub fn inward(&self) -> Way {
        self.inward
    }

    /// Whether the direct carrier may be read: not before the marker, and not while bytes of the mux are still `held`
    /// for a slow socket.
    pub fn reads_direct(&self, held: bool) -> bool {
        self.bound && self.inward == Way::Direct && !held
    }

    /// Whether a direct carrier belongs to it.
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    /// Whether the stream is broken if the direct carrier is. It is not while both directions are on the mux or have
    /// ended there: the peer may have been done with the stream before it heard of the move.
    pub fn needs_direct(&self) -> bool {
        self.moved
    }

    /// Whether nothing goes either way any more.
    pub fn is_over(&self) -> bool {
        self.out == Way::Over && self.inward == Way::Over
    }
}

#[cfg(test)]
mod tests;

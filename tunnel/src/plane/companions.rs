//! What becomes of direct carriers when the link is lost that they belong to.
//! Promise: with a link that fell silent all of them go, each stream reset once. With a link that was lost otherwise go those
//! that wait; a stream's own connection may be well, and it goes on as an orphan, while bytes move.

use super::Plane;
use super::carrier::{Carrier, Lost};
use super::load::Load;
use super::signs::silence;
use crate::frame::Reason;
use crate::slots::Key;
use ringspan_engine::resident::Cx;

impl Plane {
    /// The link is lost for that reason.
    pub(super) fn lose_companions(&mut self, cx: &mut Cx<'_>, link: Key, reason: Reason) {
        for key in self.carriers.keys() {
            let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live()) else { continue };
            let waits = matches!(c.load, Load::Spare { link: its } if its == link);
            let streams = c.link_of_stream() == Some(link);
            if waits || (streams && reason == Reason::Silent) {
                self.lose(cx, key, Lost { reason, detail: "its link was lost".into() });
            } else if streams {
                // The time in which it may say nothing begins.
                c.signs.on_heard(cx.now);
            }
        }
    }

    /// An orphan lives while bytes move: a proxy on the way may have gone silent with its TCP alive, and there is no link
    /// left to notice.
    pub(super) fn look_at_orphan(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(link) = self.carriers.get(key).and_then(Carrier::link_of_stream) else { return };
        let has_link = self.is_link(link);
        let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live()) else { return };
        if std::mem::take(&mut c.has_sent) {
            c.signs.on_heard(cx.now);
        }
        if !has_link && c.signs.is_silent(cx.now) {
            let detail = format!("{}, and its link was lost before", silence());
            self.lose(cx, key, Lost { reason: Reason::Silent, detail });
        }
    }
}

//! Clients that went before their answers were whole, and requests of others that lost their slots by that: a server that takes
//! the end of one for the end of all. Pure.

use std::collections::VecDeque;

use llamaprobe_common::request::{EndEvent, RequestKey};

/// How far apart a server may turn to the end of one request and leave the slot of another by it, nanoseconds; and how long it
/// may take over an answer whose slot is left.
pub const MOMENT_NS: u64 = 1_000_000_000;
/// Those that are kept.
const MOST: usize = 64;

/// A client went.
#[derive(Clone, Copy, Debug)]
struct Cancel {
    request: RequestKey,
    gone_ns: u64,
    /// When the server was through with its request.
    closed_ns: u64,
}

/// The last clients of a server that went.
#[derive(Debug, Default)]
pub struct Cancels(VecDeque<Cancel>);

impl Cancels {
    /// A request is over on its socket.
    pub fn note(&mut self, event: &EndEvent) {
        let &EndEvent { request, gone_ns, at_ns, .. } = event;
        if gone_ns == 0 {
            return;
        }
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(Cancel { request, gone_ns, closed_ns: at_ns });
    }

    /// By the end of which other request the slot of one was left at a time.
    pub fn by(&self, victim: RequestKey, left_ns: u64) -> Option<RequestKey> {
        let others = self.0.iter().filter(|it| it.request != victim && it.gone_ns <= left_ns);
        let near = others.map(|it| (it.closed_ns.abs_diff(left_ns), it.request));
        near.filter(|(apart_ns, _)| *apart_ns <= MOMENT_NS).min().map(|(_, request)| request)
    }
}

#[cfg(test)]
mod tests {
    use llamaprobe_common::request::{EndReason, SlotEndEvent};

    use super::*;
    use crate::{
        bpf::events::RequestEvent,
        plan::Joining,
        session::{
            finished::Outcome,
            staged::{
                MS, PID, STREAM, chat, chunk, end, key, last_chunk, on, process, read, requests, slot_start,
                task, text_chunk, worked, write,
            },
            usage::Usage,
        },
    };

    /// Moments, milliseconds: the other's client goes, or not; the victim's slot is left; its client goes, or not; its
    /// connection is closed.
    struct Staged {
        other_gone: Option<u64>,
        left: u64,
        gone: Option<u64>,
        closed: u64,
    }

    /// The bug: a client goes that waits for a slot, and the server leaves the slot of another, whose client waits in vain.
    const BUG: Staged = Staged { other_gone: Some(990), left: 1_010, gone: Some(9_000), closed: 9_005 };

    impl Staged {
        /// Whether the victim is said to have been ended by the other: while it is under way, two seconds after it lost
        /// its slot, and at its end. `written` is the last that it is answered.
        fn told(&self, written: &[u8]) -> (bool, bool, Outcome) {
            let at = |ms: u64| (1_000 + ms) * MS;
            let (victim, other) = (key(1_000), RequestKey { fd: 6, ..key(1_100) });
            let mut requests = requests();
            requests.serve(PID, Joining::Exact, &process(PID));
            let answered = [STREAM, &text_chunk(), written].concat();
            let close = |request, gone_ms: Option<u64>, closed_ms, bytes| {
                let over = end(request, EndReason::Closed, at(closed_ms), at(30), bytes);
                RequestEvent::End(EndEvent { gone_ns: gone_ms.map_or(0, at), ..over })
            };
            let left = SlotEndEvent { at_ns: at(self.left), ..worked(victim, 40) };
            let before = [
                read(victim, 0, at(0), &chat()),
                task(victim, 40, at(1)),
                slot_start(victim, 40, 1, at(10)),
                write(victim, 0, at(30), &answered),
                read(other, 0, at(100), &chat()),
                task(other, 41, at(101)),
            ];
            let other_over = close(other, self.other_gone, self.other_gone.unwrap_or(990) + 5, 0);
            for event in before.iter().chain([&other_over, &RequestEvent::SlotEnd(left)]) {
                on(&mut requests, event);
            }
            let shown = requests.shown(PID, &Usage::new(9), &[], at(self.left + 2_000));
            let last = close(victim, self.gone, self.closed, answered.len() as u64);
            let over = on(&mut requests, &last).expect("it is over");
            let by = |told: Option<RequestKey>| told == Some(other);
            (by(shown[0].cancelled_by), by(over.cancelled_by), over.outcome)
        }
    }

    #[test]
    fn who_loses_its_slot_by_the_end_of_another_is_told_by_whose() {
        assert_eq!(BUG.told(&[]), (true, true, Outcome::Cancelled));
        let closed = Staged { gone: None, closed: 1_015, ..BUG };
        assert_eq!(closed.told(&[]), (true, true, Outcome::Cancelled), "the server has closed it");
        let failed = chunk(r#"{"error":{"code":500,"message":"a","type":"server_error"}}"#);
        assert_eq!(closed.told(&failed), (true, true, Outcome::Error));
    }

    #[test]
    fn nobody_is_named_for_what_a_client_or_an_answer_has_ended() {
        let own = Staged { gone: Some(1_000), closed: 1_015, ..BUG };
        assert!(!own.told(&[]).1, "its own client went");
        assert!(!Staged { other_gone: None, ..BUG }.told(&[]).1, "the other has its answer");
        assert!(!Staged { left: 4_000, ..BUG }.told(&[]).1, "long before");
        assert!(!Staged { left: 900, ..BUG }.told(&[]).1, "the other went later");
        let own = chunk(r#"{"error":{"code":400,"message":"a","type":"invalid_request_error"}}"#);
        for (what, written) in [("it was answered", last_chunk("stop")), ("it is its own fault", own)] {
            let (shown, told, _) = BUG.told(&written);
            assert!(!shown && !told, "{what}");
        }
    }
}

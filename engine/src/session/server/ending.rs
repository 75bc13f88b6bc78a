//! How a server's session ends: by itself, with the client's stream, for want of a word in time, or because others wait for
//! its place and it does not use it.

use super::{BodyOf, Phase, Place, Server, Wanted};
use crate::backend::Time;
use crate::limits::{LAST_WORDS_TIMEOUT, LEAST_SHARE_BYTES, LEAST_USE_BYTES};
use crate::session::{Context, Failure, Flow, Io, Reason};
use crate::wire::decode::DecodeError;
use crate::wire::frame::{ErrorCode, Frame};

impl Server {
    pub(in crate::session) fn finish(&mut self, result: Result<(), Failure>, cx: &mut Context<'_>) -> Flow {
        // What is on its way to a file of others must not arrive there once one of them has named it.
        let said = self.link.is_drained() || self.link.failure().is_some();
        let (result, until) = self.ending.take().unwrap_or((result, None));
        let until = until.filter(|&until| !said && cx.now < until);
        if !self.let_go(cx) || until.is_some() {
            self.ending = Some((result, until));
            return Flow::Continue;
        }
        self.end_now(result, cx);
        Flow::Finished
    }

    /// Ends it, whatever is still on its way.
    pub(super) fn end_now(&mut self, result: Result<(), Failure>, cx: &mut Context<'_>) {
        self.meetings.iter().for_each(|meeting| meeting.borrow_mut().abandon());
        self.link.close(cx);
        if let Some(on_end) = self.on_end.take() {
            self.traffic.set(self.link.traffic());
            if let Some(Place { dismissed, .. }) = self.place.as_ref().filter(|_| self.was_dismissed) {
                dismissed.set(dismissed.get() - 1);
            }
            on_end(result);
        }
    }

    /// True once nothing that it writes to a file of others is on its way.
    pub(super) fn let_go(&mut self, cx: &mut Context<'_>) -> bool {
        let mut all = true;
        for exchange in &mut self.active {
            let mut io = Io {
                cx,
                link: &mut self.link,
                quotas: &self.quotas,
                terms: self.terms,
                progress: &self.progress,
                codec: &mut self.codec,
                transfer: exchange.transfer,
            };
            all &= exchange.verb.let_go(&mut io);
        }
        all
    }

    /// What came cannot be understood, or not be taken.
    pub(super) fn broken(error: DecodeError) -> Failure {
        match error {
            DecodeError::CutOff => Failure::connection("connection", error),
            DecodeError::NoRoom => Failure { kind: Reason::NoMemory, ..Failure::connection("cut off", error) },
            error => Failure::protocol(error),
        }
    }

    /// It is over but for what it writes.
    pub(in crate::session) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Ends it for this reason, of which the client is told.
    pub(super) fn dismiss(&mut self, why: &'static str, cx: &mut Context<'_>) -> Flow {
        self.send(&Frame::Error { message: format!("cut off: {why}").into_bytes(), code: ErrorCode::BUSY });
        self.link.flush(cx);
        let result = Err(Failure::connection("cut off", why));
        if let Some(Place { dismissed, .. }) = &self.place {
            dismissed.set(dismissed.get() + 1);
            self.was_dismissed = true;
        }
        self.ending = Some((result.clone(), Some(cx.now.after(LAST_WORDS_TIMEOUT))));
        self.finish(result, cx)
    }

    /// When the rest of a body that has begun must have come. Only where places are few: a client that its user has stopped
    /// may otherwise go on whenever he likes.
    pub(super) fn body_deadline(&self) -> Option<Time> {
        let since = self.link.silent_since().filter(|_| self.place.is_some() && self.body != BodyOf::Nobody)?;
        Some(since.after(self.patience.stall))
    }

    /// Until when it keeps its place without using it, now that somebody waits for that.
    pub(super) fn place_deadline(&self) -> Option<Time> {
        let place = self.place.as_ref()?;
        let used = match (place.wanted)() {
            Wanted::No => None,
            Wanted::FromIdle => place.used,
            Wanted::FromSlow => place.well_used,
            // Long ago.
            Wanted::FromAny => return Some(Time(0)),
        };
        used.map(|(at, _)| at.after(self.patience.stall))
    }

    /// Why it loses its place, in words.
    pub(super) fn why_dismissed(&self) -> &'static str {
        match self.place.as_ref().map(|place| (place.wanted)()) {
            Some(Wanted::FromSlow) => "others have no place, and most are in use from this address, with little to do",
            Some(Wanted::FromAny) => "others have fewer connections, and wait for one",
            _ => "the client did not use its connection for a minute, and others wait for one",
        }
    }

    pub(super) fn note_use(&mut self, now: Time) {
        let (came, left) = self.link.traffic();
        let (moved, works) = (came + left, self.is_at_work());
        let Some(place) = &mut self.place else { return };
        for (used, least) in [(&mut place.used, LEAST_USE_BYTES), (&mut place.well_used, LEAST_SHARE_BYTES)] {
            if works || used.is_none_or(|(_, before)| moved - before >= least) {
                *used = Some((now, moved));
            }
        }
    }

    pub(super) fn check_time(&self, now: Time) -> Result<(), Failure> {
        if let Phase::AwaitHello { deadline: Some(deadline) } = self.phase
            && deadline <= now
        {
            return Err(Failure::connection("handshake", "the client did not greet in time").because(Reason::Late));
        }
        if self.link.stall_deadline().is_some_and(|deadline| deadline <= now) {
            return Err(
                Failure::connection("cut off", "the client has read nothing for a minute").because(Reason::Silent)
            );
        }
        Ok(())
    }

    /// The client will say nothing more. What it asked for is still answered; a body without an end is not published.
    pub(super) fn at_end(&mut self, cx: &mut Context<'_>) -> Result<Flow, Failure> {
        if self.link.ended_inside_frame() || matches!(self.body, BodyOf::Put(_)) {
            return Err(Failure::connection("connection", "the client's stream ended in the middle of a transfer"));
        }
        self.phase = Phase::Draining;
        // Direct connections outlive the session that they were agreed on in.
        self.meetings.iter().for_each(|meeting| meeting.borrow_mut().end());
        Ok(if self.wind_down(cx) { self.finish(Ok(()), cx) } else { Flow::Continue })
    }

    /// True once everything has left. In records the end of the stream goes last, by which the client knows that it was all.
    pub(super) fn wind_down(&mut self, cx: &mut Context<'_>) -> bool {
        let met = self.meetings.iter().all(|meeting| meeting.borrow().is_done());
        if !met || !self.active.is_empty() || !self.link.is_drained() {
            return false;
        }
        if self.link.is_sealed() {
            self.link.shutdown(cx);
        }
        self.link.is_drained()
    }
}

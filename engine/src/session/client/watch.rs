//! Whether the server is still there: since when it owes what, and for how long that may go on.

use super::{Client, Phase};
use crate::backend::Time;
use crate::limits::{SECOND, SUSPENDED};
use crate::session::report::Report;

impl Client {
    /// A Hello may lie in the pipe of a remote shell for as long as the login takes.
    pub(super) fn stall_deadline(&self) -> Option<Time> {
        self.link
            .stalled_since()
            .filter(|_| !matches!(self.phase, Phase::Opening(_)))
            // A socket takes more only when a third of its buffer is free, which takes 4 Mbit/s shared by four half a minute
            // (2026-11-30): whoever says something meanwhile is there, and takes what comes.
            .map(|since| since.max(self.link.heard_at()).after(self.stall()))
    }

    pub(super) fn stall(&self) -> u64 {
        match self.phase {
            Phase::Working => self.silence.stall(self.link.stall(), self.owed_work()),
            _ => self.link.stall(),
        }
    }

    /// Bytes that the server may be at, of whatever it owes.
    pub(super) fn owed_work(&self) -> Option<u64> {
        let owed = self.asks.unanswered.front().and_then(|transfer| self.asks.all.get(transfer));
        owed.map_or(Some(0), |asked| asked.ask.work())
    }

    /// Takes note of whose turn it is. What leaves after a request is no sign that anybody is there: a pipe to ssh takes it.
    pub(super) fn watch(&mut self) {
        let front = self.asks.unanswered.front().copied();
        self.waiting = match self.waiting {
            // What has come and is still with our own helpers is no silence.
            _ if !self.link.is_receiving() || !self.link.is_parsed() => None,
            Some((transfer, since)) if front == Some(transfer) => Some((transfer, since)),
            _ => {
                // Not while the request itself is still being sent.
                let sent = front.filter(|transfer| self.asks.all.get(transfer).is_some_and(|asked| asked.sent));
                sent.zip(self.link.silent_since())
            }
        };
    }

    pub(super) fn answer_deadline(&self) -> Option<Time> {
        self.owed_since().map(|since| since.after(self.silence.answer(self.owed_work())))
    }

    /// When a server that says no more than that it lives has said it for long enough.
    pub(super) fn idle_deadline(&self) -> Option<Time> {
        let since = self.waiting.map(|(_, since)| since).or(self.link.stalled_since());
        let since = since.filter(|_| matches!(self.phase, Phase::Working)).map(|since| since.max(self.moved_at));
        since.map(|since| since.after(self.silence.idle(self.owed_work())))
    }

    /// This end did not run: what the server did meanwhile is not known, and it has all its time again.
    pub(super) fn on_suspended(&mut self, nanoseconds: u64, now: Time) {
        self.link.forgive(now);
        self.moved_at = now;
        self.waiting = self.waiting.map(|(transfer, _)| (transfer, now));
        // Further connections have slept as long.
        if nanoseconds >= SUSPENDED && self.driver.lead().is_some() {
            let text = format!("this end was suspended for {} s; it goes on", nanoseconds / SECOND);
            (self.reporter)(Report::Notice(text));
        }
    }

    /// Since when the server says nothing that owes an answer, and has been sent what it needs for it.
    pub(super) fn owed_since(&self) -> Option<Time> {
        self.waiting.map(|(_, since)| since.max(self.link.heard_at()))
    }
}

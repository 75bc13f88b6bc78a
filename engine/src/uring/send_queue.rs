//! The first-in first-out queue of one stream's write half, and the memory of the one write that is under way.
//!
//! ```text
//!               gather                 kernel                  account
//! SendQueue --- the front's bytes ---> Outgoing --- n sent --- whole ones done, the rest back to the front
//!               one file's body  ---> Outgoing.pour (see `splice`)
//! ```
//!
//! Ops are moved into [`Outgoing::items`] before their bytes are lent to the kernel and stay there until it has answered:
//! short heads live inside the op itself, so an op must not move meanwhile. Nothing here makes a call.

use super::splice::Pour;
use super::sys::Message;
use crate::backend::{Cancel, Completion, Errno, FileId, Op, OpKind, Output, StreamId, Token};
use crate::block::{Head, Slice, Slices};
use crate::limits::SPLICE_BYTES;
use crate::offload::OpenFile;
use std::collections::VecDeque;
use std::sync::Arc;

/// What stands in for bytes a file promised and did not have.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// What is to be written.
pub(super) enum Content {
    /// All of these.
    Bytes {
        /// First.
        head: Head,
        /// Then these.
        body: Slices,
    },
    /// A head and a range of a file.
    File(FileRange),
    /// Nothing: the end of the write half.
    End,
}

/// What a SendFile promised.
pub(super) struct FileRange {
    /// First bytes.
    pub(super) head: Head,
    /// Which file, as it was named.
    pub(super) file: FileId,
    /// First byte of it.
    pub(super) offset: u64,
    /// Bytes of it.
    pub(super) len: u64,
    /// The file, kept open from submission on; `None` when the id was stale.
    pub(super) source: Option<Arc<OpenFile>>,
}

/// An op that writes, and how far it is.
pub(super) struct Queued {
    pub(super) token: Token,
    pub(super) stream: StreamId,
    pub(super) content: Content,
    /// Bytes that have left.
    pub(super) sent: u64,
}

impl Queued {
    /// An op of which nothing has left.
    pub(super) fn new(token: Token, stream: StreamId, content: Content) -> Queued {
        Queued { token, stream, content, sent: 0 }
    }

    /// The op, on its way back.
    pub(super) fn end(self, result: Result<(), Errno>) -> Completion {
        let stream = self.stream;
        let kind = match self.content {
            Content::Bytes { head, body } => OpKind::Send { stream, head, body },
            Content::File(FileRange { head, file, offset, len, .. }) => {
                OpKind::SendFile { stream, head, file, offset, len }
            }
            Content::End => OpKind::Shutdown { stream },
        };
        Completion { op: Op { token: self.token, kind }, result: result.map(|()| Output::Done) }
    }

    fn in_memory(&self) -> (&[u8], &[Slice]) {
        match &self.content {
            Content::Bytes { head, body } => (head, body),
            Content::File(range) => (&range.head, &[]),
            Content::End => (&[], &[]),
        }
    }

    /// Bytes in memory that have not left.
    pub(super) fn unsent(&self) -> u64 {
        let (head, body) = self.in_memory();
        let len = head.len() + body.iter().map(Slice::len).sum::<usize>();
        (len as u64).saturating_sub(self.sent)
    }

    fn unsent_parts(&self) -> impl Iterator<Item = &[u8]> {
        let (head, body) = self.in_memory();
        let mut skip = usize::try_from(self.sent).unwrap_or(usize::MAX);
        std::iter::once(head).chain(body.iter().map(Slice::bytes)).filter_map(move |part| {
            let skipped = skip.min(part.len());
            skip -= skipped;
            Some(&part[skipped..]).filter(|rest| !rest.is_empty())
        })
    }

    fn is_file(&self) -> bool {
        matches!(self.content, Content::File(_))
    }
}

/// What the front of a queue asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Front {
    /// Nothing is queued.
    Nothing,
    /// Bytes in memory are to be written.
    Bytes,
    /// The body of a file is to be poured.
    File,
    /// It has nothing to write and is done.
    Empty,
    /// The write half is to be ended.
    End,
}

/// Ops of one stream that wait for their turn.
#[derive(Default)]
pub(super) struct SendQueue {
    waiting: VecDeque<Queued>,
    /// With what every further op ends.
    pub(super) failed: Option<Errno>,
}

impl SendQueue {
    /// Adds an op behind all others.
    pub(super) fn push(&mut self, item: Queued) {
        self.waiting.push_back(item);
    }

    /// Takes the front.
    pub(super) fn pop(&mut self) -> Option<Queued> {
        self.waiting.pop_front()
    }

    /// What is to be done next.
    pub(super) fn front(&self) -> Front {
        match self.waiting.front() {
            None => Front::Nothing,
            Some(item) if item.unsent() > 0 => Front::Bytes,
            Some(Queued { content: Content::Bytes { .. }, .. }) => Front::Empty,
            Some(Queued { content: Content::File(_), .. }) => Front::File,
            Some(Queued { content: Content::End, .. }) => Front::End,
        }
    }

    /// The stream is broken, unless it was before: the first error is the one that stays.
    pub(super) fn fail(&mut self, errno: Errno) {
        self.failed.get_or_insert(errno);
    }

    /// Ends everything that waits.
    pub(super) fn end_all(&mut self, errno: Errno, out: &mut Vec<Completion>) {
        out.extend(self.waiting.drain(..).map(|item| item.end(Err(errno))));
    }

    /// Ends what waits and is covered. An op with bytes out breaks the stream.
    pub(super) fn cancel(&mut self, cancel: Cancel, out: &mut Vec<Completion>) {
        for _ in 0..self.waiting.len() {
            let Some(item) = self.waiting.pop_front() else { break };
            if cancel.covers(item.token) {
                if item.sent > 0 {
                    self.fail(Errno::CANCELLED);
                }
                out.push(item.end(Err(Errno::CANCELLED)));
            } else {
                self.waiting.push_back(item);
            }
        }
    }

    /// Moves the next ops whose bytes are in memory into `items`: as many as one write shall take, ending with the head
    /// of a file.
    pub(super) fn gather(&mut self, items: &mut Vec<Queued>) {
        let mut bytes = 0;
        while let Some(item) = self.waiting.front() {
            let ends_in_file = item.is_file();
            if matches!(item.content, Content::End) || (ends_in_file && item.unsent() == 0) {
                break;
            }
            bytes += item.unsent();
            items.extend(self.waiting.pop_front());
            if ends_in_file || bytes >= SPLICE_BYTES as u64 || items.len() >= crate::limits::GATHER_OPS {
                break;
            }
        }
    }
}

/// The one write a stream has under way.
#[derive(Default)]
pub(super) struct Outgoing {
    /// Ops whose bytes are in `message`; exactly one while pouring.
    pub(super) items: Vec<Queued>,
    /// The file being poured.
    pub(super) pour: Option<Pour>,
    /// What the kernel is told of them.
    pub(super) message: Message,
}

impl Outgoing {
    /// Describes the unsent bytes of `items` to the kernel; true when more will follow at once.
    pub(super) fn load_items(&mut self) -> bool {
        let cut = self.message.load(self.items.iter().flat_map(Queued::unsent_parts), SPLICE_BYTES);
        let file_follows = self.items.last().is_some_and(|item| match &item.content {
            Content::File(range) => range.len > 0,
            Content::Bytes { .. } | Content::End => false,
        });
        cut || file_follows
    }

    /// Describes what the bounce buffer still holds.
    pub(super) fn load_bounce(&mut self) {
        let bounced = self.pour.as_ref().map_or(&[][..], Pour::bounced);
        self.message.load(std::iter::once(bounced), SPLICE_BYTES);
    }

    /// Describes `len` zeros.
    pub(super) fn load_zeros(&mut self, len: usize) {
        self.message.load(std::iter::repeat_n(&ZEROS[..], len.div_ceil(ZEROS.len())), len);
    }

    /// The file being poured.
    pub(super) fn source(&self) -> Option<&OpenFile> {
        match &self.items.first()?.content {
            Content::File(range) => range.source.as_deref(),
            Content::Bytes { .. } | Content::End => None,
        }
    }

    /// Takes note of `sent` bytes, ends what is whole, and gives the rest back to the queue.
    ///
    /// Covered ops without a byte out end cancelled; one with bytes out breaks the stream, and then everything ends.
    pub(super) fn account(
        &mut self,
        mut sent: u64,
        cancels: &[Cancel],
        queue: &mut SendQueue,
        out: &mut Vec<Completion>,
    ) {
        let mut held_back = 0;
        for mut item in self.items.drain(..) {
            let taken = item.unsent().min(sent);
            item.sent += taken;
            sent -= taken;
            let whole = item.unsent() == 0 && !item.is_file();
            if whole && held_back == 0 && queue.failed.is_none_or(|_| taken > 0) {
                out.push(item.end(Ok(())));
                continue;
            }
            if queue.failed.is_none() && cancels.iter().any(|cancel| cancel.covers(item.token)) {
                if item.sent > 0 {
                    queue.fail(Errno::CANCELLED);
                }
                out.push(item.end(Err(Errno::CANCELLED)));
            } else if let Some(errno) = queue.failed {
                out.push(item.end(Err(errno)));
            } else {
                queue.waiting.push_back(item);
                held_back += 1;
            }
        }
        queue.waiting.rotate_right(held_back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::SessionId;

    fn token(transfer: u32) -> Token {
        Token { session: SessionId(1), transfer, part: 0 }
    }

    fn send(transfer: u32, len: usize) -> Queued {
        let content = Content::Bytes { head: vec![7; len].into(), body: Slices::new() };
        Queued::new(token(transfer), StreamId::new(0, 0), content)
    }

    fn file(transfer: u32) -> Queued {
        let range = FileRange { head: vec![1; 5].into(), file: FileId::new(0, 0), offset: 0, len: 9, source: None };
        Queued::new(token(transfer), StreamId::new(0, 0), Content::File(range))
    }

    /// A queue of these, all of them gathered, and cancels of the given transfers.
    fn gathered(items: Vec<Queued>, cancelled: &[u32]) -> (SendQueue, Outgoing, Vec<Cancel>) {
        let (mut queue, mut outgoing) = (SendQueue::default(), Outgoing::default());
        items.into_iter().for_each(|item| queue.push(item));
        queue.gather(&mut outgoing.items);
        let cancels = cancelled.iter().map(|&transfer| Cancel::Transfer(SessionId(1), transfer)).collect();
        (queue, outgoing, cancels)
    }

    fn results(out: &[Completion]) -> Vec<(u32, Result<(), Errno>)> {
        out.iter()
            .map(|done| (done.op.token.transfer, done.result.as_ref().map(|_| ()).map_err(|errno| *errno)))
            .collect()
    }

    #[test]
    fn a_short_write_ends_whole_ops_and_puts_the_rest_back_in_order() {
        let (mut queue, mut outgoing, cancels) = gathered(vec![send(1, 10), send(2, 10), send(3, 10)], &[]);
        queue.push(send(4, 1));
        let mut out = Vec::new();
        outgoing.account(15, &cancels, &mut queue, &mut out);
        assert_eq!(results(&out), [(1, Ok(()))]);
        assert_eq!(
            queue.waiting.iter().map(|item| (item.token.transfer, item.sent)).collect::<Vec<_>>(),
            [(2, 5), (3, 0), (4, 0)]
        );
    }

    #[test]
    fn gathering_ends_with_the_head_of_a_file_and_more_is_announced() {
        let (queue, mut outgoing, _) = gathered(vec![send(1, 10), file(2), send(3, 10)], &[]);
        assert_eq!(outgoing.items.len(), 2);
        assert_eq!(queue.waiting.len(), 1);
        assert!(outgoing.load_items(), "the file's body follows its head");
    }

    #[test]
    fn a_cancelled_send_without_a_byte_out_leaves_the_stream_alive() {
        let (mut queue, mut outgoing, cancels) = gathered(vec![send(1, 10), send(2, 10), send(3, 10)], &[2]);
        let mut out = Vec::new();
        outgoing.account(4, &cancels, &mut queue, &mut out);
        assert_eq!(results(&out), [(2, Err(Errno::CANCELLED))]);
        assert_eq!(queue.failed, None);
        assert_eq!(queue.waiting.len(), 2);
    }

    #[test]
    fn a_cancelled_send_with_a_byte_out_breaks_the_stream() {
        let (mut queue, mut outgoing, cancels) = gathered(vec![send(1, 10), send(2, 10)], &[1]);
        let mut out = Vec::new();
        outgoing.account(4, &cancels, &mut queue, &mut out);
        assert_eq!(results(&out), [(1, Err(Errno::CANCELLED)), (2, Err(Errno::CANCELLED))]);
        assert_eq!(queue.failed, Some(Errno::CANCELLED));
    }

    #[test]
    fn an_empty_send_ends_in_its_turn() {
        let (mut queue, mut outgoing, cancels) = gathered(vec![send(1, 0), send(2, 10), send(3, 0)], &[]);
        let mut out = Vec::new();
        outgoing.account(3, &cancels, &mut queue, &mut out);
        assert_eq!(results(&out), [(1, Ok(()))]);
        assert_eq!(queue.waiting.len(), 2);
    }
}

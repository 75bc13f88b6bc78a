//! What goes wrong, when, and what went wrong.
//!
//! Owns the plan and its record; carrying a fault out is the business of whoever runs into it: `files` for operations
//! on the disk, `network` for streams, `listen` for connections being made, `state` for crashes.

use super::random::Random;
use crate::backend::{Errno, FsOp, OpKind, OpenMode, Time, Token};

/// Operations of one kind, turns, and bytes within which a random plan puts its faults.
const RANDOM_NTH: u64 = 64;
const RANDOM_TURNS: u64 = 512;
const RANDOM_BYTES: u64 = 1 << 20;

/// The name of an operation, without what it carries.
#[allow(missing_docs)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum OpName {
    Accept,
    Listen,
    Connect,
    Shutdown,
    CloseStream,
    Recv,
    Send,
    SendFile,
    Open,
    Create,
    Close,
    Read,
    Write,
    Load,
    Store,
    Publish,
    Stat,
    StatOpen,
    OpenDir,
    ReadDir,
    CloseDir,
    MakeDir,
    SetMeta,
    MakeLink,
    Clone,
    FillBlocks,
    KeepBlocks,
    HashBlocks,
    HashPart,
    InPlace,
    Continue,
    Compute,
}

impl OpName {
    /// How many there are.
    pub(super) const COUNT: usize = OpName::Compute as usize + 1;

    /// The name of this operation.
    pub fn of(kind: &OpKind) -> OpName {
        match kind {
            OpKind::Accept { .. } => OpName::Accept,
            OpKind::Listen { .. } => OpName::Listen,
            OpKind::Connect { .. } => OpName::Connect,
            OpKind::Shutdown { .. } => OpName::Shutdown,
            OpKind::CloseStream { .. } => OpName::CloseStream,
            OpKind::Recv { .. } => OpName::Recv,
            OpKind::Send { .. } => OpName::Send,
            OpKind::SendFile { .. } => OpName::SendFile,
            OpKind::Open { mode: OpenMode::Read, .. } => OpName::Open,
            OpKind::Open { mode: OpenMode::Create { .. } | OpenMode::Shared { .. }, .. } => OpName::Create,
            OpKind::Open { mode: OpenMode::InPlace { .. } | OpenMode::Join { .. }, .. } => OpName::InPlace,
            OpKind::Open { mode: OpenMode::Continue { .. }, .. } => OpName::Continue,
            OpKind::Compute(_) => OpName::Compute,
            OpKind::Close { .. } => OpName::Close,
            OpKind::Read { .. } => OpName::Read,
            OpKind::Write { .. } => OpName::Write,
            OpKind::Load { .. } => OpName::Load,
            OpKind::Store(_) => OpName::Store,
            OpKind::Publish { .. } => OpName::Publish,
            OpKind::Fs(op) => OpName::of_fs(op),
        }
    }

    fn of_fs(op: &FsOp) -> OpName {
        match op {
            FsOp::Stat { .. } => OpName::Stat,
            FsOp::StatOpen { .. } => OpName::StatOpen,
            FsOp::OpenDir { .. } => OpName::OpenDir,
            FsOp::ReadDir { .. } => OpName::ReadDir,
            FsOp::CloseDir { .. } => OpName::CloseDir,
            FsOp::MakeDir { .. } => OpName::MakeDir,
            FsOp::SetMeta { .. } => OpName::SetMeta,
            FsOp::MakeLink { .. } => OpName::MakeLink,
            FsOp::Clone { .. } => OpName::Clone,
            FsOp::FillBlocks { .. } => OpName::FillBlocks,
            FsOp::KeepBlocks { .. } => OpName::KeepBlocks,
            FsOp::HashBlocks { .. } => OpName::HashBlocks,
            FsOp::HashPart { .. } => OpName::HashPart,
        }
    }
}

/// What can go wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fault {
    /// The operation fails with EIO. A Write may have written some of it; a Send breaks its stream with some of it out,
    /// and only the sender knows; a SendFile can no longer read its file and pads.
    Eio,
    /// The operation fails with ENOSPC. A Write may have written some of it.
    Enospc,
    /// Only to close does the file system say that not all of what was written was stored: EDQUOT, EIO or ENOSPC. What
    /// is missing of it then is missing for whoever reads it too.
    CloseEdquot,
    /// See [`Fault::CloseEdquot`].
    CloseEio,
    /// See [`Fault::CloseEdquot`].
    CloseEnospc,
    /// The operation fails with EACCES.
    Eacces,
    /// The connection is refused although somebody listens: ECONNREFUSED.
    Refused,
    /// The network swallows the connection: ETIMEDOUT after [`CONNECT_TIMEOUT`](super::CONNECT_TIMEOUT), unless it is
    /// cancelled before.
    Unanswered,
    /// The connection is gone: at the operation, or after a number of bytes.
    Epipe,
    /// The file that is being read becomes shorter.
    ShortSource,
    /// Somebody appends to the file that is being read.
    Grow,
    /// Somebody writes over a byte of the file that is being read.
    Overwrite,
    /// The name is gone when it is looked at.
    Vanish,
    /// The host stops. Its disk keeps what has a name.
    Crash,
}

impl Fault {
    /// The faults that an operation of this name can run into.
    pub fn of(op: OpName) -> &'static [Fault] {
        use Fault::{
            CloseEdquot, CloseEio, CloseEnospc, Eacces, Eio, Enospc, Epipe, Grow, Overwrite, Refused, ShortSource,
            Unanswered, Vanish,
        };
        match op {
            OpName::Recv => &[Epipe],
            OpName::Send => &[Epipe, Eio],
            OpName::SendFile => &[Epipe, Eio, ShortSource],
            OpName::Open | OpName::Stat | OpName::OpenDir => &[Vanish, Eio, Eacces],
            OpName::Read => &[ShortSource, Grow, Overwrite, Eio],
            OpName::Load => &[ShortSource, Grow, Overwrite, Vanish, Eio, Eacces],
            OpName::StatOpen => &[Grow, Overwrite, Eio],
            OpName::HashPart => &[Grow, Overwrite, Eio],
            OpName::Create | OpName::InPlace | OpName::Continue | OpName::MakeDir | OpName::MakeLink => {
                &[Enospc, Eio, Eacces]
            }
            OpName::Store => &[Enospc, Eio, Eacces, CloseEdquot, CloseEio, CloseEnospc],
            OpName::Publish => &[Enospc, Eio, CloseEdquot, CloseEio, CloseEnospc],
            OpName::Write | OpName::FillBlocks => &[Enospc, Eio],
            OpName::ReadDir | OpName::SetMeta | OpName::Clone | OpName::HashBlocks => &[Eio],
            OpName::Listen => &[Eacces],
            OpName::Connect => &[Refused, Unanswered],
            OpName::Accept | OpName::Shutdown | OpName::CloseStream | OpName::Compute => &[],
            // Trouble with the store is no error.
            OpName::KeepBlocks => &[],
            OpName::Close | OpName::CloseDir => &[Eio],
        }
    }

    /// True for what a file system says only to close.
    pub fn is_at_close(self) -> bool {
        matches!(self, Fault::CloseEdquot | Fault::CloseEio | Fault::CloseEnospc)
    }

    /// The error an operation ends with because of this fault alone.
    pub(super) fn errno(self) -> Errno {
        match self {
            Fault::Eio | Fault::CloseEio | Fault::Crash => Errno::IO,
            Fault::Enospc | Fault::CloseEnospc => Errno::NO_SPACE,
            Fault::CloseEdquot => Errno::from(rustix::io::Errno::DQUOT),
            Fault::Eacces => Errno::from(rustix::io::Errno::ACCESS),
            Fault::Refused => Errno::from(rustix::io::Errno::CONNREFUSED),
            Fault::Unanswered => Errno::from(rustix::io::Errno::TIMEDOUT),
            Fault::Epipe => Errno::BROKEN_PIPE,
            Fault::ShortSource => Errno::SHORT_SOURCE,
            Fault::Grow | Fault::Overwrite => Errno::CHANGED,
            Fault::Vanish => Errno::NOT_FOUND,
        }
    }
}

/// One thing that will go wrong. Hosts and connections are counted from 0 in the order they were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planned {
    /// The `nth` operation of this name on a host, counted from 0.
    Op {
        /// Host.
        host: usize,
        /// Which operations.
        op: OpName,
        /// Which of them.
        nth: u64,
        /// What happens to it.
        fault: Fault,
    },
    /// A connection is gone once so many bytes have entered it in one direction: from its first host, or to it.
    Break {
        /// Connection.
        connection: usize,
        /// Direction: out of the host named first.
        outward: bool,
        /// Bytes that still pass.
        after: u64,
    },
    /// A host stops in the turn with this number.
    Crash {
        /// Host.
        host: usize,
        /// Its `submit_and_wait` calls before.
        turn: u64,
    },
}

/// What will go wrong in one world.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FaultPlan {
    /// Every fault, in any order.
    pub planned: Vec<Planned>,
    random_hosts: usize,
}

impl FaultPlan {
    /// Nothing goes wrong.
    pub fn none() -> FaultPlan {
        FaultPlan::default()
    }

    /// Exactly these things.
    pub fn of(planned: Vec<Planned>) -> FaultPlan {
        FaultPlan { planned, random_hosts: 0 }
    }

    /// None to three faults among the first `hosts` hosts and on the first connection, drawn from the world's seed.
    pub fn random(hosts: usize) -> FaultPlan {
        FaultPlan { planned: Vec::new(), random_hosts: hosts }
    }

    pub(super) fn draw(mut self, random: &mut Random) -> FaultPlan {
        if self.random_hosts > 0 {
            for _ in 0..random.below(4) {
                let planned = draw_one(random, self.random_hosts);
                self.planned.push(planned);
                // Whoever writes may have blocks filled instead: the same can go wrong then.
                if let Planned::Op { host, op: OpName::Write, nth, fault } = planned {
                    self.planned.push(Planned::Op { host, op: OpName::FillBlocks, nth, fault });
                }
            }
        }
        self
    }

    pub(super) fn for_op(&self, host: usize, op: OpName, nth: u64) -> Option<Fault> {
        self.planned.iter().find_map(|planned| match *planned {
            Planned::Op { host: h, op: o, nth: n, fault } if (h, o, n) == (host, op, nth) => Some(fault),
            _ => None,
        })
    }

    pub(super) fn crashes(&self, host: usize, turn: u64) -> bool {
        self.planned.contains(&Planned::Crash { host, turn })
    }

    pub(super) fn breaks_after(&self, connection: usize, outward: bool) -> Option<u64> {
        self.planned.iter().find_map(|planned| match *planned {
            Planned::Break { connection: c, outward: o, after } if (c, o) == (connection, outward) => Some(after),
            _ => None,
        })
    }
}

fn draw_one(random: &mut Random, hosts: usize) -> Planned {
    // A broken Send has the most ways to go on: it is drawn more often.
    const OPS: [OpName; 23] = [
        OpName::Recv,
        OpName::Send,
        OpName::Send,
        OpName::Send,
        OpName::SendFile,
        OpName::Open,
        OpName::Create,
        OpName::Close,
        OpName::Read,
        OpName::Write,
        OpName::Load,
        OpName::Store,
        OpName::Publish,
        OpName::Stat,
        OpName::StatOpen,
        OpName::OpenDir,
        OpName::ReadDir,
        OpName::MakeDir,
        OpName::SetMeta,
        OpName::MakeLink,
        OpName::HashBlocks,
        OpName::InPlace,
        OpName::Continue,
    ];
    let host = random.index(hosts);
    match random.below(8) {
        0 => Planned::Crash { host, turn: random.magnitude(RANDOM_TURNS) - 1 },
        1 => Planned::Break { connection: 0, outward: random.once_in(2), after: random.magnitude(RANDOM_BYTES) - 1 },
        _ => {
            let op = OPS[random.index(OPS.len())];
            let faults = Fault::of(op);
            Planned::Op { host, op, nth: random.magnitude(RANDOM_NTH) - 1, fault: faults[random.index(faults.len())] }
        }
    }
}

/// A fault that struck.
#[derive(Clone, Debug)]
pub struct Hit {
    /// When.
    pub at: Time,
    /// Host.
    pub host: usize,
    /// The operation it struck and whose that is; `None` for a crash.
    pub op: Option<(Token, OpName)>,
    /// What.
    pub fault: Fault,
}

/// Ways to build the simulated backend wrong on purpose, so that a test of the tests can see them fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// Undoes rule 4: after a Send failed, those queued behind it still leave.
    ForgetFailedStream,
    /// Undoes rule 3: some Recvs complete with fewer bytes than asked for.
    ShortRecv,
    /// Some Writes report success and have written nothing.
    LoseWrites,
    /// Files get their names without a look at what close has to say.
    IgnoreClose,
}

//! What a server's session has of a pool that it shares with sessions of other peers, or other connections of its own.
//!
//! Blocks of the first two classes are shared out by number ([`Pool::claim`]): who has all that he may leaves the others theirs.
//! Frame blocks are too large for that. They belong to the one or two sessions of a daemon that asked first; with all others it
//! is agreed that content is compressed 512 KiB at a time, for which nobody needs one. Without this, one client that took
//! nothing off, or sent the first KiB of 4 MiB, kept all others from sending anything compressed (2026-11-30).

use super::Quotas;
use crate::block::{Claim, Pool, Quota, Share};
use crate::limits::SERVED_FRAME_BLOCKS;
use crate::wire::frame::{Caps, Ext};

/// Who may use frame blocks.
enum Frames {
    /// Whoever serves has them for all.
    Everyone,
    /// This session, and few others.
    Claimed { _claim: Claim },
    /// Others.
    Nobody,
}

/// A session's part of its worker's pool.
pub(super) struct Part {
    share: Option<Share>,
    frames: Frames,
}

impl Part {
    pub(super) fn new() -> Part {
        Part { share: None, frames: Frames::Everyone }
    }

    /// Takes a share as soon as there is one: what was taken before stays counted as it was.
    pub(super) fn claim(&mut self, quotas: &mut Quotas, pool: &Pool) {
        if self.share.is_none()
            && let Some(share) = pool.claim()
        {
            quotas.small = Quota::with_share(quotas.small.limit(), share.small);
            quotas.large = Quota::with_share(quotas.large.limit(), share.large);
            self.share = Some(share);
        }
    }

    /// Of frame blocks.
    pub(super) fn frames(&self) -> Quota {
        Quota::new(match self.frames {
            Frames::Everyone | Frames::Claimed { .. } => SERVED_FRAME_BLOCKS,
            Frames::Nobody => 0,
        })
    }

    /// What can be agreed on with whoever asks for this.
    pub(super) fn agree(&mut self, (caps, ext): (Caps, Ext), pool: &Pool) -> (Caps, Ext) {
        if !pool.shares_frames() {
            return (caps, ext);
        }
        // Given back before it is asked for again, where a client greets twice.
        self.frames = Frames::Nobody;
        let bounded = ext.has(Ext::LARGE);
        // LZ4 gains nothing from more than 512 KiB; who does not know of the bound may send 4 MiB of anything.
        let codecs = Caps(caps.0 & (Caps::LZ4.0 | Caps::ZSTD.0));
        if if bounded { codecs.has(Caps::ZSTD) } else { codecs != Caps::NONE }
            && let Some(claim) = pool.claim_frames()
        {
            self.frames = Frames::Claimed { _claim: claim };
            return (caps, ext);
        }
        match bounded {
            true => (caps, Ext(ext.0 & !Ext::LARGE.0)),
            false => (Caps(caps.0 & !codecs.0), ext),
        }
    }
}

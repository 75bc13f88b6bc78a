//! How a server's session begins: what it offers, and what is agreed on.

use super::{CAPS, DIRECT_CAPS, Phase, SESSION_EXT, Server};
use crate::limits::OFFLOAD_THREADS;
use crate::session::codec::Policy;
use crate::session::sealed::Records;
use crate::session::{Context, Terms};
use crate::wire::compress::Codec;
use crate::wire::decode::Role;
use crate::wire::frame::{Caps, ErrorCode, Ext, Frame};
use crate::wire::hello::{self, Greeting, ServerOffer};
use crate::wire::seal::Seals;

impl Server {
    fn offer(&self) -> ServerOffer {
        let ext = if self.files.names_process() { SESSION_EXT.or(Ext::GATHER) } else { SESSION_EXT };
        match (&self.secret, &self.direct) {
            (Some(_), _) => ServerOffer { caps: DIRECT_CAPS, ext: Ext::NONE },
            (None, Some(_)) => ServerOffer { caps: Caps(CAPS).or(Caps::DIRECT_TCP), ext: ext.or(Ext::KEYED) },
            (None, None) => ServerOffer { caps: Caps(CAPS), ext },
        }
    }

    pub(super) fn agree(&mut self, terms: Terms) {
        self.terms = terms;
        self.codec = Policy::new(Codec::agreed(terms.caps), terms.is_adaptive(), OFFLOAD_THREADS);
        self.link.set_dialect(terms.dialect);
        self.phase = Phase::Serving;
    }

    pub(super) fn on_hello(&mut self, frame: &Frame, cx: &mut Context<'_>) {
        let &Frame::Hello { version, caps, ext } = frame else { return self.no_hello() };
        let (caps, shared) = self.part.agree((caps, ext.unwrap_or(Ext::NONE)), cx.pool);
        let ext = ext.map(|_| shared);
        self.quotas.frame = self.part.frames();
        match hello::answer(Greeting { version, caps, ext }, self.offer()) {
            Ok((agreed, _)) if self.secret.is_some() && !agreed.caps.has(Caps::AEAD) => {
                let message = b"CAP_AEAD is required on a direct connection".to_vec();
                self.send(&Frame::Error { message, code: ErrorCode::PROTOCOL });
                self.phase = Phase::Draining;
            }
            Ok((agreed, welcome)) => {
                self.send(&welcome);
                self.agree(Terms { dialect: agreed.dialect, caps: agreed.caps });
                if let Some(secret) = &self.secret {
                    self.link.seal(Seals::base(secret, Role::Server), Records::Base, cx);
                }
            }
            Err(mismatch) => {
                self.send(&mismatch.frame());
                self.phase = Phase::Draining;
            }
        }
    }

    pub(super) fn no_hello(&mut self) {
        let message = b"the first frame must be Hello".to_vec();
        self.send(&Frame::Error { message, code: ErrorCode::PROTOCOL });
        self.phase = Phase::Draining;
    }
}

//! The arithmetic of Hello and Welcome.
//!
//! Owns what two ends agree on, as pure functions; when the frames are sent is the session's business.
//!
//! ```text
//! client                                             server
//! Hello{version, caps, ext?}  ------------------->   answer(hello, offer)
//! accept(hello, welcome)      <-------------------   Welcome{version, caps & offer, (ext & offer)?}
//!                             or Error "protocol version mismatch: client=9 server=2", then the end
//! ```
//!
//! Versions 1 and 2 are served; the answer mirrors the client's number. Extensions exist in version 1 only, and only
//! towards a client that sent the field: version-2 base peers drop a greeting with bytes behind the caps.

use super::frame::{Caps, Dialect, ErrorCode, Ext, Frame};

/// The newest version spoken.
pub const LATEST_VERSION: u8 = 2;

const MISMATCH: &str = "protocol version mismatch: ";

/// The content of Hello or of Welcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// Protocol version.
    pub version: u8,
    /// Capabilities asked for, or granted.
    pub caps: Caps,
    /// Extensions asked for, or granted; `None` leaves the field out.
    pub ext: Option<Ext>,
}

impl Greeting {
    /// As the client sends it.
    pub fn hello(self) -> Frame {
        Frame::Hello { version: self.version, caps: self.caps, ext: self.ext }
    }

    /// As the server sends it.
    pub fn welcome(self) -> Frame {
        Frame::Welcome { version: self.version, caps: self.caps, ext: self.ext }
    }
}

/// What a server is willing to do on this kind of session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerOffer {
    /// Capabilities.
    pub caps: Caps,
    /// Extensions, towards version-1 clients that ask.
    pub ext: Ext,
}

/// What both ends will do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// Layout of everything after the greetings.
    pub dialect: Dialect,
    /// Capabilities in force.
    pub caps: Caps,
}

/// A client whose version is not served. Its text goes out as an Error frame, and the session ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{MISMATCH}client={client} server={server}")]
pub struct VersionMismatch {
    /// What the client speaks.
    pub client: u8,
    /// What this server would rather speak.
    pub server: u8,
}

impl VersionMismatch {
    /// The reply.
    pub fn frame(&self) -> Frame {
        Frame::Error { message: self.to_string().into_bytes(), code: ErrorCode::PROTOCOL }
    }
}

/// The server's side: what is agreed, and the Welcome that says so.
pub fn answer(hello: Greeting, offer: ServerOffer) -> Result<(Agreed, Frame), VersionMismatch> {
    let Greeting { version, caps, ext } = hello;
    if !(1..=LATEST_VERSION).contains(&version) {
        return Err(VersionMismatch { client: version, server: LATEST_VERSION });
    }
    let caps = caps.and(offer.caps);
    let ext = ext.filter(|_| version == 1).map(|asked| asked.and(offer.ext));
    let agreed = Agreed { dialect: Dialect { version, ext: ext.unwrap_or(Ext::NONE) }, caps };
    Ok((agreed, Greeting { version, caps, ext }.welcome()))
}

/// The client's side: never more than it asked for, whatever the server claims. The version is the one sent; base
/// servers are not held to the number in their Welcome.
pub fn accept(sent: Greeting, welcome: Greeting) -> Agreed {
    let ext = match (sent.ext, welcome.ext) {
        (Some(asked), Some(granted)) if sent.version == 1 => asked.and(granted),
        _ => Ext::NONE,
    };
    Agreed { dialect: Dialect { version: sent.version, ext }, caps: sent.caps.and(welcome.caps) }
}

#[cfg(test)]
mod tests {
    use super::{Agreed, Greeting, ServerOffer, accept, answer};
    use crate::wire::frame::{Caps, Dialect, Ext};

    const OFFER: ServerOffer = ServerOffer { caps: Caps(0xbf), ext: Ext(0x0f) };

    fn greeting(version: u8, caps: u8, ext: Option<u32>) -> Greeting {
        Greeting { version, caps: Caps(caps), ext: ext.map(Ext) }
    }

    fn agreed(version: u8, caps: u8, ext: u32) -> Agreed {
        Agreed { dialect: Dialect { version, ext: Ext(ext) }, caps: Caps(caps) }
    }

    #[test]
    fn both_versions_are_mirrored_and_ext_is_granted_only_where_it_was_asked_for_in_version_1() {
        let cases = [
            (greeting(1, 0x07, None), agreed(1, 0x07, 0), greeting(1, 0x07, None)),
            (greeting(2, 0xc7, None), agreed(2, 0x87, 0), greeting(2, 0x87, None)),
            (greeting(1, 0x07, Some(0x1f)), agreed(1, 0x07, 0x0f), greeting(1, 0x07, Some(0x0f))),
            (greeting(1, 0x07, Some(0)), agreed(1, 0x07, 0), greeting(1, 0x07, Some(0))),
            (greeting(2, 0x07, Some(0x0f)), agreed(2, 0x07, 0), greeting(2, 0x07, None)),
        ];
        for (hello, expected, welcome) in cases {
            assert_eq!(answer(hello, OFFER), Ok((expected, welcome.welcome())), "{hello:?}");
            assert_eq!(accept(hello, welcome), expected, "{hello:?}");
        }
    }

    #[test]
    fn a_client_never_takes_more_than_it_asked_for() {
        let granted = greeting(1, 0xff, Some(0xffff_ffff));
        assert_eq!(accept(greeting(1, 0x03, Some(0x05)), granted), agreed(1, 0x03, 0x05));
        assert_eq!(accept(greeting(1, 0x03, None), granted), agreed(1, 0x03, 0));
        assert_eq!(accept(greeting(2, 0x03, Some(0x05)), granted), agreed(2, 0x03, 0));
    }

    #[test]
    fn an_unknown_version_is_refused_with_a_text_that_names_ours() {
        for version in [0, 3, 9, 255] {
            let mismatch = answer(greeting(version, 0, None), OFFER).unwrap_err();
            assert_eq!(mismatch.to_string(), format!("protocol version mismatch: client={version} server=2"));
        }
    }
}

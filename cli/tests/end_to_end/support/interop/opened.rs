//! What was said over a direct connection: its greetings are read, and its records opened with the key that went through
//! ssh. Both schemes: that of the base protocol, and the one between two haul peers.

use super::raw::{self, Raw, kind};
use super::relay::Socket;
use super::traffic::Recorded;
use anyhow::{Context as _, Result, anyhow, ensure};
use haul_engine::wire::decode::Role;
use haul_engine::wire::seal::{LENGTH_BYTES, Opener, Seals, Secret, record_len};

/// Bytes of KeyedHello in front of its proof: a random number, an index, and what is asked for.
const KEYED_HELLO: usize = 32 + 2 + 1 + 4;
/// The same of KeyedWelcome: what is granted.
const KEYED_WELCOME: usize = 1 + 4;

/// The frames behind the greetings. Fails unless all of it was sealed as it must be.
pub fn opened(socket: &Socket) -> Result<Recorded> {
    let (mut up, mut down) = (socket.up.as_slice(), socket.down.as_slice());
    let secret = Secret::from_bytes(socket.key);
    let challenge = greeting(&mut down, kind::AUTH_CHALLENGE)?;
    let nonce: [u8; 32] = challenge.fields().raw().context("AuthChallenge is cut")?;
    if up.get(4) == Some(&kind::KEYED_HELLO) {
        let hello = greeting(&mut up, kind::KEYED_HELLO)?;
        let welcome = greeting(&mut down, kind::KEYED_WELCOME)?;
        let asked = hello.body.get(..KEYED_HELLO).context("KeyedHello is cut")?;
        let granted = welcome.body.get(..KEYED_WELCOME).context("KeyedWelcome is cut")?;
        let transcript = [&nonce, asked, granted].concat();
        let opener = |role| Seals::keyed(&secret, &transcript, role).opener;
        let (up, down) = (records(up, opener(Role::Server))?, records(down, opener(Role::Client))?);
        return Ok(Recorded::new(up.concat(), down.concat()));
    }
    greeting(&mut up, kind::AUTH_HELLO)?;
    greeting(&mut up, kind::HELLO)?;
    greeting(&mut down, kind::WELCOME)?;
    let opener = |role| Seals::base(&secret, role).opener;
    let (up, down) = (records(up, opener(Role::Server))?, records(down, opener(Role::Client))?);
    for record in up.iter().chain(&down) {
        let frames = raw::split(record).map_err(|why| anyhow!("in a record, {why}"))?;
        ensure!(frames.len() == 1, "a record has {} frames", frames.len());
    }
    Ok(Recorded::new(up.concat(), down.concat()))
}

/// The next frame of a stream that is not sealed yet.
fn greeting<'a>(stream: &mut &'a [u8], kind: u8) -> Result<Raw<'a>> {
    let (frame, rest) = raw::first(stream).map_err(|why| anyhow!("in the greetings, {why}"))?;
    ensure!(frame.kind == kind, "there is {:#04x} in place of {kind:#04x}: {:?}", frame.kind, frame.error());
    *stream = rest;
    Ok(frame)
}

/// What is in the records of one direction.
fn records(mut stream: &[u8], mut opener: Opener) -> Result<Vec<Vec<u8>>> {
    let mut plain = Vec::new();
    while !stream.is_empty() {
        let head = *stream.first_chunk::<LENGTH_BYTES>().context("the length of a record is cut")?;
        let (record, rest) = stream.split_at_checked(record_len(head)?).context("a record is cut")?;
        let mut record = record.to_vec();
        let place = opener.next()?.open(&mut record)?;
        plain.push(record[place].to_vec());
        stream = rest;
    }
    Ok(plain)
}

//! What the record of a run proves.

use super::raw::{self, Fields, Raw, kind};
use anyhow::{Context as _, Result, anyhow, ensure};
use std::fs;
use std::path::Path;

/// Every session of a run.
pub struct Traffic {
    pub sessions: Vec<Recorded>,
}

/// The bytes of one session.
pub struct Recorded {
    up: Vec<u8>,
    down: Vec<u8>,
}

/// Payloads on their way in one direction.
#[derive(Default, PartialEq, Eq, Debug, Clone)]
pub struct Payload {
    /// Frames with content.
    pub frames: usize,
    /// Bytes in Data.
    pub plain: u64,
    /// Bytes in DataCompressed once they are decompressed, by codec: 0 is none, and never seen.
    pub packed: [u64; 3],
}

impl Traffic {
    /// Reads what the servers' scripts have written.
    pub fn read(record: &Path) -> Result<Traffic> {
        let mut sessions = Vec::new();
        for entry in fs::read_dir(record)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "c2s") {
                sessions.push(Recorded { up: fs::read(&path)?, down: fs::read(path.with_extension("s2c"))? });
            }
        }
        Ok(Traffic { sessions })
    }

    /// What the client sent.
    pub fn up(&self) -> Result<Vec<Raw<'_>>> {
        self.all(|session| session.frames().map(|(up, _)| up))
    }

    /// What the servers sent.
    pub fn down(&self) -> Result<Vec<Raw<'_>>> {
        self.all(|session| session.frames().map(|(_, down)| down))
    }

    /// How many sessions carried content to the server, and how many from it.
    pub fn carriers(&self) -> Result<(usize, usize)> {
        let mut carriers = (0, 0);
        for session in &self.sessions {
            let (up, down) = session.frames()?;
            carriers.0 += usize::from(Payload::of(&up)?.frames > 0);
            carriers.1 += usize::from(Payload::of(&down)?.frames > 0);
        }
        Ok(carriers)
    }

    fn all<'a>(&'a self, of: impl Fn(&'a Recorded) -> Result<Vec<Raw<'a>>>) -> Result<Vec<Raw<'a>>> {
        Ok(self.sessions.iter().map(of).collect::<Result<Vec<_>>>()?.concat())
    }
}

impl Recorded {
    pub fn new(up: Vec<u8>, down: Vec<u8>) -> Recorded {
        Recorded { up, down }
    }

    /// Both directions.
    pub fn frames(&self) -> Result<(Vec<Raw<'_>>, Vec<Raw<'_>>)> {
        let split = |bytes| raw::split(bytes).map_err(|why| anyhow!(why));
        Ok((split(&self.up).context("from the client")?, split(&self.down).context("from the server")?))
    }
}

/// The frames of this type.
pub fn of_kind<'a, 'b>(frames: &'b [Raw<'a>], kind: u8) -> Vec<&'b Raw<'a>> {
    frames.iter().filter(|frame| frame.kind == kind).collect()
}

/// The one frame of this type.
pub fn only<'a, 'b>(frames: &'b [Raw<'a>], kind: u8) -> Result<&'b Raw<'a>> {
    let found = of_kind(frames, kind);
    ensure!(found.len() == 1, "there are {} frames of type {kind:#04x} where one is expected", found.len());
    Ok(found[0])
}

impl Payload {
    pub fn of(frames: &[Raw<'_>]) -> Result<Payload> {
        let mut payload = Payload::default();
        for frame in frames {
            let mut fields = frame.fields();
            match frame.kind {
                kind::DATA => payload.plain += fields.bytes().context("Data is cut")?.len() as u64,
                kind::DATA_COMPRESSED => {
                    let (codec, original) = head(&mut fields).context("DataCompressed is cut")?;
                    let place = payload.packed.get_mut(usize::from(codec)).filter(|_| codec != 0);
                    *place.with_context(|| format!("there is no codec {codec}"))? += u64::from(original);
                }
                _ => continue,
            }
            payload.frames += 1;
        }
        Ok(payload)
    }

    /// Content as it was before it was compressed.
    pub fn total(&self) -> u64 {
        self.plain + self.packed.iter().sum::<u64>()
    }

    /// Fails unless text went compressed with `codec`, noise as it is, and nothing any other way; 0 for no codec at all.
    pub fn is_packed_with(&self, codec: u8) -> Result<()> {
        for (number, &bytes) in self.packed.iter().enumerate().skip(1) {
            ensure!((bytes > 0) == (number == usize::from(codec)), "{bytes} bytes went with codec {number}: {self:?}");
        }
        ensure!(self.plain > 0, "noise was not sent as it is: {self:?}");
        Ok(())
    }
}

fn head(fields: &mut Fields<'_>) -> Option<(u8, u32)> {
    Some((fields.u8()?, fields.u32()?))
}

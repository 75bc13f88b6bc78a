//! The fields of SFTP packets: big endian numbers, byte strings with a length, and attributes.
//!
//! Owns their layout; which packet carries what is the session's business. The server is not trusted: a field that runs
//! past the end of its packet ends the session.

use super::{Result, Trouble};
use haul_engine::wire::frame::Kind;

/// What is known of a file; what the server does not say is absent.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Attrs {
    pub(crate) size: Option<u64>,
    /// Kind and permission bits, as in `st_mode`.
    pub(crate) mode: Option<u32>,
    /// Seconds since 1970.
    pub(crate) mtime: Option<u32>,
}

impl Attrs {
    pub(crate) fn kind(&self) -> Kind {
        match self.mode.unwrap_or(0o100_000) & 0o170_000 {
            0o040_000 => Kind::Directory,
            0o120_000 => Kind::Symlink,
            0o010_000 => Kind::Fifo,
            0o140_000 => Kind::Socket,
            0o020_000 => Kind::CharDevice,
            0o060_000 => Kind::BlockDevice,
            _ => Kind::Regular,
        }
    }
}

/// The fields of a packet while they are written.
#[derive(Default)]
pub(super) struct Fields(pub(super) Vec<u8>);

impl Fields {
    pub(super) fn u32(mut self, number: u32) -> Fields {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, number: u64) -> Fields {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub(super) fn bytes(self, bytes: &[u8]) -> Fields {
        // Nothing here is longer than a path or a chunk.
        let mut fields = self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        fields.0.extend_from_slice(bytes);
        fields
    }

    pub(super) fn attrs(self, attrs: &Attrs) -> Fields {
        let mut fields = self.u32(u32::from(attrs.mode.is_some()) << 2 | u32::from(attrs.mtime.is_some()) << 3);
        if let Some(mode) = attrs.mode {
            fields = fields.u32(mode & 0o7777);
        }
        if let Some(mtime) = attrs.mtime {
            fields = fields.u32(mtime).u32(mtime);
        }
        fields
    }
}

/// The fields of a packet while they are read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.take(4)?.try_into().map(u32::from_be_bytes).map_err(|_| malformed())
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.take(8)?.try_into().map(u64::from_be_bytes).map_err(|_| malformed())
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8]> {
        let count = self.u32()?;
        self.take(count as usize)
    }

    pub(super) fn attrs(&mut self) -> Result<Attrs> {
        let flags = self.u32()?;
        let mut attrs = Attrs::default();
        if flags & 1 != 0 {
            attrs.size = Some(self.u64()?);
        }
        if flags & 2 != 0 {
            self.take(8)?;
        }
        if flags & 4 != 0 {
            attrs.mode = Some(self.u32()?);
        }
        if flags & 8 != 0 {
            self.u32()?;
            attrs.mtime = Some(self.u32()?);
        }
        if flags & 0x8000_0000 != 0 {
            for _ in 0..self.u32()? {
                self.bytes()?;
                self.bytes()?;
            }
        }
        Ok(attrs)
    }
}

/// What came is not SFTP.
pub(super) fn malformed() -> Trouble {
    Trouble::Lost("the server does not speak SFTP".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_whichever_of_them_are_there() {
        let table: [(&[u8], Attrs); 4] = [
            (b"\0\0\0\0", Attrs::default()),
            (b"\0\0\0\x01\0\0\0\0\0\0\x01\0", Attrs { size: Some(256), ..Attrs::default() }),
            (
                b"\0\0\0\x0e\0\0\0\x01\0\0\0\x02\0\0\x41\xed\0\0\0\x03\0\0\0\x04",
                Attrs { mode: Some(0o040_755), mtime: Some(4), ..Attrs::default() },
            ),
            (b"\x80\0\0\0\0\0\0\x01\0\0\0\x01a\0\0\0\x01b", Attrs::default()),
        ];
        for (bytes, attrs) in table {
            let mut reader = Reader(bytes);
            assert_eq!(reader.attrs().unwrap(), attrs);
            assert!(reader.0.is_empty());
            for cut in 0..bytes.len() {
                assert!(Reader(&bytes[..cut]).attrs().is_err(), "{bytes:?} cut at {cut}");
            }
        }
        assert!(Reader(b"\x80\0\0\0\xff\xff\xff\xff").attrs().is_err());
    }

    #[test]
    fn what_is_set_is_what_is_read_back() {
        let attrs = Attrs { mode: Some(0o640), mtime: Some(1_700_000_000), size: None };
        let fields = Fields::default().u32(7).u64(1 << 40).bytes(b"name").attrs(&attrs);
        let mut reader = Reader(&fields.0);
        assert_eq!((reader.u32().unwrap(), reader.u64().unwrap(), reader.bytes().unwrap()), (7, 1 << 40, &b"name"[..]));
        assert_eq!(reader.attrs().unwrap(), attrs);
        assert!(matches!(reader.u32(), Err(Trouble::Lost(_))));
    }

    #[test]
    fn the_kind_is_told_by_the_mode() {
        let table = [
            (0o040_755, Kind::Directory),
            (0o120_777, Kind::Symlink),
            (0o100_644, Kind::Regular),
            (0o010_644, Kind::Fifo),
            (0o140_644, Kind::Socket),
            (0o020_644, Kind::CharDevice),
            (0o060_644, Kind::BlockDevice),
        ];
        for (mode, kind) in table {
            assert_eq!(Attrs { mode: Some(mode), ..Attrs::default() }.kind(), kind);
        }
        assert_eq!(Attrs::default().kind(), Kind::Regular, "who does not say is asked for the content");
    }
}

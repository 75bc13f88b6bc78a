//! Trees to copy.

use super::random_file;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Sizes at which something changes: small blocks, large blocks, the blocks of the protocol.
pub const SIZES: [usize; 11] = [
    0,
    1,
    64 * KIB - 1,
    64 * KIB,
    64 * KIB + 1,
    512 * KIB - 1,
    512 * KIB,
    512 * KIB + 1,
    4 * MIB - 1,
    4 * MIB,
    4 * MIB + 1,
];

/// One file of each size, called by its size.
pub fn files_of_sizes(dir: &Path, sizes: &[usize]) -> Vec<PathBuf> {
    fs::create_dir_all(dir).unwrap();
    let file = |&size: &usize| {
        let path = dir.join(size.to_string());
        random_file(&path, size, size as u64);
        path
    };
    sizes.iter().map(file).collect()
}

/// A directory for thousands of files: in memory where there is room, because some file systems take their time over new
/// inodes while others are being freed (ext4 without a journal: 10 s in place of 1 s for 10,000 files, on 2026-11-22).
pub fn scratch() -> tempfile::TempDir {
    const ROOM: u64 = 1 << 30;
    let memory = Path::new("/dev/shm");
    let roomy = rustix::fs::statvfs(memory).is_ok_and(|space| space.f_bavail.saturating_mul(space.f_frsize) >= ROOM);
    let in_memory = roomy.then(|| tempfile::tempdir_in(memory).ok()).flatten();
    in_memory.unwrap_or_else(|| tempfile::tempdir().unwrap())
}

/// `count` files of a few bytes, a hundred in each directory.
pub fn small_files(dir: &Path, count: usize) {
    for number in 0..count {
        let parent = dir.join(format!("{:03}", number / 100));
        if number % 100 == 0 {
            fs::create_dir_all(&parent).unwrap();
        }
        let content = number.to_string().repeat(number % 50);
        fs::write(parent.join(format!("file-{number}")), content).unwrap();
    }
}

/// A directory in a directory and so on, with a file in each.
pub fn deep_tree(dir: &Path, levels: usize) {
    let mut at = dir.to_path_buf();
    for level in 0..levels {
        at.push(format!("level-{level}"));
        fs::create_dir_all(&at).unwrap();
        fs::write(at.join("file"), level.to_string()).unwrap();
    }
}

/// A gibibyte that takes a few blocks on disk: content at the beginning, around a block's edge and at the end.
pub fn sparse_gibibyte(path: &Path) {
    const GIB: u64 = 1 << 30;
    let file = fs::File::create(path).unwrap();
    file.set_len(GIB).unwrap();
    for offset in [0, 512 * KIB as u64 - 7, GIB / 2 + 1, GIB - 14] {
        file.write_all_at(b"not only zeros", offset).unwrap();
    }
}

/// Names that are legal and seldom seen.
pub fn odd_names() -> Vec<OsString> {
    let mut names: Vec<Vec<u8>> = [
        " ",
        " a  b ",
        "it's",
        "\"quoted\"",
        "line\nbreak",
        "\n",
        "return\r",
        "tab\t",
        "back\\slash",
        "ends in \\",
        "\\n",
        "-",
        "-r",
        "--",
        "--help",
        "~",
        "~root",
        "*",
        "?[a-z]",
        "$HOME",
        "$(id)",
        "`id`",
        "a;b",
        "a&b",
        "a|b",
        "a>b",
        "#",
        "!",
        "{a,b}",
        "a:b",
        "far:x",
        "[::1]:x",
        "...",
        "..x",
        "%41",
        "=",
        ".hidden",
        "é",
        "e\u{301}",
        "日本",
        "\u{202e}x",
        "\x1b[31m",
        "\u{7f}",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.extend([
        b"\xff".to_vec(),
        b"latin-\xe9".to_vec(),
        b"\xc3".to_vec(),
        b"\xed\xa0\x80".to_vec(),
        b"\x01\x80".to_vec(),
    ]);
    names.extend([vec![b'n'; 255], vec![0xfe; 255], "ü".repeat(127).into_bytes()]);
    names.into_iter().map(OsString::from_vec).collect()
}

/// Modification times with every digit of the nanoseconds in use, before and after the epoch.
pub fn set_mtime(path: &Path, seconds: i64) {
    let second = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { UNIX_EPOCH - second } else { UNIX_EPOCH + second };
    fs::File::open(path).unwrap().set_modified(base + Duration::from_nanos(123_456_789)).unwrap();
}

/// Sets the permission bits.
pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Files and directories of many modes and times, all readable by their owner. Directories that may not be written hold
/// something; give it to [`let_go`] so that it can be removed.
pub fn modes_and_times(dir: &Path) {
    fs::create_dir_all(dir.join("empty")).unwrap();
    for (number, mode) in [0o644, 0o400, 0o444, 0o600, 0o666, 0o755, 0o777, 0o500].into_iter().enumerate() {
        let path = dir.join(format!("{mode:o}"));
        fs::write(&path, format!("{mode:o}")).unwrap();
        set_mtime(&path, 1_000_000_000 + number as i64);
        set_mode(&path, mode);
    }
    set_mtime(&dir.join("644"), -86_400);
    for (number, mode) in [0o755, 0o700, 0o555, 0o500, 0o777, 0o1777].into_iter().enumerate() {
        let path = dir.join(format!("dir-{mode:o}"));
        fs::create_dir_all(path.join("inner")).unwrap();
        fs::write(path.join("inner/file"), "x").unwrap();
        fs::write(path.join("file"), "y").unwrap();
        set_mtime(&path.join("inner"), 900_000_000 + number as i64);
        set_mtime(&path, 800_000_000 + number as i64);
        set_mode(&path.join("inner"), mode);
        set_mode(&path, mode);
    }
    set_mtime(&dir.join("empty"), 0);
}

/// Makes every directory below `dir` writable again.
pub fn let_go(dir: &Path) {
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o777));
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            let_go(&entry.path());
        }
    }
}

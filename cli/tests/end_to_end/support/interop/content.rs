//! What is copied: text that every codec makes smaller, and noise that none does.

use super::raw::BLOCK;
use crate::support::trees;
use std::fs;
use std::path::{Path, PathBuf};

/// Files and trees that all runs read and none changes.
pub struct Sources {
    dir: tempfile::TempDir,
}

/// Files for several connections: more than the first asks for before the others have come.
const POOL_FILES: usize = 500;
const POOL_FILE_SIZE: usize = 128 << 10;
/// Blocks of the file for dedup.
pub const DEDUP_BLOCKS: usize = 16;
/// The block that is another one in the second file for dedup; it is text.
pub const CHANGED_BLOCK: usize = 6;

impl Sources {
    pub fn new() -> Sources {
        let dir = trees::scratch();
        let path = dir.path();
        fs::write(path.join("mixed"), [text(BLOCK, 1), noise(BLOCK, 1)].concat()).unwrap();
        let mut blocks: Vec<Vec<u8>> = (0..DEDUP_BLOCKS as u64)
            .map(|number| if number % 2 == 0 { text(BLOCK, 100 + number) } else { noise(BLOCK, 100 + number) })
            .collect();
        fs::write(path.join("blocks"), blocks.concat()).unwrap();
        fs::write(path.join("striped"), [blocks.concat(), text(13, 5)].concat()).unwrap();
        blocks[CHANGED_BLOCK] = text(BLOCK, 200);
        fs::write(path.join("changed"), blocks.concat()).unwrap();
        tree(&path.join("tree"));
        link_tree(&path.join("tree"), &path.join("pool"));
        let parts = [text(POOL_FILE_SIZE, 4), noise(POOL_FILE_SIZE, 4)];
        for number in 0..POOL_FILES {
            fs::write(path.join(format!("pool/{number}")), &parts[number % 2]).unwrap();
        }
        Sources { dir }
    }

    /// 4 MiB of text, then 4 MiB of noise.
    pub fn mixed(&self) -> PathBuf {
        self.dir.path().join("mixed")
    }

    /// Blocks for dedup, text and noise by turns.
    pub fn blocks(&self) -> PathBuf {
        self.dir.path().join("blocks")
    }

    /// The same with one block changed.
    pub fn changed(&self) -> PathBuf {
        self.dir.path().join("changed")
    }

    /// The blocks and a bit more: large enough to go in ranges.
    pub fn striped(&self) -> PathBuf {
        self.dir.path().join("striped")
    }

    /// A directory called `tree`.
    pub fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    /// The same with many more files, a directory called `pool`.
    pub fn pool(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    /// A directory in the same file system.
    pub fn beside(&self) -> tempfile::TempDir {
        tempfile::Builder::new().prefix("run-").tempdir_in(self.dir.path()).unwrap()
    }
}

/// Names and sizes at which something is different, a large file of each sort, and directories with and without content.
fn tree(dir: &Path) {
    for name in ["empty directory", "a/b/c", "many"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::write(dir.join("a/text"), text(5_000_001, 2)).unwrap();
    fs::write(dir.join("a/b/noise"), noise(5_000_003, 2)).unwrap();
    for (name, size) in [("empty", 0), ("one", 1), ("a/it's", 70_000), ("a/b/c/Grüße \"q\"", 4097), ("-x", 12)] {
        fs::write(dir.join(name), text(size, 3)).unwrap();
    }
    for number in 0..60 {
        fs::write(dir.join(format!("many/{number}")), text(37 * number, number as u64)).unwrap();
    }
}

/// Words in an order that the seed decides.
pub fn text(len: usize, seed: u64) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "submission ",
        "completion ",
        "backend ",
        "frame ",
        "block ",
        "record ",
        "stream ",
        "window ",
        "token ",
        "the ",
        "of ",
        "and\n",
        "session ",
        "server ",
        "client ",
        "a ",
    ];
    let choices = noise(len / 2 + 1, seed);
    let mut text = Vec::with_capacity(len + 16);
    for choice in choices {
        if text.len() >= len {
            break;
        }
        text.extend_from_slice(WORDS[usize::from(choice % 16)].as_bytes());
    }
    text.truncate(len);
    text
}

/// Bytes without any order.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut content = vec![0; len];
    blake3::Hasher::new().update(b"noise").update(&seed.to_le_bytes()).finalize_xof().fill(&mut content);
    content
}

/// The same tree under another name; its files are the same, not copies.
pub fn link_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            link_tree(&entry.path(), &target);
        } else {
            fs::hard_link(entry.path(), target).unwrap();
        }
    }
}

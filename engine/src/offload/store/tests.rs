//! What can only be seen from inside: without nameless files and copies in the kernel, cancelled, and after a kill.

use super::*;
use crate::offload::create::{self, create};
use crate::offload::open::write_all;
use crate::offload::{OLD_KERNEL, Root};
use crate::wire::path::{RequestPath, Target};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

static GO_ON: AtomicBool = AtomicBool::new(false);
static GIVE_UP: AtomicBool = AtomicBool::new(true);

struct Rig {
    store: BlockStore,
    root: Root,
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::plain(fs::File::open(dir.path()).unwrap().into());
        let identity = RootIdentity { path: Vec::new(), device: 0, inode: 0 };
        Rig { store: BlockStore::open(&dir.path().join("store"), &identity, Some(1 << 20)), root, dir }
    }

    fn making(&self, content: &[u8]) -> OpenFile {
        let target = Target { operand: RequestPath::parse(b"new").unwrap(), below: None };
        let wanted = create::Wanted { size: 0, keep: 0, overwrite: true, brief: false, mode: None };
        let (file, _) = create(&self.root, &target, wanted, &GO_ON).unwrap();
        write_all(&file, 0, content).unwrap();
        file
    }

    fn scope(&self) -> PathBuf {
        self.dir.path().join("store").join(std::str::from_utf8(&hex(&self.store.0.scope)).unwrap())
    }

    /// Names in our scope, its outer directories.
    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.scope()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn wanted(size: usize, hashes: &[Hash]) -> Wanted<'_> {
    Wanted { size: size as u64, first: 0, hashes }
}

#[test]
fn without_nameless_files_and_copies_in_the_kernel_it_is_all_the_same() {
    for old in [false, true] {
        OLD_KERNEL.set(old);
        let rig = Rig::new();
        let content = vec![7; 300_000];
        let block = BlockHash::of(0, &content);
        let (hash, wrong) = ([block.plain], [[9; 32]]);
        let from = rig.making(&content);
        rig.store.keep(&from, wanted(300_000, &wrong), &GO_ON).unwrap();
        assert_eq!(rig.names(), [""; 0], "a block with another hash leaves nothing");
        for _ in 0..2 {
            rig.store.keep(&from, wanted(300_000, &hash), &GO_ON).unwrap();
            assert_eq!(rig.names(), [&blake3::Hash::from(block.plain).to_hex()[..2]]);
        }
        let to = rig.making(b"");
        assert_eq!(rig.store.fill(&to, wanted(300_000, &hash), &GO_ON), Ok(vec![Some(block)]));
        let mut copied = vec![0; 300_001];
        assert_eq!(read_full(to.fd(), 0, &mut copied), Ok(300_000));
        assert!(copied[..300_000] == content);
        OLD_KERNEL.set(false);
    }
}

#[test]
fn a_cancelled_operation_ends_between_two_blocks_and_says_so() {
    let rig = Rig::new();
    let content = vec![7; 1000];
    let hash = [BlockHash::of(0, &content).plain];
    let file = rig.making(&content);
    assert_eq!(rig.store.keep(&file, wanted(1000, &hash), &GIVE_UP), Err(Errno::CANCELLED));
    assert_eq!(rig.store.fill(&file, wanted(1000, &hash), &GO_ON), Ok(vec![None]));
    rig.store.keep(&file, wanted(1000, &hash), &GO_ON).unwrap();
    assert_eq!(rig.store.fill(&file, wanted(1000, &hash), &GIVE_UP), Err(Errno::CANCELLED));
}

#[test]
fn what_a_killed_process_left_goes_after_an_hour() {
    let rig = Rig::new();
    let content = vec![7; 1000];
    let hash = [BlockHash::of(0, &content).plain];
    fs::create_dir_all(rig.scope()).unwrap();
    for dir in [rig.scope().as_path(), rig.scope().parent().unwrap()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let (old, young) = (SystemTime::now() - Duration::from_secs(3700), SystemTime::now() - Duration::from_secs(3500));
    let left = [
        (".haul-0123456789abcdef.tmp", old, false),
        (".haul-fedcba9876543210.tmp", young, true),
        (".haul-0123456789abcdeg.tmp", old, true),
        (".haul-0123456789abcdef0.tmp", old, true),
        ("notes", old, true),
    ];
    for (name, time, _) in left {
        fs::File::create(rig.scope().join(name)).unwrap().set_modified(time).unwrap();
    }
    rig.store.keep(&rig.making(&content), wanted(1000, &hash), &GO_ON).unwrap();
    let mut expected: Vec<_> = left.iter().filter(|(.., stays)| *stays).map(|(name, ..)| name.to_string()).collect();
    expected.push(blake3::Hash::from(hash[0]).to_hex()[..2].to_string());
    expected.sort();
    assert_eq!(rig.names(), expected);
}

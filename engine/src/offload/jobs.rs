//! From an op to the function that carries it out. Runs on a helper thread and never sees an id.

use super::attributes::from_stat;
use super::names::{self, OpenDir};
use super::open::{self, Loaded, OpenFile};
use super::store::Wanted;
use super::{Held, clone, create, partial, publish, shared};
use crate::backend::{Errno, FsOp, OpKind, OpenMode, Output};
use crate::wire::frame::{Attributes, Unkept};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What a job brought: an output, or something that shall get an id.
pub(super) enum Made {
    Output(Output),
    File(Arc<OpenFile>, Attributes),
    Dir(Arc<OpenDir>, Attributes),
}

/// Carries one op out. `give_up` becomes true when a long job may end early with [`Errno::CANCELLED`]. As long as it is not
/// `urgent` it may end with [`Errno::LOCKED`], and is tried again.
pub(super) fn run(kind: &mut OpKind, held: &Held, urgent: bool, give_up: &AtomicBool) -> Result<Made, Errno> {
    match (kind, held) {
        (OpKind::Open { place, mode: OpenMode::Read }, Held::Root(root)) => {
            open::open(root, &place.target).map(|(file, attributes)| Made::File(Arc::new(file), attributes))
        }
        (OpKind::Open { place, mode: OpenMode::Create { size, keep, overwrite } }, Held::Root(root)) => {
            let want = create::Wanted { size: *size, keep: *keep, overwrite: *overwrite, brief: false, mode: None };
            create::create(root, &place.target, want, give_up)
                .map(|(file, attributes)| Made::File(Arc::new(file), attributes))
        }
        (OpKind::Open { place, mode: OpenMode::Continue { size, token } }, Held::Root(root)) => {
            let (file, attributes) = partial::open(root, &place.target, *size, urgent, give_up)?;
            let file = Arc::new(file);
            token.iter().for_each(|&token| shared::offer(token, &file));
            Ok(Made::File(file, attributes))
        }
        (OpKind::Open { place, mode: OpenMode::Shared { size, token } }, Held::Root(root)) => {
            shared::create(root, &place.target, *size, *token, give_up)
                .map(|(file, attributes)| Made::File(file, attributes))
        }
        (OpKind::Open { mode: OpenMode::Join { token }, .. }, Held::Root(_)) => {
            let file = shared::join(*token)?;
            let attributes = from_stat(&file.stat()?);
            // As long as it is being made, what is there of it says nothing.
            let size = if file.is_sink() { u64::MAX } else { attributes.size };
            let size = file.making().map_or(size, |making| making.wanted.size);
            let attributes = Attributes { size, ..attributes };
            Ok(Made::File(file, attributes))
        }
        (OpKind::Open { place, mode: OpenMode::InPlace { truncate } }, Held::Root(root)) => {
            create::in_place(root, &place.target, *truncate)
                .map(|(file, attributes)| Made::File(Arc::new(file), attributes))
        }
        (OpKind::Load { place, into }, Held::Root(root)) => match open::load(root, &place.target, into.bytes_mut())? {
            Loaded::Whole { attributes, len, grew } => Ok(Made::Output(Output::Loaded { attributes, len, grew })),
            Loaded::TooLarge(file, attributes) => Ok(Made::File(Arc::new(file), attributes)),
        },
        (OpKind::Store(store), Held::Root(root)) => {
            publish::store(root, &store.place.target, &store.from, &store.finish, store.overwrite).map(done_but)
        }
        (OpKind::Read { offset, into, len, .. }, Held::File(file)) => {
            let into = into.bytes_mut().get_mut(..*len).ok_or(Errno::INVALID)?;
            open::read(file, *offset, into).map(|bytes| Made::Output(Output::Bytes(bytes)))
        }
        (OpKind::Write { offset, from, .. }, Held::File(file)) => {
            open::write_all(file, *offset, from.bytes()).map(|()| done())
        }
        (OpKind::Publish { finish, .. }, Held::File(file)) => publish::publish(file, finish, give_up).map(done_but),
        // The id is out of the table; dropping what is held does the rest.
        (OpKind::Close { .. }, Held::File(_)) => Ok(done()),
        (OpKind::Compute(compute), Held::Nothing) => compute.run().map(Made::Output),
        (OpKind::Fs(fs), held) => run_fs(fs, held, give_up),
        _ => Err(Errno::INVALID),
    }
}

fn run_fs(op: &FsOp, held: &Held, give_up: &AtomicBool) -> Result<Made, Errno> {
    match (op, held) {
        (FsOp::Stat { place, follow }, Held::Root(root)) => names::stat(root, &place.target, *follow).map(Made::Output),
        (FsOp::StatOpen { past, .. }, Held::File(file)) => names::stat_open(file, *past).map(Made::Output),
        (FsOp::HashPart { offset, end, .. }, Held::File(file)) => {
            open::hash_part(file.fd(), *offset, *end, give_up).map(|hash| Made::Output(Output::Hashed(hash)))
        }
        (FsOp::HashBlocks { first, count, plain, .. }, Held::File(file)) => {
            open::hash_blocks(file, *first, *count, *plain, give_up)
                .map(|hashes| Made::Output(Output::BlockHashes(hashes)))
        }
        (FsOp::OpenDir { place }, Held::Root(root)) => {
            names::open_dir(root, &place.target).map(|(dir, attributes)| Made::Dir(Arc::new(dir), attributes))
        }
        (FsOp::ReadDir { .. }, Held::Dir(dir)) => dir.read_page().map(Made::Output),
        (FsOp::CloseDir { .. }, Held::Dir(_)) => Ok(done()),
        (FsOp::MakeDir { place }, Held::Root(root)) => names::make_dir(root, &place.target).map(|()| done()),
        (FsOp::SetMeta { place, attributes, preserve }, Held::Root(root)) => {
            names::set_meta(root, &place.target, attributes, *preserve).map(done_but)
        }
        (FsOp::MakeLink { place, text, attributes, preserve }, Held::Root(root)) => {
            names::make_link(root, &place.target, text, attributes, *preserve).map(done_but)
        }
        (FsOp::Clone { from, to, finish }, Held::Roots { from: from_root, to: to_root }) => {
            clone::clone((from_root, &from.target), (to_root, &to.target), finish, give_up).map(Made::Output)
        }
        (FsOp::FillBlocks { size, first, hashes, .. }, Held::Blocks { file, store }) => {
            let wanted = Wanted { size: *size, first: *first, hashes };
            store.fill(file, wanted, give_up).map(|blocks| Made::Output(Output::Blocks(blocks)))
        }
        (FsOp::KeepBlocks { size, first, hashes, .. }, Held::Blocks { file, store }) => {
            let wanted = Wanted { size: *size, first: *first, hashes };
            store.keep(file, wanted, give_up).map(|()| done())
        }
        _ => Err(Errno::INVALID),
    }
}

fn done_but(unkept: Unkept) -> Made {
    if unkept.is_empty() { done() } else { Made::Output(Output::Unkept(unkept)) }
}

fn done() -> Made {
    Made::Output(Output::Done)
}

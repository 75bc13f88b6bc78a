//! The backend contract on the io_uring backend, over the kernel of this machine: as the program uses it, without
//! splice, with registered buffers, and with a ring so small that every turn fills it.

#![cfg(target_os = "linux")]

use haul_engine::backend::{Attach, DirId};
use haul_engine::contract::{HostRig, Machine};
use haul_engine::offload::Root;
use haul_engine::uring::{Options, Uring};
use std::path::Path;

fn root(backend: &mut Uring, path: &Path) -> DirId {
    let directory = std::fs::File::open(path).expect("the temporary directory");
    let canonical = path.canonicalize().expect("its real name");
    backend.add_root(Root::confined(directory.into(), canonical))
}

macro_rules! variant {
    ($module:ident, $options:expr) => {
        mod $module {
            use super::*;

            struct Ring;

            impl Machine for Ring {
                type Backend = Uring;

                fn backend() -> Uring {
                    Uring::with($options).expect("io_uring on the test machine")
                }

                fn add_root(backend: &mut Uring, path: &Path) -> DirId {
                    root(backend, path)
                }
            }

            haul_engine::contract_tests!(HostRig<Ring>);
        }
    };
}

variant!(default, Options::default());
variant!(without_splice, Options { splice: false, ..Options::default() });
variant!(without_leased_pipes, Options { pipes: 0, ..Options::default() });
// A driver keeps one pool for as long as its backend.
variant!(registered, Options { registered: true, ..Options::default() });
variant!(tiny_ring, Options { entries: 4, offload_threads: 1, ..Options::default() });

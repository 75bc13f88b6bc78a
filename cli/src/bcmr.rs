//! This program called as `bcmr`: what clients of the base protocol start on the remote side.
//!
//! ```text
//! bcmr serve [--root DIR] [--listen ADDR]      as haul serve
//! bcmr --version                               the release whose clients find everything they know
//! ```

use crate::args::{self, Choice, ServeArgs};
use crate::serve;
use clap::Parser;
use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

/// The newest base release that this program is compatible with; its clients ask for it, and parse it.
const RELEASE: &str = "0.7.2";
/// What base programs exit with when the command line makes no sense.
const USAGE: u8 = 2;

/// Serves the base protocol. This is haul under another name; for everything else call it `haul`.
#[derive(Parser, Debug)]
#[command(name = "bcmr", version = RELEASE)]
struct Bcmr {
    #[arg(long, global = true, hide = true, value_enum)]
    backend: Option<Choice>,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Serve files on stdin and stdout, or on a TCP address.
    Serve(ServeArgs),
}

/// True when this is the name the program was called by.
pub(crate) fn is_name(called: Option<&OsStr>) -> bool {
    called.and_then(|called| Path::new(called).file_name()).is_some_and(|name| name == "bcmr")
}

/// Runs as `bcmr`.
pub(crate) fn run() -> ExitCode {
    match Bcmr::try_parse() {
        Ok(Bcmr { mut backend, command: Command::Serve(mut args) }) => {
            match args::complete_backend(&mut backend, true).and_then(|()| args::complete(&mut args)) {
                Ok(()) => serve::run(&args, backend.unwrap_or(Choice::Auto)).into(),
                Err(why) => {
                    crate::output::error(&why);
                    ExitCode::from(USAGE)
                }
            }
        }
        Err(error) => {
            let _ = error.print();
            if !error.use_stderr() {
                return ExitCode::SUCCESS;
            }
            crate::output::stderr(
                "hint: this is haul under another name, which only serves; to copy use `haul copy`, see `haul --help`",
            );
            ExitCode::from(USAGE)
        }
    }
}

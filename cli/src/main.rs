//! The `haul` binary: a table of contents.

#![forbid(unsafe_code)]

mod args;
mod backend;
mod bcmr;
mod copy;
mod core_dumps;
mod daemon;
mod demo;
mod direct;
mod doctor;
mod exit;
mod gather;
mod hash;
mod keygen;
mod links;
mod list;
mod open_files;
mod operand;
mod output;
mod plaintext;
mod remote;
mod run;
mod serve;
mod sftp;
mod signals;
mod store;
mod threads;
mod tuner;
mod unkept;
mod visits;

use args::{Command, Haul};
use exit::Exit;
use haul_engine::panics;
use std::process::ExitCode;

fn main() -> ExitCode {
    panics::quieten();
    open_files::raise_limit();
    core_dumps::refuse();
    panics::caught(begin).unwrap_or_else(|panicked| {
        output::error(&panicked.to_string());
        Exit::Stream.into()
    })
}

fn begin() -> ExitCode {
    if bcmr::is_name(std::env::args_os().next().as_deref()) {
        return bcmr::run();
    }
    let haul = match args::parse() {
        Ok(haul) => haul,
        Err(exit) => return exit.into(),
    };
    dispatch(haul).into()
}

fn dispatch(haul: Haul) -> Exit {
    let backend = haul.backend.unwrap_or(args::Choice::Auto);
    match haul.command {
        Command::Copy(args) => copy::run(&args, backend),
        Command::Serve(args) => serve::run(&args, backend),
        Command::Keygen(args) => keygen::run(&args),
        Command::Ls(args) => list::run(&args, backend),
        Command::Hash(args) => hash::run(&args, backend),
        Command::Doctor(args) => doctor::run(&args, backend),
        Command::Demo(args) => demo::run(&args, backend),
    }
}

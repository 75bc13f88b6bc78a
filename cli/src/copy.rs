//! `haul copy`

use crate::args::{Choice, CopyArgs};
use crate::exit::Exit;
use crate::operand::{self, Parsed};
use crate::output::Output;
use crate::run::{self, MakeClient};
use haul_engine::session::plan::Options;
use haul_engine::session::{Failure, download, upload};
use haul_engine::wire::frame::Preserve;

pub(crate) fn run(args: &CopyArgs, choice: Choice) -> Exit {
    let parsed: Result<Vec<Parsed>, String> = args.paths.iter().map(|path| operand::parse(path)).collect();
    let mut sources = match parsed {
        Ok(parsed) => parsed,
        Err(why) => return run::usage(&why),
    };
    let Some(target) = sources.pop() else { return run::usage("a source and a target are needed") };
    if args.no_target_directory && sources.len() > 1 {
        return run::usage("-T takes one source");
    }
    let from = sources[0].host.clone();
    if sources.iter().any(|source| source.host != from) {
        return run::usage("all sources must be on the same machine");
    }
    if from.is_some() && target.host.is_some() {
        return run::usage("one side of a copy must be this machine");
    }
    let options = options(args);
    let peer = match run::connect(from.as_ref().or(target.host.as_ref()), &args.remote) {
        Ok(peer) => peer,
        Err(why) => {
            let mut output = Output::new(&args.output);
            output.fatal(&Failure::connection("cannot start", why), Exit::Start);
            return output.finish();
        }
    };
    let same_machine = from.is_none() && target.host.is_none();
    let sources: Vec<_> = sources.into_iter().map(|source| source.operand).collect();
    let target = target.operand;
    let make: MakeClient = if from.is_some() {
        Box::new(move |around| {
            let plan = download::Plan { sources, local: around.local, target, options };
            download::client(around.stream, around.opening, plan, around.progress, around.reporter)
        })
    } else {
        Box::new(move |around| {
            let local = around.local;
            let same_machine = same_machine.then_some(local);
            let plan = upload::Plan { local, sources, target, options, same_machine };
            upload::client(around.stream, around.opening, plan, around.progress, around.reporter)
        })
    };
    let mut output = Output::new(&args.output);
    run::client(choice, peer, make, &mut output, |report, _| Some(report))
}

fn options(args: &CopyArgs) -> Options {
    let mut preserve = Preserve::default();
    if args.preserve || args.archive {
        preserve = preserve.or(Preserve::MODE);
    }
    if args.archive && rustix::process::geteuid().is_root() {
        preserve = preserve.or(Preserve::OWNER);
    }
    Options {
        recursive: args.recursive || args.archive,
        links: args.links || args.archive,
        preserve,
        exact_target: args.no_target_directory,
    }
}

//! Two homes on one machine, a stand-in for ssh between them, and a record of every byte that a server sees and says.
//!
//! ```text
//! near/          working directory and home of the client
//! ssh            takes ssh's arguments, notes the remote command, and runs it in far/
//! far/           login directory of the other end
//! bin/<server>   the only server on the other end's PATH: runs real/<server> between two `tee`
//! record/        <process>.c2s and <process>.s2c for each server, `commands`, `servers`
//! ```
//! Where content goes over TCP, what a server says comes to its client by two pipes in record/ and a relay between them.

use super::content::Sources;
use super::opened::opened;
use super::peer::Peer;
use super::raw::{Raw, kind};
use super::relay::Relays;
use super::traffic::Traffic;
use crate::support::processes::{self, Ended};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a server may outlive its client, on a busy machine.
const PARTING: Duration = Duration::from_secs(20);

/// Which way content goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Through ssh, over so many connections.
    Ssh(usize),
    /// Over TCP connections, so many.
    Direct(usize),
}

/// One client and one server.
pub struct Stage {
    pub client: Peer,
    pub server: Peer,
    pub way: Way,
    dir: tempfile::TempDir,
}

/// How a client ended, and what was said between it and its servers.
pub struct Played {
    pub ended: Ended,
    /// Where the content goes.
    pub traffic: Traffic,
    /// What went through ssh, where content goes another way.
    control: Option<Traffic>,
    /// The commands that the client ran on the other end.
    commands: String,
    /// How the servers were started and ended.
    servers: String,
}

impl Stage {
    pub fn new(client: Peer, server: Peer, way: Way, sources: &Sources) -> Result<Stage> {
        let stage = Stage { client, server, way, dir: sources.beside() };
        for name in ["near", "far/up", "bin", "real", "shim", "temp", "far-temp"] {
            fs::create_dir_all(stage.path(name))?;
        }
        symlink(server.program().map_err(anyhow::Error::msg)?, stage.path("real").join(stage.called()))?;
        processes::script(&stage.path("bin").join(stage.called()), &stage.server_script());
        processes::script(&stage.shim(), &stage.shim_script());
        Ok(stage)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Home and working directory of the client.
    pub fn near(&self) -> PathBuf {
        self.path("near")
    }

    /// Login directory of the other end.
    pub fn far(&self) -> PathBuf {
        self.path("far")
    }

    /// What the client looks for on the other end: a real one knows no other name than its own.
    fn called(&self) -> &'static str {
        if self.client == Peer::Haul { self.server.name() } else { self.client.name() }
    }

    fn shim(&self) -> PathBuf {
        self.path("shim").join("ssh")
    }

    fn shim_script(&self) -> String {
        format!(
            "#!/bin/sh\n\
             while [ $# -gt 0 ]; do case \"$1\" in\n\
             -G) exit 0 ;; -o|-p|-i|-F|-J|-l|-S) shift 2 ;; --) shift; break ;; -*) shift ;; *) break ;;\n\
             esac; done\n\
             [ $# -gt 0 ] && shift\n\
             echo \"$*\" >> '{0}/record/commands'\n\
             export HOME='{0}/far' XDG_DATA_HOME='{0}/far/.data' XDG_CACHE_HOME='{0}/far/.cache' TMPDIR='{0}/far-temp'\n\
             export SSH_CONNECTION='127.0.0.1 50000 127.0.0.1 22' PATH='{0}/bin':/usr/bin:/bin\n\
             cd '{0}/far' && exec sh -c \"$*\"\n",
            self.dir.path().display()
        )
    }

    /// Nobody but the three processes keeps an end of the client's pipes, so that each side sees the other's end of stream.
    fn server_script(&self) -> String {
        let (pipes, said) = match self.way {
            Way::Ssh(_) => ("", "tee \"$record/$$.s2c\" >&3"),
            Way::Direct(_) => (
                "mkfifo \"$record/$$.heard\" \"$record/$$.said\"\n",
                "{ cat \"$record/$$.heard\" >&3 & tee \"$record/$$.s2c\" 3>&- >\"$record/$$.said\"; wait; }",
            ),
        };
        format!(
            "#!/bin/sh\n\
             real='{0}/real/{1}'\n\
             [ \"$1\" = serve ] || exec \"$real\" \"$@\"\n\
             record='{0}/record'\n\
             echo \"start {1} $*\" >> \"$record/servers\"\n\
             {pipes}\
             exec 3>&1 4<&0 >/dev/null </dev/null\n\
             tee \"$record/$$.c2s\" <&4 3>&- |\n\
             {{ \"$real\" \"$@\" 3>&- 4<&-; echo \"end $?\" >> \"$record/servers\"; }} 4<&- |\n\
             {said} 4<&- &\n\
             exec 3>&- 4<&-\n\
             wait\n\
             echo over >> \"$record/servers\"\n",
            self.dir.path().display(),
            self.called()
        )
    }

    /// Runs the client with these arguments to its end. What was recorded before is forgotten.
    pub fn play(&self, args: &[String]) -> Result<Played> {
        let record = self.path("record");
        if record.exists() {
            fs::remove_dir_all(&record)?;
        }
        fs::create_dir(&record)?;
        fs::write(record.join("commands"), "")?;
        fs::write(record.join("servers"), "")?;
        let relays = matches!(self.way, Way::Direct(_)).then(|| Relays::watch(&record));
        let ended = processes::complete(&mut self.command(args)?);
        // The record is complete some time after the client has gone.
        let starts_and_ends = || fs::read_to_string(record.join("servers")).unwrap_or_default();
        let over = processes::wait_for(PARTING, || {
            let text = starts_and_ends();
            let count = |word: &str| text.lines().filter(|line| line.starts_with(word)).count();
            count("start ") == count("over")
        });
        ensure!(over, "a server outlives its client by {PARTING:?}; stderr: {}", one_line(&ended.stderr));
        let commands = fs::read_to_string(record.join("commands"))?;
        let (mut traffic, mut control) = (Traffic::read(&record)?, None);
        if let Some(relays) = relays {
            let sessions = relays.finish(PARTING)?.iter().map(opened).collect::<Result<_>>();
            let sessions = sessions.with_context(|| format!("stderr: {}", one_line(&ended.stderr)))?;
            control = Some(std::mem::replace(&mut traffic, Traffic { sessions }));
        }
        Ok(Played { ended, traffic, control, commands, servers: starts_and_ends() })
    }

    fn command(&self, args: &[String]) -> Result<Command> {
        let mut command = Command::new(self.client.program().map_err(anyhow::Error::msg)?);
        command.args(args).current_dir(self.near()).stdin(Stdio::null()).env_clear();
        command.env("PATH", format!("{}:/usr/bin:/bin", self.path("shim").display()));
        command.env("HOME", self.near()).env("XDG_DATA_HOME", self.near().join(".data"));
        command.env("XDG_CACHE_HOME", self.near().join(".cache")).env("TMPDIR", self.path("temp"));
        command.env("BCMR_DEBUG_SSH_STDERR", "1");
        if let Some(backend) = std::env::var_os("HAUL_BACKEND") {
            command.env("HAUL_BACKEND", backend);
        }
        Ok(command)
    }

    /// `copy` with what all of its uses have in common: the way and its connections, no display, this codec.
    pub fn copy(&self, codec: &str, flags: &[&str], from: &Path, to: &Path) -> Vec<String> {
        let mut args = vec!["copy".to_string()];
        args.extend(self.reached_by());
        let connections = match self.way {
            Way::Ssh(connections) => connections,
            Way::Direct(connections) => {
                args.push("--direct=direct".to_string());
                connections
            }
        };
        args.extend(match self.client {
            Peer::Old => vec!["-t".to_string(), format!("--compress={codec}"), format!("-P{connections}")],
            Peer::New => vec!["-q".to_string(), format!("--compress={codec}"), format!("-P{connections}")],
            Peer::Haul => vec![format!("--compress={codec}"), format!("--connections={connections}")],
        });
        args.extend(flags.iter().map(ToString::to_string));
        args.extend([from, to].map(|operand| operand.to_str().unwrap().to_string()));
        args
    }

    /// What tells the client which ssh to use; the real ones take the one on the PATH.
    pub fn reached_by(&self) -> Vec<String> {
        match self.client {
            Peer::Old | Peer::New => Vec::new(),
            Peer::Haul => vec!["-e".to_string(), self.shim().to_str().unwrap().to_string()],
        }
    }
}

/// `host:PATH`
pub fn remote(path: &str) -> PathBuf {
    PathBuf::from(format!("host:{path}"))
}

impl Played {
    /// Fails unless all went well, over the protocol and nothing else.
    pub fn went_well(&self) -> Result<()> {
        self.exited(0)?;
        self.was_served()
    }

    pub fn exited(&self, code: i32) -> Result<()> {
        let ended = &self.ended;
        ensure!(
            ended.status.code() == Some(code),
            "{}; stderr: {}; stdout: {}",
            ended.status,
            one_line(&ended.stderr),
            one_line(&ended.stdout)
        );
        Ok(())
    }

    /// Fails unless servers were started, each ended well, and no command of the shell carried content past them.
    pub fn was_served(&self) -> Result<()> {
        let ended = &self.ended;
        for words in ["fast path unavailable", "fall back", "falling back", "fallback"] {
            let said = ended.stderr.to_lowercase().contains(words);
            ensure!(!said, "the client gave up the protocol: {}", one_line(&ended.stderr));
        }
        let starts = self.servers.lines().filter(|line| line.starts_with("start ")).count();
        ensure!(starts > 0, "no server was started; commands: {}", self.commands);
        let bad = self.servers.lines().find(|line| line.starts_with("end ") && *line != "end 0");
        ensure!(bad.is_none(), "a server ended with `{}`; stderr: {}", bad.unwrap_or(""), one_line(&ended.stderr));
        let past = self.commands.lines().find(|line| {
            ["cat ", "tail ", "head ", "dd "]
                .iter()
                .any(|program| line.starts_with(program) || line.contains(&format!("; {program}")))
        });
        ensure!(past.is_none(), "content went past the server: {}", past.unwrap_or(""));
        self.control.as_ref().map_or(Ok(()), |control| self.only_arranged(control))
    }

    /// Fails unless ssh carried nothing but what it takes to come to a direct connection, and all of these came about. Two
    /// hauls go on there with names and attributes, and as many connections as they like come by one session.
    fn only_arranged(&self, control: &Traffic) -> Result<()> {
        const CONTENT: [u8; 5] = [kind::GET, kind::PUT, kind::DATA, kind::DATA_COMPRESSED, kind::GET_CHUNKED];
        let mut between_hauls = false;
        for session in &control.sessions {
            let (up, down) = session.frames()?;
            let kinds = |frames: &[Raw<'_>]| frames.iter().map(|frame| frame.kind).collect::<Vec<_>>();
            let said = (kinds(&up), kinds(&down));
            let expected =
                (vec![kind::HELLO, kind::OPEN_DIRECT_CHANNEL], vec![kind::WELCOME, kind::DIRECT_CHANNEL_READY]);
            between_hauls |= down.first().is_some_and(|welcome| welcome.body.len() > 2);
            let arranged = said == expected
                || (between_hauls
                    && said.0.starts_with(&expected.0)
                    && said.1.starts_with(&expected.1)
                    && !said.0.iter().chain(&said.1).any(|kind| CONTENT.contains(kind)));
            ensure!(arranged, "ssh carried frames of the types {said:02x?}");
        }
        let (arranged, met) = (control.sessions.len(), self.traffic.sessions.len());
        let all = if between_hauls { arranged == 1 && met > 0 } else { arranged == met };
        ensure!(all, "{arranged} direct connections were agreed on, {met} came about");
        Ok(())
    }

    /// Fails unless the server refused the client's version and nothing else was said.
    pub fn was_refused(&self) -> Result<()> {
        let sessions = &self.control.as_ref().unwrap_or(&self.traffic).sessions;
        ensure!(!sessions.is_empty(), "no server was started; commands: {}", self.commands);
        for session in sessions {
            let (up, down) = session.frames()?;
            let said = down.first().and_then(Raw::error).context("the server did not refuse")?;
            ensure!(said.contains("protocol version mismatch"), "the server said {said:?}");
            ensure!(down.len() == 1 && up.len() == 1, "there were {} and {} frames", up.len(), down.len());
        }
        Ok(())
    }
}

/// The beginning of what was said, fit for a footnote.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
    lines.join(" / ").chars().take(300).collect()
}

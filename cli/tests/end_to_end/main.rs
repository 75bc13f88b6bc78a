//! The real binary from the outside, one file for each thing that is promised. One program, so that it is linked once and
//! tests that wait do not keep others from running.

#[cfg(target_os = "linux")]
mod auto_connections;
mod copy_direct;
mod copy_pipes;
mod copy_sshd;
mod digest;
mod inspect;
mod local;
mod names;
mod support;
mod tidy;

#[cfg(target_os = "linux")]
mod alien_machine;
#[cfg(target_os = "linux")]
mod beside_stalled;
#[cfg(target_os = "linux")]
mod both_send;
#[cfg(target_os = "linux")]
mod busy_daemon;
#[cfg(target_os = "linux")]
mod called_bcmr;
#[cfg(target_os = "linux")]
mod changing_sources;
#[cfg(target_os = "linux")]
mod connections;
#[cfg(target_os = "linux")]
mod daemon;
#[cfg(target_os = "linux")]
mod daemon_defaults;
#[cfg(target_os = "linux")]
mod direct_addresses;
#[cfg(target_os = "linux")]
mod disguises;
#[cfg(target_os = "linux")]
mod disk_full;
#[cfg(target_os = "linux")]
mod doctor;
#[cfg(target_os = "linux")]
mod environment;
#[cfg(target_os = "linux")]
mod errors;
#[cfg(target_os = "linux")]
mod fast_uploads;
#[cfg(target_os = "linux")]
mod foreign_disks;
#[cfg(target_os = "linux")]
mod full_disk_early;
#[cfg(target_os = "linux")]
mod gathered;
#[cfg(target_os = "linux")]
mod hostile_beginnings;
#[cfg(target_os = "linux")]
mod hostile_client;
#[cfg(target_os = "linux")]
mod hostile_compressed;
#[cfg(target_os = "linux")]
mod hostile_connections;
#[cfg(target_os = "linux")]
mod hostile_crowd;
#[cfg(target_os = "linux")]
mod hostile_daemon;
#[cfg(target_os = "linux")]
mod hostile_dedup;
#[cfg(target_os = "linux")]
mod hostile_direct;
#[cfg(target_os = "linux")]
mod hostile_direct_client;
#[cfg(target_os = "linux")]
mod hostile_files;
#[cfg(target_os = "linux")]
mod hostile_gathering;
#[cfg(target_os = "linux")]
mod hostile_greetings;
#[cfg(target_os = "linux")]
mod hostile_in_between;
#[cfg(target_os = "linux")]
mod hostile_operands;
#[cfg(target_os = "linux")]
mod hostile_proofs;
#[cfg(target_os = "linux")]
mod hostile_ranges;
#[cfg(target_os = "linux")]
mod hostile_resume;
#[cfg(target_os = "linux")]
mod hostile_server;
#[cfg(target_os = "linux")]
mod hostile_strangers;
#[cfg(target_os = "linux")]
mod hostile_striped;
#[cfg(target_os = "linux")]
mod hostile_striped_server;
#[cfg(target_os = "linux")]
mod hostile_tokens;
#[cfg(target_os = "linux")]
mod hostile_tree;
#[cfg(target_os = "linux")]
mod hostile_unhashed;
#[cfg(target_os = "linux")]
mod impatient_client;
#[cfg(target_os = "linux")]
mod interop;
#[cfg(target_os = "linux")]
mod interop_blocks;
#[cfg(target_os = "linux")]
mod interop_direct;
#[cfg(target_os = "linux")]
mod interop_frames;
#[cfg(target_os = "linux")]
mod kill;
#[cfg(target_os = "linux")]
mod leftovers;
#[cfg(target_os = "linux")]
mod link_operands;
#[cfg(target_os = "linux")]
mod link_targets_confined;
#[cfg(target_os = "linux")]
mod listener;
#[cfg(target_os = "linux")]
mod many_connections;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod mended;
#[cfg(target_os = "linux")]
mod namespaces;
#[cfg(target_os = "linux")]
mod no_room;
#[cfg(target_os = "linux")]
mod no_start;
#[cfg(target_os = "linux")]
mod older_hauls;
#[cfg(target_os = "linux")]
mod open_files;
#[cfg(target_os = "linux")]
mod options;
#[cfg(target_os = "linux")]
mod peer_words;
#[cfg(target_os = "linux")]
mod plaintext;
#[cfg(target_os = "linux")]
mod ranges;
#[cfg(target_os = "linux")]
mod real_hosts;
#[cfg(target_os = "linux")]
mod redial;
#[cfg(target_os = "linux")]
mod resume;
#[cfg(target_os = "linux")]
mod sftp;
#[cfg(target_os = "linux")]
mod sftp_disks;
#[cfg(target_os = "linux")]
mod signals;
#[cfg(target_os = "linux")]
mod silence;
#[cfg(target_os = "linux")]
mod silence_base;
#[cfg(target_os = "linux")]
mod slow_links;
#[cfg(target_os = "linux")]
mod ssh_config;
#[cfg(target_os = "linux")]
mod start_files;
#[cfg(target_os = "linux")]
mod starved;
#[cfg(target_os = "linux")]
mod stop;
#[cfg(target_os = "linux")]
mod striped;
#[cfg(target_os = "linux")]
mod stuck;
#[cfg(target_os = "linux")]
mod swapped_between_logins;
#[cfg(target_os = "linux")]
mod target_dirs;
#[cfg(target_os = "linux")]
mod truth;
#[cfg(target_os = "linux")]
mod two_sources;
#[cfg(target_os = "linux")]
mod words;

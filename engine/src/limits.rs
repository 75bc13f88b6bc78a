//! Every tunable number of the program, with its unit, checked against the others at compile time. The numbers that the
//! protocol fixes are in [`crate::wire`].

use std::time::Duration;

/// Nanoseconds in one second.
pub const SECOND: u64 = 1_000_000_000;

/// Bytes in a memory page as buffers are aligned to it.
pub const PAGE_BYTES: usize = 4096;

/// Bytes of a [`crate::block::Block`] of class `Large`: one read, one Data frame, one write.
pub const BLOCK_BYTES: usize = 512 * 1024;
/// Bytes of room in front of and behind the bytes of a block: headers and tags are put there in place.
pub const ROOM_BYTES: usize = PAGE_BYTES;
/// Bytes of a [`crate::block::Block`] of class `Small`: a small file, whole.
pub const SMALL_BYTES: usize = 64 * 1024;
/// Bytes of a [`crate::block::Block`] of class `Frame`: the largest block of the protocol, or what a codec made of it. The
/// room behind 4 MiB is more than either codec can add to content that does not compress (Zstandard 16 KiB, LZ4 16.1 KiB).
pub const FRAME_BYTES: usize = crate::wire::MAX_BLOCK as usize + 64 * 1024;
/// Large blocks one worker's pool holds at most.
pub const POOL_LARGE_BLOCKS: usize = 32;
/// Small blocks one worker's pool holds at most.
pub const POOL_SMALL_BLOCKS: usize = 128;
/// Frame blocks one worker's pool holds at most; most runs never use one.
pub const POOL_FRAME_BLOCKS: usize = 8;
/// Frame blocks that a server's session may hold: half of a pool, so that a connection that stalls leaves as many.
pub const SERVED_FRAME_BLOCKS: usize = POOL_FRAME_BLOCKS / 2;
/// Frame blocks that stay for the two sides of a codec while records are received.
pub const SPARED_FRAMES: usize = 2;
/// Frame blocks that each of many connections has: what came, and what a codec makes of it.
pub const LEAST_FRAME_BLOCKS: usize = SPARED_FRAMES + 1;
/// Small blocks that each of many connections has.
pub const LEAST_SMALL_BLOCKS: usize = 16;

/// Bytes of the block of which Resume reports the hash.
pub const RESUME_BLOCK_BYTES: u64 = 4 * 1024 * 1024;

/// Blocks one transfer reads ahead of what the stream has taken.
pub const READ_WINDOW_BLOCKS: usize = 6;
/// The same for blocks of class `Frame`, which dedup reads.
pub const READ_WINDOW_FRAMES: usize = 2;
/// Blocks in a row that did not pay after which the content counts as incompressible.
pub const UNPAID_BLOCKS: u32 = 4;
/// Blocks of such content that are sent as they are before one is tried.
pub const PAUSE_BLOCKS: u32 = 8;
/// Blocks of the longest such pause; each failed try doubles it.
pub const MAX_PAUSE_BLOCKS: u32 = 64;
/// Of so many tries one is made without looking at samples, which can lie.
pub const BLIND_TRY: u32 = 16;
/// Of so many blocks one is compressed while the link is faster than the codec, so that the codec stays known.
pub const TRIAL_BLOCKS: u32 = 256;
/// Bytes through a stream that may only have filled buffers: a pipe of 1 MiB, an ssh window of 2, sockets of 4.
pub const LINK_BUFFER_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes after which older measurements of the link count half.
pub const LINK_WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes through the link that must be measured before the first decision on it.
pub const LINK_FIRST_BYTES: u64 = LINK_WINDOW_BYTES / 2;
/// Bytes through the link that must be measured between two decisions.
pub const LINK_SETTLE_BYTES: u64 = 8 * 1024 * 1024;
/// Busy nanoseconds of the link that must be measured between two decisions.
pub const LINK_SETTLE_NANOS: u64 = SECOND / 20;
/// Bytes sent uncompressed by which the decision to do so has proved right.
pub const LINK_PROVED_BYTES: u64 = 256 * 1024 * 1024;
/// Bytes through the link that must be measured before a decision which was wrong again and again is tried once more.
pub const MAX_LINK_SETTLE_BYTES: u64 = 512 * 1024 * 1024;
/// Percent of the throughput with compression above which the link makes compression stop.
pub const LINK_FAST_PERCENT: u64 = 125;
/// Percent of the throughput with compression below which the link brings compression back.
pub const LINK_SLOW_PERCENT: u64 = 80;
/// Raw bytes through the codec after which older measurements of it count half.
pub const CODEC_WINDOW_BYTES: u64 = 4 * 1024 * 1024;
/// Percent of all blocks below which so few were packed that the content is said to be incompressible.
pub const FEW_PACKED_PERCENT: u64 = 10;
/// Bytes below which content is not worth compressing.
pub const PACK_WORTH_BYTES: usize = 256;
/// Bytes of a file sent by one operation without passing through user space; a few of them fill a stream's queue.
/// No more, because nobody sees how far it has come before it is done: at 26 KB/s that takes 20 s.
pub const FILE_RUN_BYTES: u64 = 512 * 1024;
/// The same on a link that is not known to be quick.
pub const SLOW_RUN_BYTES: u64 = 128 * 1024;
/// Bytes of content handed to a stream by one operation: what has left of a larger record counts although the rest has not.
pub const SEND_PIECE_BYTES: usize = 256 * 1024;
/// Bytes of a record or frame that are waited for at a time while a link is not known to be quick.
pub const SLOW_RECV_BYTES: usize = 64 * 1024;
/// Bytes per second from which a link is quick: what is waited for as a whole then comes within a second.
pub const QUICK_BYTES_PER_SECOND: u64 = 1024 * 1024;
/// Blocks of 4 MiB hashed, filled in from a store, or put into it by one operation: a cancel is noticed between two blocks.
pub const BLOCKS_PER_OPERATION: usize = 16;
/// Such operations in flight for one file: as many as there are helper threads.
pub const HASHING_OPERATIONS: usize = OFFLOAD_THREADS;
/// Blocks of 4 MiB at the end of what a killed transfer left that may have holes, since writes complete in any order. A
/// download that goes on has each of them proved for itself, and what is before them as one.
pub const UNORDERED_BLOCKS: usize = 4;
/// Bytes from which a piece of content is hashed by a helper thread. Below it, handing over costs more than it gives: with
/// 64 KiB, 10,000 files of that size took both ends 1.5 (up) and 1.7 (down) times the processor time (2026-11-26).
pub const DIGEST_BYTES: usize = 128 * 1024;
/// Bytes from which a record is sealed and opened by a helper thread, and received into a block of its own. As above.
pub const SEAL_BYTES: usize = 128 * 1024;
/// Blocks a session may receive into beyond those it may hold, so that it can always go on. What is being written keeps the
/// block that it came in: without a limit, one session had all those of its worker, 45 MiB more (2026-11-27).
pub const RECEIVE_BLOCKS: usize = 1;
/// Blocks of records that are open, or being opened, and not yet parsed: at this number nothing more is received.
pub const ARRIVED_BLOCKS: usize = 3;
/// Blocks that stay for those who need them to go on with what has come.
pub const SPARED_BLOCKS: usize = 4;
/// Direct connections one session may be waiting for or serve, as its client opened them.
pub const MAX_MEETINGS: usize = 16;
/// Connections that wait to prove themselves to one listener.
pub const MAX_GUESTS: usize = 64;
/// Bytes of a frame that such a connection may have begun: no proof is longer.
pub const GUEST_BYTES: usize = 256;
/// Nanoseconds each of them has.
pub const GUEST_TIMEOUT: u64 = 4 * SECOND;
/// Guests that were told to give way to others and have not gone yet, while anybody else is let in.
pub const MAX_LEAVING: usize = 2;
/// Nanoseconds for which what is said last may be on its way before the connection is closed.
pub const LAST_WORDS_TIMEOUT: u64 = SECOND;
/// Guests of a daemon that have proved themselves and wait for one of its places; others are told at once that none is free.
pub const MAX_WAITING: usize = 16;
/// Bytes of the network prefix by which strangers from IPv6 count as one: whoever has one address there has all of a /64.
pub const ORIGIN_BYTES: usize = 8;
/// Lines that a listening server writes in one second about those who did not prove themselves.
pub const STRANGERS_LOGGED: u64 = 20;
/// Bytes that a connection must move within the time of a stall to keep its place while others wait for one: 1 KiB/s.
pub const LEAST_USE_BYTES: u64 = 64 * 1024;
/// The same where more than half of the places are in use from one address, and somebody waits to whose address none is: 17 KB/s,
/// below the slowest link that a copy is promised on.
pub const LEAST_SHARE_BYTES: u64 = 1024 * 1024;
/// Nanoseconds in which the client of a session must come to the listener that was opened for it. Base clients give a
/// connection 5 s, ours no more.
pub const MEETING_TIMEOUT: u64 = 10 * SECOND;
/// Nanoseconds for which a direct connection must be silent to be given up once its client has ended the session that it
/// was agreed on in: the client has gone, and what the network keeps of it must not hold files that others wait for.
pub const PARTING_TIMEOUT: u64 = SECOND / 2;
/// Files at least this large are continued where an interrupted transfer stopped; smaller ones are begun again.
pub const RESUME_BYTES: u64 = 1024 * 1024;
/// Connections of one run at most.
pub const MAX_CONNECTIONS: u16 = 64;
/// Direct connections of one run at most where their number is found out while it goes.
pub const AUTO_CONNECTIONS: u16 = 16;
/// The same to a daemon, which serves [`MAX_SESSIONS`] for all its clients: three others find room as well.
pub const AUTO_DAEMON_CONNECTIONS: u16 = 4;
/// Of those, so many may compress, which takes blocks of 4 MiB; what goes over the others goes as it is.
pub const PACKING_CONNECTIONS: u16 = 2;
/// Connections beyond which, if the choice is ours, only LZ4 is agreed on: Zstandard gains little there and takes blocks of
/// 4 MiB at either end. 16 of them with text: 291 MiB and 17 s with Zstandard, 80 MiB and 3 s with LZ4 (2026-11-27).
pub const ZSTD_CONNECTIONS: u16 = 4;
/// Direct connections of one meeting served at the same time: all of a run, and some of which only the client knows yet that
/// they broke, and has opened others in their place. Each needs a block to receive into.
pub const MAX_SERVED: usize = MAX_CONNECTIONS as usize + 16;
/// Connections of such a server that have a share of its blocks, which none that stalls takes away: its first one, and as many as
/// a run has that nobody told otherwise. Further ones have a block to receive into, and what others leave.
pub const SERVED_SHARES: usize = 1 + AUTO_CONNECTIONS as usize;
/// Large blocks of such a share: what came, and what a codec makes of it.
pub const SHARE_LARGE_BLOCKS: usize = 2;
/// Small blocks of such a share. Without one, small files take large ones.
pub const SHARE_SMALL_BLOCKS: usize = 4;
/// Large blocks the pool of a server holds at most whose client came by ssh, and may have [`MAX_SERVED`] direct connections:
/// the shares, one for each connection to receive into, and as many more as one connection alone may have. With 32 in all
/// 31 connections took 3.7 s for what took 32 of them 11 to 200 s, and 64 lost files (2026-11-30): what is with the disk must
/// not take what others receive into.
pub const SERVED_LARGE_BLOCKS: usize =
    SERVED_SHARES * SHARE_LARGE_BLOCKS + (1 + MAX_SERVED) * RECEIVE_BLOCKS + SESSION_LARGE_BLOCKS - SHARE_LARGE_BLOCKS;
/// Small blocks the pool of such a server holds at most: one connection alone has as many as it may, beside the shares of the
/// others. With 68 left to one at a listening server small files came down 5 % slower (2026-12-01).
pub const SERVED_SMALL_BLOCKS: usize = SESSION_SMALL_BLOCKS + (SERVED_SHARES - 1) * SHARE_SMALL_BLOCKS;
/// The same of a listening server.
pub const DAEMON_SMALL_BLOCKS: usize = SESSION_SMALL_BLOCKS + (MAX_SESSIONS - 1) * SHARE_SMALL_BLOCKS;
/// Connections that log in at the same time: sshd begins to refuse when 10 have not (MaxStartups 10:30:100).
pub const LOGINS_AT_A_TIME: usize = 6;
/// Bytes of a peer's words that are shown.
pub const PEER_WORDS_BYTES: usize = 1024;
/// Jobs the queue of a run holds before the walk waits.
pub const QUEUED_JOBS: usize = 1024;
/// Files found and not yet reported, at most: results are told in order, and one file may take long.
pub const JOBS_UNREPORTED: usize = 16 * 1024;
/// Direct connections that may break with the same file in hand before it is not tried on another one.
pub const MAX_BROKE: u8 = 3;
/// Bytes of a file or a range that show that content comes through: a way that loses large packets lets less than that pass.
pub const BULK_BYTES: u64 = 64 * 1024;
/// Direct connections in a row that came about and carried nothing, each for as long as a silent peer is waited for, after
/// which that way is given up. With 3 for each file 1 GiB took 325 s where ssh took 25 (2026-11-30).
pub const MAX_STUCK: u8 = 2;
/// Bytes of files one of several connections takes on ahead of what it is moving.
pub const PULL_AHEAD_BYTES: u64 = 8 * 1024 * 1024;
/// Files at least this large are moved in ranges where several connections were asked for and the peer has no better way.
pub const RANGED_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of such a range: large beside a request, small beside a file. A multiple of the hash block.
pub const RANGE_BYTES: u64 = 16 * 1024 * 1024;
/// Files a session may have begun in ranges at the same time.
pub const MAX_RANGED_FILES: usize = 64;
/// Ranges of a file at most; beyond, it goes over one connection.
pub const MAX_RANGES: u64 = 64 * 1024;
/// Copies inside the kernel that run at the same time.
pub const CLONES: usize = 4;
/// Files at least this large are offered to the peer's block store, as the protocol has it.
pub const DEDUP_BYTES: u64 = 16 * 1024 * 1024;
/// Large blocks one session may hold for data in either direction, its receive block apart.
pub const SESSION_LARGE_BLOCKS: usize = 16;
/// Small blocks one session may hold.
pub const SESSION_SMALL_BLOCKS: usize = 96;
/// Frame blocks one session may hold.
pub const SESSION_FRAME_BLOCKS: usize = 8;
/// Connections one listening server serves at the same time.
pub const MAX_SESSIONS: usize = 16;
/// Large blocks each of them has, its receive block apart.
pub const DAEMON_SESSION_BLOCKS: usize = 4;
/// The same with a key, where records are sealed and opened as well: blocks that are being opened come on top.
pub const DOOR_SESSION_BLOCKS: usize = 6;
/// Frame blocks of a listening server with a key: those of one session. With the others 512 KiB are compressed at a time.
pub const DOOR_FRAME_BLOCKS: usize = SERVED_FRAME_BLOCKS;
/// Bytes of control frames that have begun and are not complete, in all connections of a process: one of the largest, and
/// smaller ones.
pub const UNFINISHED_BYTES: usize = crate::wire::MAX_FRAME + crate::wire::MAX_FRAME / 2;
/// Bytes of them that each connection has beside that.
pub const UNFINISHED_FREE_BYTES: usize = SMALL_BYTES;
/// Bytes of the longest path a request may name: an operand and a path below it, each at most PATH_MAX.
pub const MAX_REQUEST_PATH_BYTES: usize = 16 * 1024;
/// Requests a server session works on at the same time.
pub const MAX_ACTIVE_REQUESTS: usize = 32;
/// Requests a client keeps unanswered.
pub const CLIENT_WINDOW_REQUESTS: usize = 128;
/// Small files a client loads ahead of sending them.
pub const CLIENT_LOAD_AHEAD: usize = 32;
/// Walks a server session keeps open at the same time.
pub const MAX_WALKS: usize = 4;
/// Entries of one TREE page or directory read.
pub const PAGE_ENTRIES: usize = 512;
/// Bytes of names and link texts in one directory read.
pub const PAGE_NAME_BYTES: usize = 128 * 1024;
/// Open directories one walk holds at most, one for each level.
pub const MAX_WALK_DEPTH: usize = 1024;
/// Bytes of a file so small that, where it has no room, nothing has: the unit in which file systems hand room out.
pub const NO_ROOM_BYTES: u64 = 4096;

/// Level of Zstandard, as the base protocol's peers use.
pub const ZSTD_LEVEL: i32 = 3;
/// Percent of a block's bytes above which its compressed form is not worth sending.
pub const PACKED_PERCENT: u64 = 95;
/// Bytes of one sample by which a block is judged before it is compressed.
pub const PROBE_SAMPLE_BYTES: usize = 2048;
/// Samples of one block.
pub const PROBE_SAMPLES: usize = 8;
/// Bytes from which a block is judged by samples; below, they would be a large part of it.
pub const PROBE_FROM_BYTES: usize = 4 * PROBE_SAMPLES * PROBE_SAMPLE_BYTES;
/// Bits per byte from which a sample's bytes count as evenly spread. Order-0 coding alone makes 7.6 bits of a byte pay
/// (95 %); uniform random 4 KiB is estimated at 7.91.
pub const PROBE_ENTROPY_BITS: f32 = 7.7;
/// Percent of a sample's bytes above which LZ4 counts as having found nothing.
pub const PROBE_LZ4_PERCENT: u64 = 98;

/// Bytes queued on a stream after which sessions wait before queueing more data.
pub const SEND_QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Bytes asked for when a pipe of our own is sized.
pub const PIPE_BYTES: usize = 1024 * 1024;
/// Bytes moved by one hop of the file-to-stream path.
pub const SPLICE_BYTES: usize = 1024 * 1024;

/// Names remembered of what the operands of a run have written, where later ones may write there too: 16 bytes each.
pub const NAMES_KNOWN: usize = 1 << 20;
/// Directories that operands named which one session holds open, those it used last: a copy works with one target and the
/// sources of the moment.
pub const OPERANDS_HELD: usize = 16;
/// Directories below an operand that are held open from when they are made until they get their attributes, at most: with few
/// descriptors fewer.
pub const DIRS_HELD: usize = 128;
/// Entries of a directory up to which it is looked through for partials.
pub const ENTRIES_LOOKED_THROUGH: usize = 16_384;
/// The same of which it is remembered what they were, once more are to be held than may be.
pub const DIRS_KNOWN: usize = 16_384;
/// Read-only directories of our own that a session writes to at the same time; each is held open until it is read-only again.
pub const DIRS_OPENED_UP: usize = 512;
/// Times that a small file is read which another process writes to at that moment.
pub const LOAD_TRIES: u32 = 3;
/// Files at least this large are checked against the free space of the file system before they are begun.
pub const SPACE_CHECK_BYTES: u64 = 1024 * 1024;
/// How long it is waited for whoever has what an interrupted copy left: another copy, or a process that was killed, of which
/// the kernel may let go a little later than it is gone.
pub const PARTIAL_LOCK: Duration = Duration::from_millis(400);
/// Time between two looks whether it has come free.
pub const PARTIAL_LOOK: Duration = Duration::from_millis(20);
/// Random names tried before giving up; two tries colliding by chance is a matter of 2^64.
pub const NAME_TRIES: usize = 8;
/// Bytes of one copy_file_range: a cancel is noticed between two.
pub const COPY_STEP_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of components waiting in one walk, as PATH_MAX: bounds what nested links can pile up, and the handles held.
pub const MAX_PATH_BYTES: usize = 4096;
/// Bytes of one component of a path, as NAME_MAX of every system we know.
pub const MAX_NAME_BYTES: usize = 255;
/// Bytes of a refused name that are shown.
pub const SHOWN_NAME_BYTES: usize = 256;
/// Bytes of the paths of files found and not yet reported, at most.
pub const UNREPORTED_NAME_BYTES: usize = 16 * 1024 * 1024;
/// Pipes one backend leases at most. 8 of 1 MiB on each of 8 workers is the unprivileged budget of 64 of a user.
pub const LEASED_PIPES: usize = 8;
/// Splices beside those through leased pipes that may wait at the same time (streams that are pipes themselves).
pub const OTHER_SPLICES: u32 = 64;
/// Below this a copy through user space costs less processor time (64 KiB pipe 0.40 s/GiB, copy 0.26, measured).
pub const WORTHWHILE_BYTES: usize = PIPE_BYTES / 4;
/// Ops in one gathered write.
pub const GATHER_OPS: usize = 256;
/// How long a blocking send may hold an io-wq thread. It only concerns splice into a socket, the one operation the ring
/// carries out by blocking; everything else waits by poll and never sees this limit.
pub const WORKER_HOLD: Duration = Duration::from_millis(50);
/// Completion queue entries per submission queue entry: many operations stay in the kernel over many turns.
pub const COMPLETIONS_PER_SUBMISSION: u32 = 4;
/// How long dropping a ring waits for the kernel to let go of memory.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Parts of one message, as far as the kernel takes them (`UIO_MAXIOV`, include/uapi/linux/uio.h).
pub const MESSAGE_PARTS: usize = 1024;

/// Mebibytes the block store of dedup holds where the environment does not say.
pub const CAS_CAP_MIB: u64 = 1024;
/// Blocks that are remembered as the next to go, 96 bytes each: a full store is counted anew once in so many evictions.
pub const CAS_VICTIMS: usize = 4096;
/// Bytes that must stay free on the block store's file system: a cache that fills a disk makes transfers fail.
pub const CAS_SPARE_BYTES: u64 = 64 * 1024 * 1024;
/// Seconds after which a temporary file in the block store is what a killed process left.
pub const CAS_STALE_SECONDS: i64 = 60 * 60;

/// Nanoseconds for which nothing is accepted after that failed: as long as descriptors or memory are missing it would fail
/// again at once, and no end of that comes by itself.
pub const ACCEPT_PAUSE: u64 = SECOND / 10;
/// How long a file operation waits for a descriptor before it is tried once more. Those that are in use come free when a
/// file is done.
pub const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(20);
/// How long a process may get no descriptor at all before operations that need one fail: somebody holds all, and lets go
/// of none.
pub const DESCRIPTOR_PATIENCE: Duration = Duration::from_secs(10);
/// Connections that wait in the kernel to be accepted by one listening stream, at most; what a Linux system allows
/// (net.core.somaxconn). Where the queue is full a client's request to connect is dropped, and it asks again after 1 s.
pub const LISTEN_BACKLOG: i32 = 4096;
/// How long a TCP connection is silent before its peer is asked whether it is still there. Routers and firewalls forget
/// silent connections, some after a minute.
pub const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// Time between two such questions.
pub const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Questions without an answer after which the connection is gone.
pub const TCP_KEEPALIVE_PROBES: u32 = 4;
/// Milliseconds after which a TCP connection is gone whose peer acknowledges nothing, keepalive included. The kernel also
/// counts the time in which a peer that is alive has no room (Linux 6.18, measured), so this is longer than the time
/// after which such a peer is cut off.
pub const TCP_USER_TIMEOUT_MILLIS: u32 = 75_000;

/// Threads that carry out file-system calls for one backend.
pub const OFFLOAD_THREADS: usize = 2;
/// Submission queue entries of a ring.
pub const RING_ENTRIES: u32 = 256;
/// Symbolic links followed in one path before it counts as a loop, as in the Linux kernel.
pub const MAX_LINKS_FOLLOWED: usize = 40;

/// Nanoseconds a peer has for its part of the handshake.
pub const HANDSHAKE_TIMEOUT: u64 = 30 * SECOND;
/// Nanoseconds of silence from a remote shell after which the client greets first: what runs there in place of the start
/// script waits for that. Only as long as a person does not mind; who logs in more slowly loses one round trip.
pub const PREAMBLE_SILENCE: u64 = 3 * SECOND;
/// Nanoseconds of silence behind a login after which what runs there is not the shell: a start file has put another program in
/// its place, or takes very long. With the login itself an answer so comes within 5 s. A `--timeout` above `HANDSHAKE_TIMEOUT` counts
/// in its place.
pub const SHELL_SILENCE: u64 = 4 * SECOND + SECOND / 2;
/// Nanoseconds a remote shell has to begin where a person may have to type a password first: above the 120 s after which
/// sshd itself hangs up (LoginGraceTime). Without a terminal it has `HANDSHAKE_TIMEOUT`. Tests of the program set the
/// silence, this, the handshake, the stall, the answer, the redial, the silence of a peer that would say that it lives, and that
/// of a shell by HAUL_TIMEOUTS_MS, which is not for users.
pub const LOGIN_TIMEOUT: u64 = 150 * SECOND;
/// Nanoseconds a server has to end the stream once its client has nothing more to ask.
pub const LEAVE_TIMEOUT: u64 = 5 * SECOND;
/// Nanoseconds after which a connection that is being opened looks whether the run still wants it.
pub const LOOK_AGAIN: u64 = SECOND / 50;
/// Nanoseconds for which a direct connection that broke is opened again and again.
pub const REDIAL_TIMEOUT: u64 = 10 * SECOND;
/// Nanoseconds without any progress of a started send after which the peer is cut off.
pub const STALL_TIMEOUT: u64 = 60 * SECOND;
/// Nanoseconds after which a server that is at work on an answer and has nothing to send says that it lives.
pub const PULSE_INTERVAL: u64 = SECOND;
/// Nanoseconds after which a session that waits looks at the clock.
pub const LOOK_AT_CLOCK: u64 = SECOND;
/// Nanoseconds by which such a look may come late on a busy machine. What is later was suspended, and what the other end did
/// meanwhile is not known.
pub const LATE_LOOK: u64 = SECOND;
/// Nanoseconds of that which are worth a word.
pub const SUSPENDED: u64 = 10 * SECOND;
/// Nanoseconds of silence, or without progress of a send, after which a peer that would say that it lives does not.
pub const ALIVE_TIMEOUT: u64 = 20 * SECOND;
/// Bytes per second that a server reads, hashes or flushes at least. One that does not say meanwhile that it lives has so
/// much longer to answer: 100 s for each GB. An old disk or a memory card makes 10 to 30 MB/s.
pub const SLOW_DISK_BYTES_PER_SECOND: u64 = 10_000_000;
/// Bytes that have left here and may not have arrived: in a pipe, in the window of ssh, in sockets.
pub const BUFFERED_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes of one connection that count as moved and may not be kept when the copy ends: in blocks, in `BUFFERED_BYTES`, of files
/// too small to be kept, or sent once more. What is said to be kept is so much less.
pub const UNDER_WAY_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes per second of a link that is not known yet.
pub const SLOW_LINK_BYTES_PER_SECOND: u64 = 64 * 1024;
/// Nanoseconds of silence from a server that owes an answer, and does not say that it lives, after which a further connection
/// is given up, and the first one does its work again. Also what a server has, on any connection, for an answer of which
/// nobody knows how much work it is. Long, because it may have a large file to flush or to read again before it answers.
pub const ANSWER_TIMEOUT: u64 = 600 * SECOND;

/// Bytes of output before the start line after which a remote shell counts as broken.
pub const MAX_PREAMBLE_BYTES: usize = 64 * 1024;

const _: () = {
    assert!(PAUSE_BLOCKS <= MAX_PAUSE_BLOCKS && LINK_SLOW_PERCENT < 100 && LINK_FAST_PERCENT > 100);
    assert!(LINK_SETTLE_BYTES <= MAX_LINK_SETTLE_BYTES && LINK_FIRST_BYTES <= LINK_WINDOW_BYTES);
    assert!(LINK_SETTLE_BYTES < LINK_PROVED_BYTES);
    assert!(BLOCK_BYTES.is_multiple_of(PAGE_BYTES) && SMALL_BYTES.is_multiple_of(PAGE_BYTES));
    assert!(BLOCK_BYTES.is_power_of_two(), "blocks must be whole subtrees of the BLAKE3 tree");
    assert!(BLOCK_BYTES <= crate::wire::MAX_BLOCK as usize);
    assert!(SMALL_BYTES < BLOCK_BYTES);
    assert!(SESSION_LARGE_BLOCKS < POOL_LARGE_BLOCKS, "one block stays for receiving");
    assert!(SESSION_SMALL_BLOCKS <= POOL_SMALL_BLOCKS);
    assert!(READ_WINDOW_BLOCKS <= SESSION_LARGE_BLOCKS);
    assert!(CLIENT_LOAD_AHEAD <= SESSION_SMALL_BLOCKS);
    assert!(MAX_ACTIVE_REQUESTS <= SESSION_SMALL_BLOCKS);
    assert!(
        PREAMBLE_SILENCE < SHELL_SILENCE && SHELL_SILENCE < HANDSHAKE_TIMEOUT && HANDSHAKE_TIMEOUT <= LOGIN_TIMEOUT
    );
    assert!(READ_WINDOW_FRAMES * 2 <= SESSION_FRAME_BLOCKS, "a block read and what a codec makes of it");
    assert!(SESSION_FRAME_BLOCKS <= POOL_FRAME_BLOCKS);
    assert!(READ_WINDOW_FRAMES <= LEAST_FRAME_BLOCKS && LEAST_FRAME_BLOCKS <= POOL_FRAME_BLOCKS);
    assert!(
        (SESSION_LARGE_BLOCKS + 1) * BLOCK_BYTES < (UNORDERED_BLOCKS - 1) * crate::tree_hash::HASH_BLOCK_BYTES,
        "what is being written, the receive block included, begins in one of them, wherever in a block the file ends"
    );
    assert!(BUFFERED_BYTES + (CLIENT_LOAD_AHEAD * SMALL_BYTES) as u64 <= UNDER_WAY_BYTES);
    assert!(MAX_SESSIONS <= LISTEN_BACKLOG as usize);
    assert!(AUTO_CONNECTIONS <= MAX_CONNECTIONS && 4 * AUTO_DAEMON_CONNECTIONS as usize <= MAX_SESSIONS);
    assert!(TCP_KEEPALIVE_IDLE.as_millis() < TCP_USER_TIMEOUT_MILLIS as u128, "one question is asked before");
    assert!(FILE_RUN_BYTES <= crate::wire::MAX_BLOCK as u64 && SLOW_RUN_BYTES <= FILE_RUN_BYTES);
    assert!(SLOW_RECV_BYTES <= BLOCK_BYTES && LATE_LOOK < SUSPENDED && LOOK_AT_CLOCK + LATE_LOOK < ALIVE_TIMEOUT);
    assert!(26_000 * (ALIVE_TIMEOUT / SECOND) > SEND_PIECE_BYTES as u64, "26 KB/s are enough");
    assert!((CAS_VICTIMS as u64) > CAS_CAP_MIB / 4, "a store of whole blocks with the default cap is remembered whole");
    // Memory of one worker: 32 x 520 KiB + 128 x 72 KiB + 8 x 4.07 MiB = 57.9 MiB, whatever the files.
    assert!(
        POOL_LARGE_BLOCKS * (BLOCK_BYTES + 2 * ROOM_BYTES)
            + POOL_SMALL_BLOCKS * (SMALL_BYTES + 2 * ROOM_BYTES)
            + POOL_FRAME_BLOCKS * (FRAME_BYTES + 2 * ROOM_BYTES)
            <= 64 * 1024 * 1024
    );
    // Of a server with that many direct connections: 129 x 520 KiB + 160 x 72 KiB + 8 x 4.07 MiB = 109.3 MiB. With as many as
    // have shares it is 65 large blocks, and 76.8 MiB.
    assert!(
        SERVED_LARGE_BLOCKS * (BLOCK_BYTES + 2 * ROOM_BYTES)
            + SERVED_SMALL_BLOCKS * (SMALL_BYTES + 2 * ROOM_BYTES)
            + POOL_FRAME_BLOCKS * (FRAME_BYTES + 2 * ROOM_BYTES)
            <= 110 * 1024 * 1024
    );
    // And of a listening server with a key: 112 x 520 KiB + 156 x 72 KiB + 4 x 4.07 MiB = 84.1 MiB, whatever its clients do.
    assert!(
        MAX_SESSIONS * (DOOR_SESSION_BLOCKS + RECEIVE_BLOCKS) * (BLOCK_BYTES + 2 * ROOM_BYTES)
            + DAEMON_SMALL_BLOCKS * (SMALL_BYTES + 2 * ROOM_BYTES)
            + DOOR_FRAME_BLOCKS * (FRAME_BYTES + 2 * ROOM_BYTES)
            <= 85 * 1024 * 1024
    );
    assert!(READ_WINDOW_FRAMES * 2 <= SERVED_FRAME_BLOCKS, "a block read and what a codec makes of it");
    assert!(SERVED_FRAME_BLOCKS > SPARED_FRAMES, "one that comes, beside those for the codec");
};

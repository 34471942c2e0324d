// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be done in the sandbox, and what cannot.
//!
//! Each case is a process of its own, this program with a variable in its environment: what it
//! gives up it does not get back, and it must have no threads when it does.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use caps::CapSet;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::{
    poll::{PollFd, PollFlags},
    sys::prctl,
};
use vhost_device_tmem::{
    control::{stat, Admitted, ControlServer, Operated, Stat},
    sandbox::{enter, Places, Role},
    stop::{wait_ready, Running, StopToken},
    store::{Compression, Config, Memory, Store},
    tmpfs::Tmpfs,
};

/// Names the case that this process is.
const CASE: &str = "TMEM_SANDBOX_CASE";
/// Where it may have sockets.
const PLACE: &str = "TMEM_SANDBOX_PLACE";

/// How a case has to end.
enum End {
    /// Well.
    Well,
    /// By the sandbox: the process is killed.
    Killed,
}
use End::{Killed, Well};

type Case = (&'static str, fn(), End);

const CASES: &[Case] = &[
    ("a_worker_serves", worker_serves, Well),
    ("a_worker_opens_no_file", worker_opens_no_file, Well),
    ("a_worker_shortens_no_file", worker_shortens_no_file, Killed),
    ("a_worker_runs_no_program", || worker(run_program), Killed),
    ("a_worker_makes_no_socket", || worker(make_socket), Killed),
    ("a_worker_forks_not", || worker(fork), Killed),
    ("a_worker_makes_no_code", || worker(make_code), Killed),
    (
        "a_worker_changes_no_memory_to_code",
        || worker(change_to_code),
        Killed,
    ),
    ("a_worker_signals_nobody", || worker(signal_parent), Killed),
    ("a_worker_connects_nowhere", worker_connects, Killed),
    ("a_worker_traces_nobody", || worker(trace), Killed),
    ("a_supervisor_reads_no_file", supervisor_reads_no_file, Well),
    ("a_supervisor_removes_its_sockets", supervisor_removes, Well),
    ("a_supervisor_runs_its_programs", supervisor_runs, Well),
    (
        "a_supervisor_serves_nothing_unknown",
        supervisor_unknown,
        Well,
    ),
    ("a_supervisor_makes_local_sockets", supervisor_sockets, Well),
    ("a_supervisor_traces_nobody", || supervisor(trace), Killed),
    (
        "a_worker_is_started_in_the_sandbox",
        worker_of_supervisor,
        Well,
    ),
    (
        "huge_pages_need_no_privileges",
        huge_pages_unprivileged,
        Well,
    ),
    (
        "threads_are_none_when_it_is_entered",
        threads_are_refused,
        Well,
    ),
];

fn main() {
    if let Some(case) = env::var_os(CASE) {
        let (_, case, _) = CASES
            .iter()
            .find(|(name, ..)| case == OsStr::new(name))
            .unwrap();
        return case();
    }
    let tests = CASES.iter().map(|(name, _, end)| {
        Trial::test(*name, move || {
            let place = tempfile::tempdir()?;
            let status = child(name, place.path()).status()?;
            check(status, end)
        })
    });
    libtest_mimic::run(&Arguments::from_args(), tests.collect()).exit();
}

fn child(case: &str, place: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(CASE, case).env(PLACE, place);
    command
}

fn check(status: ExitStatus, end: &End) -> Result<(), Failed> {
    let right = match end {
        Well => status.success(),
        Killed => status.signal() == Some(libc::SIGSYS),
    };
    if right {
        Ok(())
    } else {
        Err(format!("{status}").into())
    }
}

fn place() -> PathBuf {
    env::var_os(PLACE).unwrap().into()
}

fn enter_as(role: Role, places: &Places) {
    let missing = enter(role, places).unwrap();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Does something as a worker.
fn worker(what: fn()) {
    enter_as(Role::Worker, &Places::default());
    what();
}

/// Does something as a supervisor.
fn supervisor(what: fn()) {
    enter_as(Role::Supervisor, &Places::default());
    what();
}

fn denied<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
}

struct Embedded(Store);

impl Operated for Embedded {
    fn stat(&self) -> Stat {
        stat(&self.0, 1, [])
    }
    fn stop(&self, _force: bool) -> Result<String, String> {
        Ok(String::new())
    }
    fn upgrade(&self) -> Result<String, String> {
        Ok(String::new())
    }
}

/// All that a worker does: memory of others, a store, threads, events, operators.
fn worker_serves() {
    // In no file system, for its supervisor may have left it none.
    let name = format!("tmem-sandbox-{}", std::process::id());
    let name = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&name).unwrap();
    let operator = UnixStream::connect_addr(&name).unwrap();
    let (link, other) = UnixDatagram::pair().unwrap();
    let memory = memfd();
    let config = Config {
        compression: Compression::Lz4,
        ..Config::new(16 << 20)
    };
    let tmpfs = Tmpfs::mount().ok();
    let pages = Memory::create(&config, tmpfs.as_ref()).unwrap();
    worker(|| ());
    let (store, _) = Store::recover(&config, pages).unwrap();
    // Memory that is shared.
    nix::fcntl::fallocate(&memory, nix::fcntl::FallocateFlags::empty(), 0, 1 << 20).unwrap();
    let memory = fs::File::from(memory);
    assert_eq!(memory.metadata().unwrap().len(), 1 << 20);
    let shared = vm_memory::FileOffset::new(memory, 0);
    let range = (vm_memory::GuestAddress(0), 1 << 20, Some(shared));
    let shared = vm_memory::GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
    vm_memory::Bytes::write_obj(&shared, 7u64, vm_memory::GuestAddress(8)).unwrap();
    // Threads, with their stacks, names, and processors.
    let sum = Arc::new(Mutex::new(0));
    let threads: Vec<_> = (0..8)
        .map(|n| {
            let sum = Arc::clone(&sum);
            let thread = thread::Builder::new().name(format!("thread {n}"));
            thread.spawn(move || *sum.lock().unwrap() += vec![n; 1 << 20].len())
        })
        .collect();
    for thread in threads {
        thread.unwrap().join().unwrap();
    }
    assert_eq!(*sum.lock().unwrap(), 8 << 20);
    let _ = thread::available_parallelism();
    // Events and messages.
    let epoll = vmm_sys_util::epoll::Epoll::new().unwrap();
    let event = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let wanted = vmm_sys_util::epoll::EpollEvent::new(vmm_sys_util::epoll::EventSet::IN, 1);
    let add = vmm_sys_util::epoll::ControlOperation::Add;
    epoll.ctl(add, event.as_raw_fd(), wanted).unwrap();
    event.write(1).unwrap();
    assert_eq!(epoll.wait(-1, &mut [wanted]).unwrap(), 1);
    other.send(b"hello").unwrap();
    wait_ready(&mut [PollFd::new(link.as_fd(), PollFlags::POLLIN)], None).unwrap();
    assert_eq!(link.recv(&mut [0; 9]).unwrap(), 5);
    // Operators.
    let admitted = Admitted::new(None);
    let server = ControlServer::start(listener, admitted, Arc::new(Embedded(store))).unwrap();
    (&operator)
        .write_all(b"{\"version\":1,\"command\":\"stat\"}\n")
        .unwrap();
    let mut reply = String::new();
    BufReader::new(&operator).read_line(&mut reply).unwrap();
    assert!(reply.contains("\"capacity_bytes\":16777216"), "{reply}");
    server
        .end(Instant::now() + Duration::from_secs(60))
        .unwrap();
    // Nor is a panic the end.
    let stop = StopToken::new().unwrap();
    let panics = Running::start("panics", move |_| {
        let _stop = stop;
        panic!("on purpose");
    });
    panics
        .unwrap()
        .end(Instant::now() + Duration::from_secs(60))
        .unwrap();
}

fn memfd() -> OwnedFd {
    // SAFETY: A plain system call; the descriptor is new, and ours.
    unsafe {
        let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    }
}

fn worker_opens_no_file() {
    fs::write(place().join("file"), "text").unwrap();
    worker(|| denied(fs::read("/etc/passwd")));
    denied(fs::read(place().join("file")));
    denied(fs::write(place().join("new"), "text"));
    denied(fs::metadata("/"));
}

fn worker_shortens_no_file() {
    let memory = fs::File::from(memfd());
    memory.set_len(8192).unwrap();
    worker(|| ());
    let _ = memory.set_len(4096);
}

fn run_program() {
    let _ = nix::unistd::execv(c"/bin/true", &[c"true"]);
}

fn make_socket() {
    let _ = UnixDatagram::unbound();
}

fn fork() {
    // SAFETY: The child would do nothing but end.
    unsafe {
        if libc::fork() == 0 {
            libc::_exit(0);
        }
    }
}

fn map(protection: i32) -> *mut libc::c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: New memory, at an address of the kernel's choice.
    unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) }
}

fn make_code() {
    map(libc::PROT_READ | libc::PROT_EXEC);
}

fn change_to_code() {
    let memory = map(libc::PROT_READ | libc::PROT_WRITE);
    assert_ne!(memory, libc::MAP_FAILED);
    // SAFETY: The page was just mapped, and nobody else knows it.
    unsafe { libc::mprotect(memory, 4096, libc::PROT_READ | libc::PROT_EXEC) };
}

fn signal_parent() {
    // SAFETY: A plain system call.
    unsafe { libc::kill(libc::getppid(), 0) };
}

fn worker_connects() {
    let path = place().join("other.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let socket = UnixDatagram::unbound().unwrap();
    worker(|| ());
    let _ = socket.connect(path);
}

fn trace() {
    // SAFETY: A plain system call, of a process that is our own.
    unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
}

fn supervisor_reads_no_file() {
    supervisor(|| denied(fs::read("/etc/passwd")));
    denied(fs::read_dir("/"));
    assert_eq!(caps::read(None, CapSet::Effective).unwrap().len(), 0);
    assert_eq!(caps::read(None, CapSet::Permitted).unwrap().len(), 0);
    assert_eq!(prctl::get_no_new_privs(), Ok(true));
    assert_eq!(prctl::get_dumpable(), Ok(false));
}

fn supervisor_removes() {
    let (own, other) = (place().join("own"), place().join("other"));
    for folder in [&own, &other] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("file"), "text").unwrap();
    }
    enter_as(
        Role::Supervisor,
        &Places {
            sockets: vec![own.clone()],
            ..Places::default()
        },
    );
    denied(fs::remove_file(other.join("file")));
    denied(fs::read(own.join("file")));
    denied(fs::write(own.join("new"), "text"));
    fs::remove_file(own.join("file")).unwrap();
}

fn supervisor_runs() {
    let own = place().join("true");
    fs::copy("/usr/bin/true", &own).unwrap();
    enter_as(
        Role::Supervisor,
        &Places::to_run(Path::new("/usr/bin/true")),
    );
    assert!(Command::new("/usr/bin/true").status().unwrap().success());
    denied(Command::new(own).status());
}

fn supervisor_unknown() {
    supervisor(|| ());
    // SAFETY: There is no such system call.
    let result = unsafe { libc::syscall(4000) };
    assert_eq!(
        (result, nix::errno::Errno::last()),
        (-1, nix::errno::Errno::ENOSYS)
    );
    // SAFETY: As the pointer is null, the kernel would do nothing.
    let result = unsafe { libc::syscall(libc::SYS_mknod, std::ptr::null::<u8>(), 0, 0) };
    assert_eq!(
        (result, nix::errno::Errno::last()),
        (-1, nix::errno::Errno::ENOSYS)
    );
}

fn supervisor_sockets() {
    supervisor(|| ());
    UnixDatagram::pair().unwrap();
    let error = std::net::UdpSocket::bind("127.0.0.1:0").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
}

/// A worker starts under all that its supervisor gave up, and serves.
fn worker_of_supervisor() {
    let exe = env::current_exe().unwrap();
    enter_as(Role::Supervisor, &Places::to_run(&exe));
    let status = child("a_worker_serves", &place()).status().unwrap();
    assert!(status.success(), "{status}");
    let status = child("a_worker_runs_no_program", &place())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(libc::SIGSYS));
}

/// A user who may not mount anything has a file system with huge pages all the same, which another
/// process than the one that mounted it uses.
fn huge_pages_unprivileged() {
    if nix::unistd::geteuid().is_root() {
        const NOBODY: u32 = 65534;
        nix::unistd::setgid(NOBODY.into()).unwrap();
        nix::unistd::setuid(NOBODY.into()).unwrap();
        // A program that is run by this user is so from the start.
        prctl::set_dumpable(true).unwrap();
    }
    denied(Tmpfs::mount());
    // Whether there are any is a setting of the host, and of what this runs in.
    let status = Command::new("unshare")
        .args(["--user", "--map-current-user", "--mount", "true"])
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return eprintln!("not tested: there are no user namespaces");
    }
    let tmpfs = Tmpfs::mount_in_namespace().unwrap();
    let config = Config::new(16 << 20);
    let memory = Memory::create(&config, Some(&tmpfs)).unwrap();
    drop(tmpfs);
    assert!(memory.has_huge_pages());
    Store::recover(&config, memory).unwrap();
}

fn threads_are_refused() {
    let (end, wait) = std::sync::mpsc::channel::<()>();
    let thread = thread::spawn(move || wait.recv());
    let error = enter(Role::Worker, &Places::default()).unwrap_err();
    assert!(error.to_string().contains("2 threads"), "{error}");
    drop(end);
    let _ = thread.join();
}

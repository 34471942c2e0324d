// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The supervisor's own thread: the life of workers.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags};

use super::{
    changes::Changes,
    hub::{borrow, Hub},
    policy::{Abandonment, Blame, End, Look, Restarts, Watch},
    process::{Process, StartError},
    program::Program,
    service,
    settling::Settling,
    watched::Watched,
};
use crate::{
    control::answer_passed,
    link::{BlamePage, FromWorker, GuestId, LinkError, OperatorRequest, Received, ToWorker},
    log,
    signals::{Signal, Signals},
    stop::wait_ready,
    stop_policy::{Asked, Decision, StopPolicy, WINDOW},
};

/// How long a worker may take to finish what it does when another one takes over.
const HANDOVER: Duration = Duration::from_secs(1);

/// How long a worker may take to finish what it does when the daemon stops.
const FAREWELL: Duration = Duration::from_millis(300);

/// How long is waited for the number of pages that a stop would lose.
const COUNT: Duration = Duration::from_millis(200);

/// What the manager needs.
#[derive(Debug)]
pub(super) struct Needs {
    pub(super) hub: Arc<Hub>,
    pub(super) signals: Signals,
    /// What the daemon was told, and the guests.
    pub(super) changes: Changes,
    /// The operator's socket.
    pub(super) control: Option<OwnedFd>,
    /// The socket of metrics.
    pub(super) metrics: Option<OwnedFd>,
    /// The store's memory.
    pub(super) memory: Vec<OwnedFd>,
    /// The spill file, if there is one.
    pub(super) tier: Option<OwnedFd>,
    /// Where the program is from, and where an upgrade takes it from.
    pub(super) program: PathBuf,
    /// What is kept outlives this process.
    pub(super) outlived: bool,
}

/// What an operator asked for, and where an answer goes.
#[derive(Debug)]
struct Demand {
    request: OperatorRequest,
    operator: Option<OwnedFd>,
}

/// Sees to it that there is a worker.
#[derive(Debug)]
pub(super) struct Manager {
    needs: Needs,
    begin: Instant,
    page: BlamePage,
    program: Program,
    worker: Option<Process>,
    /// When to start the next worker, if there is none.
    next: Instant,
    /// The number of the last worker.
    number: u64,
    next_look: Instant,
    restarts: Restarts,
    blame: Blame,
    watch: Watch,
    abandonment: Abandonment,
    stop_policy: StopPolicy,
    /// Persistent pages, as a worker said last.
    persistent: u64,
    /// The log was told that no worker can begin.
    told: bool,
    /// Where guests' files are, if there are some.
    watched: Option<Watched>,
    /// What operators asked for and was not done yet.
    asked: VecDeque<Demand>,
    /// Operators who wait for a worker to have done what they asked for.
    settling: Settling,
}

impl Manager {
    /// Makes a manager.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no memory or descriptor left.
    pub(super) fn new(needs: Needs) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            begin: now,
            page: BlamePage::new()?,
            program: Program::own(),
            worker: None,
            next: now,
            number: 0,
            next_look: now + Watch::INTERVAL,
            restarts: Restarts::default(),
            blame: Blame::default(),
            watch: Watch::default(),
            abandonment: Abandonment::new(needs.changes.config().abandoned_after),
            stop_policy: StopPolicy::new(needs.changes.config().stop_loses_pages),
            watched: {
                let directory = needs.changes.config().guests_dir.as_deref();
                directory.map(Watched::new).transpose()?
            },
            asked: VecDeque::new(),
            settling: Settling::default(),
            persistent: 0,
            told: false,
            needs,
        })
    }

    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Starts the first worker, without which the daemon is of no use.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub(super) fn start(&mut self) -> Result<(), StartError> {
        let mut worker = self.spawn()?;
        self.begin(&mut worker)?;
        self.worker = Some(worker);
        Ok(())
    }

    /// Keeps workers running until it is time to stop.
    ///
    /// # Errors
    ///
    /// The operating system's, where nothing can be waited for any more.
    pub(super) fn run(&mut self) -> io::Result<()> {
        loop {
            let wake = self.abandon();
            let mut until = self.next_look.min(wake.unwrap_or(self.next_look));
            if self.worker.is_none() {
                until = until.min(self.next);
            }
            let mut fds = vec![
                PollFd::new(self.needs.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(borrow(self.needs.hub.wake()), PollFlags::POLLIN),
            ];
            if let Some(worker) = &self.worker {
                fds.push(PollFd::new(worker.link().as_fd(), PollFlags::POLLIN));
            }
            let worker_at = self.worker.is_some().then_some(fds.len() - 1);
            let watched = self.watched.as_ref().map(AsFd::as_fd);
            fds.extend(watched.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            wait_ready(&mut fds, Some(until))?;
            let ready: Vec<_> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            drop(fds);
            if ready[1] {
                // An error says that it was not woken.
                let _ = self.needs.hub.wake().read();
            }
            if worker_at.is_some_and(|at| ready[at]) {
                self.listen();
            }
            if let Some(why) = self.needs.hub.take_broken() {
                self.replace(Some(&why), None);
            }
            while let Some(signal) = self.needs.signals.next()? {
                if self.signalled(signal) {
                    return Ok(());
                }
            }
            if self.watched.as_ref().is_some_and(Watched::has_changed) {
                self.needs.changes.guests_changed();
                self.tell_guests();
            }
            while let Some(asked) = self.asked.pop_front() {
                if self.serve(asked) {
                    return Ok(());
                }
            }
            self.look();
            if self.worker.is_none() && Instant::now() >= self.next {
                self.start_another();
            }
        }
    }

    /// Starts a process.
    fn spawn(&mut self) -> Result<Process, StartError> {
        self.number += 1;
        Process::spawn(self.program.path(), self.number, self.needs.signals.as_fd())
    }

    /// Tells a worker what to serve, and gives it the guests.
    fn begin(&mut self, worker: &mut Process) -> Result<(), StartError> {
        self.page.clear();
        let now = self.now();
        let start = ToWorker::Start {
            options: Box::new(self.needs.changes.options()),
            threads: u32::from(self.blame.one_thread(now)),
            control: self.needs.control.is_some(),
            metrics: self.needs.metrics.is_some(),
            tier: self.needs.tier.is_some(),
            worker_starts: worker.number(),
            guests: self.needs.changes.guests(),
            known: self.needs.hub.known(),
            terms: self.needs.changes.terms(),
            shared: self.needs.changes.shared_pools(),
        };
        let mut descriptors = vec![self.page.as_fd()];
        descriptors.extend(self.needs.control.iter().map(AsFd::as_fd));
        descriptors.extend(self.needs.memory.iter().map(AsFd::as_fd));
        descriptors.extend(self.needs.metrics.iter().map(AsFd::as_fd));
        descriptors.extend(self.needs.tier.iter().map(AsFd::as_fd));
        let lost = worker.begin(&start, &descriptors, self.needs.signals.as_fd())?;
        if lost > 0 {
            tracing::error!(
                "{lost} descriptions of pages are damaged: all guests have to forget what they stored"
            );
            self.needs.hub.new_epochs();
        }
        self.watch = Watch::default();
        let attached = self
            .needs
            .hub
            .attach(worker.number(), Arc::clone(worker.link()));
        attached.map_err(|error| StartError::Died(error.to_string()))?;
        if !self.settling.is_empty() {
            self.settling.asked_again(self.needs.hub.ask());
        }
        self.restarts.began();
        self.told = false;
        tracing::debug!(
            "worker {} serves (process {})",
            worker.number(),
            worker.id()
        );
        self.tell_status(worker.number());
        Ok(())
    }

    /// Says to the service manager what is served, and by which worker.
    fn tell_status(&self, worker: u64) {
        let guests = self.needs.changes.config().guests.len();
        service::status(&format!("{guests} guests, served by worker {worker}"));
    }

    /// As [`Self::tell_status`], where guests have changed and the worker has not.
    fn tell_guests(&self) {
        if let Some(worker) = &self.worker {
            self.tell_status(worker.number());
        }
    }

    fn start_another(&mut self) {
        let started = self.start();
        let Err(error) = started else {
            tracing::info!("a new worker has taken over");
            return;
        };
        if matches!(error, StartError::Interrupted) {
            self.next = Instant::now();
            return;
        }
        if !std::mem::replace(&mut self.told, true) {
            tracing::error!("guests are not served: {error}; it is tried again and again");
            service::status(&format!("guests are not served: {error}"));
        }
        let now = self.now();
        self.next = Instant::now() + self.restarts.died(now, false);
    }

    /// Listens to the worker.
    fn listen(&mut self) {
        let Some(worker) = &mut self.worker else {
            return;
        };
        match worker.receive() {
            Ok(received) => self.heard(received),
            Err(LinkError::Closed) => self.replace(None, None),
            Err(error) => {
                self.replace(Some(&format!("said what is not understood: {error}")), None);
            }
        }
    }

    fn heard(&mut self, received: Received<FromWorker>) {
        let Received {
            message,
            descriptors,
        } = received;
        if let Some(worker) = &self.worker {
            self.needs.hub.heard(worker.number(), &message);
        }
        match message {
            FromWorker::Pong { persistent, token } => {
                self.persistent = persistent;
                self.settling.answered(token);
                self.watch.answered();
            }
            FromWorker::Removed { guest, dropped } => {
                let renewed = self.needs.hub.removed(guest);
                let what = if renewed {
                    "begins another epoch"
                } else {
                    "disconnected"
                };
                let (persistent, ephemeral) = (dropped.persistent.pages, dropped.ephemeral.pages);
                tracing::info!(
                    "guest {:?} {what}: {persistent} persistent and {ephemeral} ephemeral \
                     pages dropped",
                    self.needs.hub.name(guest)
                );
            }
            FromWorker::Forgotten { guest, dropped } => {
                self.needs.hub.forgotten(guest);
                self.blame.forget(guest);
                let (persistent, ephemeral) = (dropped.persistent.pages, dropped.ephemeral.pages);
                tracing::info!(
                    "nothing is left of a guest that was removed: {persistent} persistent and \
                     {ephemeral} ephemeral pages dropped"
                );
            }
            FromWorker::Operator(request) => self.asked.push_back(Demand {
                request,
                operator: descriptors.into_iter().next(),
            }),
            _ => {}
        }
    }

    /// Does what an operator asked for. Returns whether it is time to stop.
    fn serve(&mut self, asked: Demand) -> bool {
        let done = match asked.request {
            OperatorRequest::Upgrade => {
                self.upgrade();
                return false;
            }
            OperatorRequest::Stop => return true,
            OperatorRequest::Reload { force } => self.reload(force),
            OperatorRequest::Guest(edit) => {
                let done = self.needs.changes.edit(&edit);
                self.tell_guests();
                done
            }
            OperatorRequest::Shared(edit) => self.needs.changes.share(&edit),
            OperatorRequest::Freeze { guest, frozen } => {
                self.needs.changes.freeze(guest.as_deref(), frozen)
            }
            OperatorRequest::Resume { guest, epoch, done } => {
                let resumed = self.needs.changes.resume_epoch(&guest, epoch);
                resumed.map(|()| done)
            }
            OperatorRequest::Epoch { guest, force } => {
                self.needs.changes.begin_epoch(&guest, force)
            }
        };
        self.settle(asked.operator, done);
        false
    }

    /// Answers an operator: where something was done, once the worker knows of it.
    fn settle(&mut self, operator: Option<OwnedFd>, done: Result<String, String>) {
        let Some(operator) = operator else {
            return;
        };
        match done {
            Ok(done) => self.settling.add(self.needs.hub.ask(), operator, done),
            Err(_) => answer_passed(operator.as_fd(), done),
        }
    }

    fn reload(&mut self, force: bool) -> Result<String, String> {
        let _reloading = service::Reloading::begin();
        let done = self.needs.changes.reload(force)?;
        let config = self.needs.changes.config();
        self.abandonment.set_after(config.abandoned_after);
        self.stop_policy = StopPolicy::new(config.stop_loses_pages);
        log::set_level(config.log_level);
        self.needs.hub.set_log_level(config.log_level);
        self.tell_guests();
        Ok(done)
    }

    /// Replaces the worker: it is dead, or is killed because it does something wrong. `guest` is
    /// the one at which it hangs.
    fn replace(&mut self, wrong: Option<&str>, guest: Option<GuestId>) {
        self.needs.hub.detach();
        let Some(mut worker) = self.worker.take() else {
            return;
        };
        let now = self.now();
        let threads = (0..BlamePage::THREADS).map(|thread| self.page.serving(thread));
        let mut threads: Vec<_> = threads.collect();
        let end = match wrong {
            Some(why) => {
                worker.kill();
                // What it did was done, and has to be known.
                while let Ok(received) = worker.receive() {
                    self.heard(received);
                }
                tracing::error!("the worker {why}: it is replaced");
                if let Some(guest) = guest {
                    threads.retain(|thread| thread.guest == Some(guest));
                    End::Hung
                } else {
                    // Nobody knows whose fault it is.
                    End::Killed
                }
            }
            None => {
                let (end, how) = worker.end();
                tracing::error!("the worker {how}: another one takes over");
                end
            }
        };
        if let Some(guest) = self.blame.died(now, end, threads) {
            self.needs.hub.blame(guest);
        }
        self.next = Instant::now() + self.restarts.died(now, true);
    }

    fn look(&mut self) {
        if Instant::now() < self.next_look {
            return;
        }
        self.next_look = Instant::now() + Watch::INTERVAL;
        if self.worker.is_none() {
            return;
        }
        let threads = (0..BlamePage::THREADS).map(|thread| self.page.serving(thread));
        match self.watch.look(threads) {
            Look::Well => {}
            Look::Ask => {
                self.needs.hub.ask();
            }
            Look::ThreadHangs(guest) => {
                let name = self.needs.hub.name(guest);
                self.replace(Some(&format!("hangs at guest {name:?}")), Some(guest));
            }
            Look::WorkerHangs => self.replace(Some("does not answer"), None),
        }
    }

    /// Lets go of what guests have left behind. Returns when to do so again.
    fn abandon(&mut self) -> Option<Instant> {
        let quiet = self.needs.hub.quiet();
        let now = self.now();
        let (due, next) = self.abandonment.due(now, &quiet);
        for guest in due {
            tracing::info!(
                "guest {:?} has used no virtqueue for {} s: its ephemeral pages are dropped",
                self.needs.hub.name(guest),
                self.needs.changes.config().abandoned_after.as_secs()
            );
            self.needs.hub.abandon(guest);
        }
        next.map(|next| self.begin + next)
    }

    /// Replaces the worker by one of the program that is now where this one is from. If that does
    /// not work, the old one goes on.
    fn upgrade(&mut self) {
        let path = self.needs.program.clone();
        tracing::info!("upgrading to {}", path.display());
        let opened = Program::open(&path).map_err(|error| StartError::Run {
            program: path.clone(),
            error,
        });
        let program = match opened {
            Ok(program) => program,
            Err(error) => return tracing::error!("no upgrade: {error}; the old worker goes on"),
        };
        self.number += 1;
        let signals = self.needs.signals.as_fd();
        let mut worker = match Process::spawn(program.path(), self.number, signals) {
            Ok(worker) => worker,
            Err(error) => {
                return tracing::error!(
                    "no upgrade to {}: {error}; the old worker goes on",
                    path.display()
                )
            }
        };
        self.retire(HANDOVER);
        match self.begin(&mut worker) {
            Ok(()) => {
                self.program = program;
                self.worker = Some(worker);
                tracing::info!("upgraded: worker {} serves", self.number);
            }
            Err(error) => {
                tracing::error!("no upgrade: {error}; a worker of the old program takes over");
                self.start_another();
            }
        }
    }

    /// Has the worker finish what it does, and ends it, within that time.
    fn retire(&mut self, patience: Duration) {
        self.needs.hub.detach();
        let Some(mut worker) = self.worker.take() else {
            return;
        };
        let until = Instant::now() + patience;
        if worker.link().send(&ToWorker::Stop, &[]).is_ok() {
            while let Ok(received) = worker.wait_message(until) {
                match received.message {
                    FromWorker::Stopped => break,
                    // What the next one does not know of.
                    _ => self.heard(received),
                }
            }
        }
        if !worker.wait_end(until) {
            tracing::warn!("the worker does not stop, and is killed");
            worker.kill();
        }
    }

    /// Does what a signal asks for. Returns whether it is time to stop.
    fn signalled(&mut self, signal: Signal) -> bool {
        match signal {
            Signal::Terminate | Signal::Interrupt => return self.stops(signal),
            Signal::Upgrade => self.upgrade(),
            Signal::Reload => {
                if !self.needs.changes.has_file() {
                    // Whoever sent the signal may wait for this.
                    drop(service::Reloading::begin());
                    tracing::info!("{signal}: there is nothing to read again");
                } else if let Err(problems) = self.reload(false) {
                    tracing::error!("nothing has changed, for this is wrong: {problems}");
                }
            }
            Signal::Statistics => self.tell(),
        }
        false
    }

    fn tell(&mut self) {
        match &self.worker {
            Some(worker) => {
                tracing::info!(
                    "worker {} serves (process {})",
                    worker.number(),
                    worker.id()
                );
                self.needs.hub.summarise();
            }
            None => tracing::info!("there is no worker at the moment"),
        }
    }

    /// Learns how many persistent pages there are, if the worker says so soon.
    fn count(&mut self) {
        self.needs.hub.ask();
        let until = Instant::now() + COUNT;
        let Some(mut worker) = self.worker.take() else {
            return;
        };
        while let Ok(received) = worker.wait_message(until) {
            let answered = matches!(received.message, FromWorker::Pong { .. });
            self.needs.hub.heard(worker.number(), &received.message);
            self.heard(received);
            if answered {
                break;
            }
        }
        self.worker = Some(worker);
    }

    fn stops(&mut self, signal: Signal) -> bool {
        if self.needs.outlived {
            tracing::info!("stopping on {signal}; systemd keeps what the next start goes on with");
            return true;
        }
        self.count();
        match self
            .stop_policy
            .decide(Instant::now(), Asked::Plainly, self.persistent)
        {
            Decision::Stop { loses: 0 } => tracing::info!("stopping on {signal}"),
            Decision::Stop { loses } => {
                tracing::warn!("stopping on {signal}; {loses} persistent pages are lost");
            }
            Decision::Refuse { would_lose } => {
                tracing::warn!(
                    "not stopping on {signal}: guests would lose {would_lose} persistent pages that \
                     only this daemon has; send it again within {} seconds to lose them",
                    WINDOW.as_secs()
                );
                return false;
            }
        }
        true
    }

    /// Leaves everything to a process that comes after this one.
    pub(super) fn leave(self) {
        self.needs.changes.leave();
    }

    /// Ends the worker, soon.
    pub(super) fn end(&mut self) {
        self.retire(FAREWELL);
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's binary, told how to behave while a driver sends it requests.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use tmem_driver::{TmemDevice, EVENT_IDX, FEATURES};
use virtio_tmem_abi::{Key, Opcode, PageResult, Status};
use zerocopy::IntoBytes;

const DATA: usize = 2;
const PAGE: usize = 4096;
const FIRST: u64 = 1 << 20;
const SECOND: u64 = 2 << 20;

/// The device, killed when dropped, and a driver of it.
struct Fake {
    child: Child,
    control: UnixStream,
    driver: TmemDevice,
    _folder: tempfile::TempDir,
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

impl Fake {
    fn start(behave: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (socket, control) = (folder.path().join("sock"), folder.path().join("control"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_tmem-fake-device"));
        command.arg("--socket-path").arg(&socket);
        command.arg("--control-path").arg(&control);
        for behaviour in behave {
            command.args(["--behave", behaviour]);
        }
        let child = command.spawn().unwrap();
        wait_until("the device listens", || socket.exists() && control.exists());
        let mem = tmem_driver::memory(8 << 20).unwrap();
        let driver = TmemDevice::connect(&socket, &mem, FEATURES & !EVENT_IDX, 64, 0).unwrap();
        Self {
            child,
            control: UnixStream::connect(&control).unwrap(),
            driver,
            _folder: folder,
        }
    }

    fn tell(&mut self, line: &str) -> String {
        writeln!(self.control, "{line}").unwrap();
        let mut reply = String::new();
        let mut replies = BufReader::new(&self.control);
        replies.read_line(&mut reply).unwrap();
        reply.trim().to_owned()
    }

    fn count(&mut self, name: &str) -> u64 {
        let stat = self.tell("stat");
        let mut words = stat.split(' ').skip_while(|word| *word != name);
        words.nth(1).unwrap().parse().unwrap()
    }

    fn bytes(&self, opcode: Opcode) -> Vec<u8> {
        let key = Key {
            index: 3.into(),
            version: 1.into(),
            ..Key::default()
        };
        let header = self.driver.header(opcode, 0, 1);
        let mut bytes = [header.as_bytes(), key.as_bytes()].concat();
        if opcode == Opcode::Put {
            bytes.resize(bytes.len() + PAGE, 0x5a);
        }
        bytes
    }

    /// The status, the used length and the result of a request about one page.
    fn ask(&mut self, addr: u64, opcode: Opcode) -> (Status, u32, u8) {
        let bytes = self.bytes(opcode);
        let page = if opcode == Opcode::Get { PAGE } else { 0 };
        let response = self.driver.request(DATA, addr, &bytes, 33 + page).unwrap();
        (response.status(), response.len, response.rest[0])
    }

    fn submit_get(&mut self, addr: u64) {
        let bytes = self.bytes(Opcode::Get);
        self.driver.submit(DATA, addr, &bytes, 33 + PAGE);
    }
}

const HIT: (Status, u32, u8) = (Status::Ok, 33 + PAGE as u32, PageResult::Hit as u8);
const STORED: (Status, u32, u8) = (Status::Ok, 33, PageResult::Stored as u8);

#[test]
fn what_is_kept_is_answered_later() {
    let mut fake = Fake::start(&[]);
    assert_eq!(fake.ask(FIRST, Opcode::Put), STORED);
    assert_eq!(fake.tell("behave answer-nothing:data"), "ok");
    fake.submit_get(FIRST);
    wait_until("it is kept", || fake.count("kept") == 1);
    assert_eq!(fake.driver.queues[DATA].next_used(), None);
    assert_eq!(
        fake.driver.create_pool(SECOND, 1, 0).unwrap(),
        Status::Ok,
        "the control virtqueue goes on"
    );
    assert_eq!(fake.tell("behave"), "ok");
    assert_eq!(fake.driver.queues[DATA].poll().unwrap().1, 33 + PAGE as u32);
    assert_eq!(fake.count("kept"), 0);
    assert!(fake.tell("behave nonsense").starts_with("error"));
}

#[test]
fn one_is_lost_and_others_are_not() {
    let mut fake = Fake::start(&["lose-one"]);
    assert_eq!(fake.ask(FIRST, Opcode::Put), STORED);
    fake.submit_get(FIRST);
    wait_until("it is kept", || fake.count("kept") == 1);
    assert_eq!(fake.ask(SECOND, Opcode::Get), HIT);
    assert_eq!(fake.count("kept"), 1);
    assert_eq!(fake.tell("behave"), "ok");
    assert_eq!(fake.driver.queues[DATA].poll().unwrap().1, 33 + PAGE as u32);
}

#[test]
fn an_answer_that_is_held_comes_by_itself() {
    let mut fake = Fake::start(&["hold:0.01"]);
    assert_eq!(fake.ask(FIRST, Opcode::Put), STORED);
    assert_eq!(fake.ask(FIRST, Opcode::Get), HIT);
    assert_eq!(fake.count("misbehaved"), 2);
    // What is not due yet comes when it behaves.
    assert_eq!(fake.tell("behave hold:3600"), "ok");
    fake.submit_get(FIRST);
    wait_until("it is held", || fake.count("kept") == 1);
    assert_eq!(fake.tell("behave"), "ok");
    assert_eq!(fake.driver.queues[DATA].poll().unwrap().1, 33 + PAGE as u32);
}

#[test]
fn an_epoch_that_changed_makes_requests_stale() {
    let mut fake = Fake::start(&[]);
    assert_eq!(fake.ask(FIRST, Opcode::Put), STORED);
    let before = fake.count("epoch");
    assert_eq!(fake.tell("epoch-change"), "ok");
    let after = fake.count("epoch");
    assert_ne!(before, after);
    assert_eq!(fake.ask(FIRST, Opcode::Get).0, Status::StaleEpoch);
    fake.driver.config.epoch = after.into();
    let miss = PageResult::Miss.to_wire();
    assert_eq!(fake.ask(FIRST, Opcode::Get).2, miss);
    assert_eq!(fake.tell("epoch-back"), "ok");
    assert_eq!(fake.count("epoch"), before);
    assert!(fake.tell("epoch-back").starts_with("error"));
}

#[test]
fn what_is_out_of_reach_stays() {
    let mut fake = Fake::start(&[]);
    assert_eq!(fake.ask(FIRST, Opcode::Put), STORED);
    let behave = format!("behave unreachable:{SECOND:x}-{:x}", SECOND + 0xffff);
    assert_eq!(fake.tell(&behave), "ok");
    assert_eq!(fake.ask(SECOND, Opcode::Get).2, PageResult::Miss.to_wire());
    assert_eq!(fake.ask(FIRST, Opcode::Get), HIT);
    let refused = PageResult::NoMemory.to_wire();
    assert_eq!(fake.ask(SECOND, Opcode::Put).2, refused);
    assert_eq!(fake.ask(FIRST, Opcode::Get).2, PageResult::Miss.to_wire());
}
